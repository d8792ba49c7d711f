"""`hdit export CKPT`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hdit_cli.commands import sampling as shared
from hdit_cli.commands.say import say

if TYPE_CHECKING:
    from hdit_cli.engine.model import Model


class Form(StrEnum):
    """Forms a model is exported in."""

    SAFETENSORS = "safetensors"
    TORCH_EXPORT = "torch-export"


class Dtype(StrEnum):
    """Number formats of exported weights."""

    FP32 = "fp32"
    BF16 = "bf16"


SUFFIX = {Form.SAFETENSORS: ".safetensors", Form.TORCH_EXPORT: ".pt2"}


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint file or a run folder.")],
    to: Annotated[Form, typer.Option(help="Form of the file.")] = Form.SAFETENSORS,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = Dtype.FP32,
    weights: shared.Weights = "ema",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="export/<name>/<name><suffix>")
    ] = None,
    license_: Annotated[
        str,
        typer.Option(
            "--license", metavar="NAME", help="Licence named in the model card, e.g. apache-2.0 or cc-by-4.0."
        ),
    ] = "unknown",
    no_grid: Annotated[bool, typer.Option("--no-grid", help="Leave the picture out of the model card.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Facts on stdout as JSON.")] = False,
) -> None:
    """Write a file that other software loads, check it by loading it back, and put a model card (README.md) beside it."""
    import json

    from hdit_cli import catalog, files
    from hdit_cli.engine.load import load
    from hdit_cli.engine.run.codec_file import keep_beside
    from hdit_cli.engine.run.folder import run_of
    from hdit_cli.engine.sharing.card import own_grid
    from hdit_cli.engine.sharing.card_file import write_card
    from hdit_cli.errors import UsageError
    from hdit_cli.models.codecs.frozen import Frozen

    shared.check_weights(weights)
    checkpoint = shared.located(checkpoint)
    place = files.real_path(checkpoint)
    name = place.parent.name if place.is_file() else place.name
    own = name if weights == "ema" else f"{name}-{weights}"
    path = out or Path("export") / own / f"{own}{SUFFIX[to]}"  # a folder each: the model card lies in it
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--out elsewhere, or --force to overwrite")
    model = load(checkpoint, weights=weights, device="cpu")
    shared.tell_origin(weights=model.weights, origin=model.origin)
    picture = None if no_grid else own_grid(model, run_of(checkpoint)) or _drawn(model)
    done = catalog.get("export", to.value)(model, path, dtype=dtype.value)
    kept = keep_beside(model.latents, path.parent) if isinstance(model.latents, Frozen) else None
    card, grid_path = write_card(model, done, checkpoint=checkpoint, licence=license_, picture=picture)
    facts = {
        "path": str(done.path),
        "to": to.value,
        "dtype": dtype.value,
        "weights": model.weights,
        "origin": model.origin,
        "bytes": done.bytes,
        "sha256": done.sha256,
        "error": done.error,
        "card": str(card),
        **({"codec": str(kept)} if kept else {}),
        "grid": str(grid_path) if grid_path else None,
    }
    if json_:
        say(json.dumps(facts))
    else:
        say(
            f"{path}: {done.bytes / 1e6:.1f} MB, {dtype.value}, {model.weights} weights, read back with error {done.error:.1e}"
        )
        say(f"sha256 {done.sha256}")
        if kept:
            say(f"codec {kept}")
        say(f"model card {card}")


def _drawn(model: "Model") -> bytes | None:
    """A grid drawn now, which is said: a large model takes its time on a CPU."""
    from hdit_cli.engine.sharing.card import drawn_grid

    if model.codec.pictures():  # it makes none
        return None
    say("drawing a grid for the model card; --no-grid leaves it out", err=True)
    return drawn_grid(model)
