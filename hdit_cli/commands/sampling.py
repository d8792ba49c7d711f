"""The sampling options that `sample` and `eval-fid` share."""

import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hdit_cli import catalog
from hdit_cli.commands import completion
from hdit_cli.commands.numbers import (
    MOST_BATCH,
    MOST_CFG,
    MOST_CHANNELS,
    MOST_IMAGES,
    MOST_PROCESSES,
    MOST_SEED,
    MOST_SIDE,
    MOST_STEPS,
    real,
    whole,
)
from hdit_cli.commands.say import say
from hdit_cli.errors import UsageError

read_count = whole("-n", least=1, most=MOST_IMAGES)  # of `-n`, whose help differs
read_seed = whole("--seed", least=0, most=MOST_SEED)
Seed = Annotated[int, typer.Option(help="Image i is a function of (seed, i).", parser=read_seed)]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Steps of the sampler.",
        parser=whole("--steps", least=1, most=MOST_STEPS),
        show_default="the recipe's, else 50; 12 of tokens",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"{', '.join(catalog.names('sampler'))}.",
        autocompletion=completion.names("sampler"),
        show_default="the recipe's, else dpmpp-3m-sde; paella of tokens",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(catalog.names("schedule")),
        help="Spacing of the noise levels.",
        autocompletion=completion.names("schedule"),
        show_default="the recipe's, else karras",
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(
        help="Noise that a stochastic sampler puts back, 0 to 10; 0 is none.",
        parser=real("--eta", least=0, most=10),
        show_default="the recipe's, else 1; 0 with ddim",
    ),
]
Rho = Annotated[
    float | None,
    typer.Option(
        help="Of the karras schedule: larger puts more steps at low noise.",
        parser=real("--rho", least=0, most=100, above=True),
        show_default="the recipe's, else 7",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cpu, cuda, cuda:1 for a certain card, or mps.",
        autocompletion=completion.words("cpu", "cuda", "mps"),
        show_default="a GPU if there is one",
    ),
]
ClassNames = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="NAME",
        autocompletion=completion.classes,
        help="A class name or number, or all; several with commas, or repeat it.",
        show_default="the proportions of the data",
    ),
]


def _numbers_or_one(option: str, **bounds: Any) -> Callable[[Any], Any]:
    """A parser of a number, or of two with a comma: at the first step and at the last."""
    one = real(option, **bounds)

    def read(text: Any) -> Any:
        parts = str(text).split(",")
        if len(parts) > 2 or (len(parts) == 2 and not all(map(str.strip, parts))):
            raise UsageError(
                f"{option} {str(text)[:40]!r} is not a number, nor two", hint=f"{option} 4, or {option} 8,4"
            )
        return one(text) if len(parts) == 1 else (one(parts[0]), one(parts[1]))

    read.__name__ = "float"  # what `--help` shows
    return read


def _two(option: str, **bounds: Any) -> Callable[[Any], tuple[float, float]]:
    """A parser of two numbers with a comma; one stands for both."""
    either = _numbers_or_one(option, **bounds)

    def read(text: Any) -> tuple[float, float]:
        found = either(text)
        return found if isinstance(found, tuple) else (found, found)

    read.__name__ = "float"
    return read


Cfg = Annotated[
    float | None,  # or a pair, as its parser gives it
    typer.Option(
        help="Classifier-free guidance; 1 is off. Of tokens also 8,4: at the first step and at the last.",
        parser=_numbers_or_one("--cfg", least=0, most=MOST_CFG),
        show_default="the recipe's, else 1",
    ),
]
Temperature = Annotated[
    float | None,  # a pair, as its parser gives it
    typer.Option(
        metavar="A,B",
        help="Of tokens: how evenly they are drawn, at the first step and at the last; lower is safer and more alike.",
        parser=_two("--temperature", least=0, most=100, above=True),
        show_default="the recipe's, else 0.7,0.3",
    ),
]
Typical = Annotated[
    float | None,
    typer.Option(
        help="Of tokens by paella-v1: mass of probability of those that may be drawn, 0 to 0.999; 0 is off.",
        parser=real("--typical", least=0, most=0.999),
        show_default="the recipe's, else 0.2",
    ),
]


class Renoise(StrEnum):
    """What --renoise takes."""

    START = "start"
    PREV = "prev"
    RAND = "rand"


