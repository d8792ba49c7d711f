"""The sampling options that `sample` and `eval-fid` share."""

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hdit_cli.commands.numbers import (
    MOST_BATCH,
    MOST_CFG,
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
        show_default="the recipe's, else 50",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="euler, heun, dpmpp-2m, dpmpp-3m-sde, …", show_default="the recipe's, else dpmpp-3m-sde"),
]
ClassName = Annotated[
    str | None,
    typer.Option("--class", help="A class name or number, or all.", show_default="the proportions of the data"),
]
Cfg = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance; 1 is off.",
        parser=real("--cfg", least=0, most=MOST_CFG),
        show_default="the recipe's, else 1",
    ),
]
CfgInterval = Annotated[
    str | None, typer.Option(help="LO:HI, the noise levels (sigmas) within which guidance acts.", show_default="all")
]
Size = Annotated[str | None, typer.Option(help="HxW or one number, in pixels.", show_default="as trained")]
Weights = Annotated[str, typer.Option(help="ema, raw, or the width of a power-function average, as 0.05.")]
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


def wanted(
    *,
    seed: int | None,
    steps: int | None,
    sampler: str | None,
    cfg: float | None,
    cfg_interval: str | None,
    size: str | None,
    batch_size: int | None,
) -> dict[str, Any]:
    """Fields of `Sampling` as they were typed; None where nothing was.

    Raises:
        UsageError: an option that cannot be read.
    """
    return {
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "cfg": cfg,
        "cfg_interval": parse_interval(cfg_interval),
        "size": parse_size(size),
        "batch_size": batch_size,
    }


def check_weights(weights: str) -> None:
    """Raises UsageError unless `weights` is ema, raw or a width."""
    from hdit_cli.engine.weights import parse

    parse(weights)


def located(checkpoint: Path) -> Path:
    """What a CKPT argument means: a file that is not here is the only one of that name under `runs/`, which is told."""
    from hdit_cli.engine.launch import is_child
    from hdit_cli.engine.trained import stand_in

    found = stand_in(checkpoint)
    if found is not None and not is_child():
        say(f"there is no {checkpoint} here: this is {found}, the only one under runs/", err=True)
    return found or checkpoint


def tell_origin(*, weights: str, origin: str) -> None:
    """Says on stderr where an average of a certain width comes from: a file, or the snapshots it was made of."""
    if weights not in ("ema", "raw"):
        say(f"weights {weights}: {origin}", err=True)
