"""`hdit ema RUN --std 0.05,0.10`: averages of any width after the training, from a run's snapshots."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli.commands.numbers import MOST_STEP, whole
from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.engine.run.posthoc import Plan


def ema(
    run: Annotated[Path, typer.Argument(help="A run that was trained with ema.stds and ema.snapshot_every.")],
    std: Annotated[
        str,
        typer.Option(
            metavar="X,...",
            help="Widths with commas: standard deviations, as a part of the training so far; 0.05,0.10.",
        ),
    ],
    step: Annotated[
        int | None,
        typer.Option(
            help="A step that has a snapshot: the average there.",
            parser=whole("--step", least=0, most=MOST_STEP),
            show_default="the newest",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the files.", show_default="RUN")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Facts on stdout as JSON, with the coefficients.")] = False,
) -> None:
    """Write one inference file for each width, reconstructed from the run's snapshots (post-hoc EMA, EDM2)."""

    from hdit_cli import files
    from hdit_cli.engine.run.weights import parse_stds
    from hdit_cli.errors import UsageError

    stds = parse_stds(std)
    if not run.is_dir():
        raise UsageError(f"{run} is not a run folder", hint="give a folder that `hdit train` made")

    from hdit_cli.engine.run.checkpoint import serialise
    from hdit_cli.engine.run.posthoc import plan, reconstruct

    plans = plan(run, stds, step=step)
    paths = [(out or run) / _file_name(planned, newest=step is None) for planned in plans]
    taken = [path for path in paths if path.exists()]
    if taken and not force:
        raise UsageError(f"{taken[0]} exists", hint="--out elsewhere, or --force to overwrite")
    if out is not None:
        files.make_folder(out)
    facts, codec = [], None
    for planned, path, (tensors, header) in zip(plans, paths, reconstruct(plans), strict=True):
        data = serialise(tensors, header)
        files.write_bytes(path, data)
        if out is not None and codec is None:
            codec = _bring_codec(header, run=run, out=out)
        facts.append(_facts(planned, path, data))
        if not json_:
            say(f"{path}: std {planned.std:g}, {planned}")
    if codec is not None and not json_:
        say(f"codec {codec}")
    if json_:
        say_json(facts)


def _bring_codec(header: dict[str, str], *, run: Path, out: Path) -> Path | None:
    """Puts the codec that an average needs beside it; None where it needs none, or the run has lost it, which is said."""
    from hdit_cli.engine.run.codec_file import found_for, keep_beside
    from hdit_cli.engine.run.header import read_facts
    from hdit_cli.models.codecs.latents import Absent

    needed = read_facts(header, where=str(run)).codec
    if needed is None:
        return None
    found = found_for(Absent(**needed), named=None, beside=run)
    if isinstance(found, Absent):
        say(f"warning: the codec {found.name} is not in {run}; `hdit sample` takes it by --codec", err=True)
        return None
    return keep_beside(found, out)


def _file_name(plan: "Plan", *, newest: bool) -> str:
    """`ema-0.050.safetensors` of the newest snapshot; of another one its step stands in the name."""
    from hdit_cli.engine.run.checkpoint import step_name
    from hdit_cli.engine.run.weights import file_name

    name = file_name(plan.std)
    return name if newest else f"{step_name(plan.step)}-{name}"


def _facts(plan: "Plan", path: Path, data: bytes) -> dict[str, Any]:
    from hdit_cli import files

    return {
        "path": str(path),
        "std": plan.std,
        "step": plan.step,
        "snapshots": plan.count,
        "profile_error": plan.fit.error,
        "coefficients": {
            f"{file.parent.name}/{file.name}": float(value)
            for file, value in zip(plan.files, plan.fit.coefficients, strict=True)
        },
        "bytes": len(data),
        "sha256": files.sha256_of(data),
    }