RenoiseMode = Annotated[
    Renoise | None,
    typer.Option(
        "--renoise",
        help="Of tokens by paella-v1: what it puts back after a draw: the first noise, the tokens before, or new noise.",
        show_default="the recipe's, else start",
    ),
]
RenoiseSteps = Annotated[
    int | None,
    typer.Option(
        "--renoise-steps",
        help="Of tokens: after how many of the draws noise is put back.",
        parser=whole("--renoise-steps", least=0, most=MOST_STEPS),
        show_default="the recipe's, else all but the last",
    ),
]
CfgInterval = Annotated[
    str | None,
    typer.Option(metavar="LO:HI", help="The noise levels (sigmas) within which guidance acts.", show_default="all"),
]
CfgChannels = Annotated[
    int | None,
    typer.Option(
        help="Channels, from the first, that guidance acts on; 0 is all.",
        parser=whole("--cfg-channels", least=0, most=MOST_CHANNELS),
        show_default="the recipe's, else all",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Height and width in pixels, or one number for both.", show_default="as trained"),
]
Codec = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The codec of a model of latents.",
        show_default="the one beside the checkpoint, by its SHA-256",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="ema, raw, or the width of a power-function average, as 0.05.",
        autocompletion=completion.words("ema", "raw"),
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images denoised together.",
        parser=whole("--batch-size", least=1, most=MOST_BATCH),
        show_default="the recipe's, fewer where memory is short, more of small ones on CUDA",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile", help="Compile the network first.", show_default="on CUDA from 1,000 images on"
    ),
]


class Words(StrEnum):
    """What --precision takes."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"


Precision = Annotated[
    Words | None,
    typer.Option(
        help="What the network multiplies in: IEEE float32, TF32 (NVIDIA GPUs since Ampere: faster, about as exact), or "
        "bfloat16 (faster still).",
        show_default="tf32 on such a GPU, else fp32",
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        help="Processes on this machine: one for each GPU.", parser=whole("--processes", least=1, most=MOST_PROCESSES)
    ),
]
Oversubscribe = Annotated[
    bool,
    typer.Option("--oversubscribe", help="Allow more --processes than this machine has GPUs, or cores without one."),
]


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """LO:HI as two noise levels.

    Raises:
        UsageError: not two finite numbers, or in the wrong order.
    """
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        pair = (float(low), float(high))
    except ValueError:
        pair = (1.0, 0.0)
    if not colon or not 0 <= pair[0] < pair[1] < math.inf:
        raise UsageError(
            f"--cfg-interval {text!r} is not LO:HI", hint="two noise levels, the lower one first: for example 0.3:5"
        )
    return pair


def parse_size(text: str | None, *, option: str = "--size") -> tuple[int, int] | None:
    """HxW, or one number for a square.

    Raises:
        UsageError: neither.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text.strip().lower())
    sides = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not all(1 <= side <= MOST_SIDE for side in sides):
        raise UsageError(
            f"{option} {text[:40]!r} is neither HxW nor a number from 1 to {MOST_SIDE:,}",
            hint="for example 256 or 192x256",
        )
    return sides


def wanted(**typed: Any) -> dict[str, Any]:
    """Fields of `Sampling` as they were typed; None where nothing was.

    Args:
        typed: the options of this module by their names; cfg_interval and size as texts.

    Raises:
        UsageError: an option that cannot be read, or no such sampler or schedule.
    """
    for kind in ("sampler", "schedule"):
        if typed[kind] is not None:
            catalog.check(kind, typed[kind])
    # left out where not asked: a sweep finds the table that it began without them
    younger = (
        "schedule",
        "eta",
        "rho",
        "cfg_channels",
        "precision",
        "temperature",
        "typical",
        "renoise",
        "renoise_steps",
    )
    typed = {name: value.value if isinstance(value, StrEnum) else value for name, value in typed.items()}
    given = {name: value for name, value in typed.items() if name not in younger or value is not None}
    return {**given, "cfg_interval": parse_interval(typed["cfg_interval"]), "size": parse_size(typed["size"])}


def classes(typed: list[str] | None) -> str | tuple[str, ...] | None:
    """What --class asks for: one text, several, or None."""
    if not typed:
        return None
    return typed[0] if len(typed) == 1 else tuple(typed)


def check_weights(weights: str) -> None:
    """Raises UsageError unless `weights` is ema, raw or a width."""
    from hdit_cli.engine.run.weights import parse

    parse(weights)


def located(checkpoint: Path) -> Path:
    """What a CKPT argument means: a file that is not here is the only one of that name under `runs/`, which is told."""
    from hdit_cli.engine.run.trained import stand_in
    from hdit_cli.launchers import is_child

    found = stand_in(checkpoint)
    if found is not None and not is_child():
        say(f"there is no {checkpoint} here: this is {found}, the only one under runs/", err=True)
    return found or checkpoint


def classes_told(label: str | list[str]) -> str:
    """The classes of a record in words."""
    if isinstance(label, list):
        return f"classes {', '.join(label)}"
    return "all classes" if label == "all" else f"class {label}"


def tell_notes(notes: list[str]) -> None:
    """Says on stderr what is to be known before the pictures come."""
    for note in notes:
        say(f"note: {note}", err=True)


def tell_origin(*, weights: str, origin: str) -> None:
    """Says on stderr where an average of a certain width comes from: a file, or the snapshots it was made of."""
    if weights not in ("ema", "raw"):
        say(f"weights {weights}: {origin}", err=True)
