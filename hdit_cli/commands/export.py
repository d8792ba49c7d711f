"""`hdit export CKPT`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hdit_cli.commands import sampling as shared


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
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="export/<name><suffix>")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Facts on stdout as JSON.")] = False,
) -> None:
    """Write a file that other software loads, and check it by loading it back."""
    import json

    from hdit_cli import catalog
    from hdit_cli.engine.load import load
    from hdit_cli.errors import UsageError

    shared.check_weights(weights)
    place = checkpoint.resolve()
    path = out or Path("export") / f"{place.parent.name if place.is_file() else place.name}{SUFFIX[to]}"
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--out elsewhere, or --force to overwrite")
    model = load(checkpoint, weights=weights, device="cpu")
    shared.tell_origin(weights=model.weights, origin=model.origin)
    done = catalog.get("export", to.value)(model, path, dtype=dtype.value)
    facts = {
        "path": str(done.path),
        "to": to.value,
        "dtype": dtype.value,
        "weights": model.weights,
        "origin": model.origin,
        "bytes": done.bytes,
        "sha256": done.sha256,
        "error": done.error,
    }
    if json_:
        typer.echo(json.dumps(facts))
    else:
        typer.echo(
            f"{path}: {done.bytes / 1e6:.1f} MB, {dtype.value}, {model.weights} weights, read back with error {done.error:.1e}"
        )
        typer.echo(f"sha256 {done.sha256}")
