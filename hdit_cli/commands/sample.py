"""`hdit sample CKPT`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hdit_cli.commands import sampling as shared

if TYPE_CHECKING:
    from hdit_cli.engine.collect import Order


def sample(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="A checkpoint file or a run folder.", show_default=False)
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="Number of images.", show_default="16, or 8 a class for all")
    ] = None,
    seed: shared.Seed = 0,
    steps: shared.Steps = None,
    sampler: shared.Sampler = None,
    class_: shared.ClassName = None,
    cfg: shared.Cfg = None,
    cfg_interval: shared.CfgInterval = None,
    size: shared.Size = None,
    weights: shared.Weights = "ema",
    batch_size: shared.BatchSize = None,
    processes: shared.Processes = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the images.", show_default="samples/<name>")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A samples.json: makes the same images again.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier set in --out.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The record on stdout.")] = False,
) -> None:
    """Make images: PNGs, one grid, and a samples.json that reproduces them."""
    import json
    from dataclasses import replace

    from hdit_cli import runtime
    from hdit_cli.commands.progress import bar
    from hdit_cli.engine.launch import is_child, relaunch
    from hdit_cli.errors import UsageError

    shared.check_positive(n=n, steps=steps, batch_size=batch_size)
    shared.check_weights(weights)
    wanted = {
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "cfg": cfg,
        "cfg_interval": shared.parse_interval(cfg_interval),
        "size": shared.parse_size(size),
        "batch_size": batch_size,
    }
    if (checkpoint is None) == (from_ is None):
        raise UsageError("give a checkpoint, or --from a samples.json", hint="hdit sample runs/NAME")
    name = Path(checkpoint or str(from_)).resolve()
    folder = out or Path("samples") / (name.parent.name if name.is_file() else name.name)
    if folder.exists() and any(folder.iterdir()) and not force and not is_child():
        raise UsageError(f"{folder} is not empty", hint="--out elsewhere, or --force to overwrite")
    code = relaunch(processes)
    if code is not None:
        raise typer.Exit(code)
    runtime.join_processes()
    order, sha256 = _order(checkpoint, from_, n=n, label=class_, weights=weights)

    from hdit_cli.engine.collect import collect, image_count, load_for, sampling_of

    model, sha256 = load_for(order, sha256=sha256)
    if from_ is None:
        order = replace(order, sampling=sampling_of(model, **wanted))
    main = runtime.ranks().is_main
    if main:
        shared.tell_origin(weights=model.weights, origin=model.origin)
    with bar(total=image_count(model, order), unit="image", label="sampling", quiet=not main) as progress:
        world = runtime.ranks().world
        record = collect(
            model, order, out=folder, sha256=sha256, on_images=lambda count: progress.advance(count * world)
        )
    if main:
        typer.echo(json.dumps(record) if json_ else f"{record['n']} images, grid.png and samples.json in {folder}")


def _order(
    checkpoint: str | None, from_: Path | None, *, n: int | None, label: str | None, weights: str
) -> "tuple[Order, str]":
    """The order of this command line, or of a record; with it the recorded SHA-256 of the checkpoint."""
    from hdit_cli.engine.collect import Order, Sampling, read_order

    if from_ is not None:
        return read_order(from_)
    assert checkpoint is not None
    return Order(checkpoint, Sampling(), n, label, weights), ""
