"""The same evaluation over a grid of settings: what a number such as the guidance does to the scores.

`sweep.json` in the folder holds every finished point; a sweep that goes on, or is widened, makes only what is missing. A
point counts as made only where weights, options, pictures and versions were the same.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hdit_cli import files, runtime
from hdit_cli.engine.load import find
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.folder import run_of
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.generate import check
from hdit_cli.engine.sampling.settings import check_asked
from hdit_cli.engine.scoring.affordable import Count
from hdit_cli.engine.scoring.evaluate import run
from hdit_cli.engine.scoring.job import plan
from hdit_cli.engine.scoring.one_pass import OnProgress
from hdit_cli.engine.scoring.plot import Panel, curves_png
from hdit_cli.engine.scoring.request import Request, Session, holds_pictures, model_of
from hdit_cli.engine.scoring.unfinished import key_of
from hdit_cli.errors import UsageError
from hdit_cli.metrics.feature_net import split

FORMAT = "hdit-sweep/1"
TABLE, PLOT = "sweep.json", "sweep.png"
_LARGEST_TABLE = 1 << 28
_PANELS = 6  # of the plot at most


@dataclass(frozen=True)
class Axis:
    """One setting and its values: cfg, steps, sampler, seed, or weights."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """What was asked for.

    Attributes:
        base: the evaluation, with everything that does not vary.
        axes: what varies; several make a grid, the last one varies fastest.
        folder: where the table and the plot go; None is `sweeps/` in the run, or here.
    """

    base: Request
    axes: tuple[Axis, ...]
    folder: Path | None = None

    @property
    def place(self) -> Path:
        """The folder. It hangs on what does not vary: a sweep over more values finds those it has."""
        if self.folder is not None:
            return self.folder
        base, names = self.base, [axis.name for axis in self.axes]
        told = [str(base.source), base.n, base.metrics, str(base.reference), base.label, base.weights]
        key = key_of([*told, sorted((k, str(v)) for k, v in base.sampling.items() if k not in names)])
        above = run_of(base.source) or Path()
        if above.is_relative_to(Path.cwd()):
            above = above.relative_to(Path.cwd())  # as one would type it
        return above / "sweeps" / f"{'-'.join(names)}-{key[:8]}"

    def points(self) -> list[dict[str, Any]]:
        """Every combination of values."""
        names = [axis.name for axis in self.axes]
        return [
            dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in self.axes))
        ]

    def request(self, point: dict[str, Any]) -> Request:
        """The evaluation of one point."""
        sampling = {**self.base.sampling, **{name: v for name, v in point.items() if name != "weights"}}
        save = self.base.save and self.base.save / "-".join(f"{name}-{value}" for name, value in point.items())
        return replace(self.base, weights=point.get("weights", self.base.weights), sampling=sampling, save=save)


def sweep(
    wanted: Sweep,
    session: Session,
    *,
    on_progress: OnProgress,
    on_download: Callable[[int, int], None] = lambda done, total: None,
    on_model: Callable[[Model], None] = lambda model: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_point: Callable[[dict[str, Any]], None] = lambda point: None,
) -> dict[str, Any] | None:
    """Evaluates every point; several processes share each.

    Args:
        on_model: called before the first point is made.
        on_note: as `evaluate`, once.
        on_point: called with each point's entry of the table, on the first process.

    Returns:
        the table on the first process: axes, points (values of the axes, scores, record), best; None on the others.

    Raises:
        UsageError: a point that cannot be, before any is made.
        Interrupted: by a signal; finished points are kept, and so is what was done of the next one.
    """
    on_model(_check(wanted, session))
    main, folder = runtime.ranks().is_main, wanted.place
    known = _read(folder / TABLE) if main else {}
    names = set(runtime.gather(list(known))[0])
    session.count = runtime.gather(_count(known))[0]  # all points of a table have as many samples
    entries: list[dict[str, Any]] = []
    if main:
        if wanted.folder is None:  # inside the run
            files.refuse_link(folder.parent, folder)
        files.make_folder(folder)
    for point in wanted.points():
        job = plan(wanted.request(point), session, on_download=on_download, on_note=on_note)
        key = key_of(job.told())
        if key not in names:
            evaluation = run(job, session, on_progress=on_progress)
            if evaluation is not None:
                known[key] = {"key": key, **point, "record": evaluation.record()}
                files.write_json(folder / TABLE, {"format": FORMAT, "points": list(known.values())})
        if main:
            entries.append(known[key])
            on_point(known[key])
    if not main:
        return None
    found = best(entries)
    files.write_bytes(folder / PLOT, plot(wanted.axes, entries, best=found))
    axes = [{"name": axis.name, "values": list(axis.values)} for axis in wanted.axes]
    metric = entries[0]["record"]["scores"][0]["metric"]
    places = {"table": str(folder / TABLE), "plot": str(folder / PLOT)}
    return {
        "format": FORMAT,
        "axes": axes,
        "metric": metric,
        "best": found,
        "points": entries,
        **places,
    }


def _count(known: dict[str, Any]) -> Count | None:
    """How many samples the points of a table were scored with; None of an empty one."""
    return next((Count(each["record"]["scores"][0]["n"], 0.0) for each in known.values()), None)


def _check(wanted: Sweep, session: Session) -> Model:
    """The model of the first point, if all points can be.

    Raises:
        UsageError, CheckpointError: one cannot, or there are several feature nets.
    """
    if wanted.base.features and len(split(wanted.base.features)) > 1:
        raise UsageError(
            "a sweep takes one feature net, and --features names several", hint="make a sweep for each net"
        )
    points = wanted.points()
    first = wanted.request(points[0])
    if holds_pictures(first.source):
        raise UsageError(f"{first.source} holds pictures: there is nothing to vary", hint="leave --sweep out")
    model = model_of(first, session)
    assert model is not None
    for weights in {wanted.request(point).weights for point in points}:
        find(first.source, weights=weights)
    samplings = [sampling_of(model, **wanted.request(point).sampling) for point in points]
    for sampling in samplings:
        check(model, sampling)
    check_asked(samplings, wanted.base.sampling)
    return model


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Finished points by their keys; none where there is no table, or not a whole one."""
    try:
        table = json.loads(files.read_regular(path, most=_LARGEST_TABLE))
        return {point["key"]: point for point in table["points"]} if table["format"] == FORMAT else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path} is not a table of a sweep", hint="remove it, or --out elsewhere") from None


def score_of(entry: dict[str, Any], metric: str) -> dict[str, Any]:
    """What a point's record says of a metric."""
    return next((score for score in entry["record"]["scores"] if score["metric"] == metric), {})


def best(entries: Sequence[dict[str, Any]]) -> int | None:
    """The place of the best point by the first score, the first of equals; None where neither low nor high is better."""
    first = entries[0]["record"]["scores"][0]
    if first["better"] is None:
        return None
    sign = -1 if first["better"] == "higher" else 1
    values = [score_of(entry, first["metric"])["value"] for entry in entries]
    return min(range(len(entries)), key=lambda i: sign * values[i])


def plot(axes: Sequence[Axis], entries: Sequence[dict[str, Any]], *, best: int | None) -> bytes:
    """A panel for each score over the longest axis of numbers (else the first axis); a line for each combination of the rest.

    Returns:
        the bytes of a PNG file.
    """
    across = max(axes, key=lambda axis: (not isinstance(axis.values[0], str), len(axis.values)))
    rest = [axis for axis in axes if axis is not across]
    x = sorted(across.values) if not isinstance(across.values[0], str) else list(across.values)

    def label(entry: dict[str, Any]) -> str:
        return ", ".join(f"{axis.name} {entry[axis.name]}" for axis in rest)

    panels = []
    for number, name in enumerate(score["metric"] for score in entries[0]["record"]["scores"][:_PANELS]):
        series: dict[str, list[float | None]] = {}
        errors: dict[str, list[float | None]] = {}
        for entry in entries:
            place, told = x.index(entry[across.name]), score_of(entry, name)
            series.setdefault(label(entry), [None] * len(x))[place] = told.get("value")
            errors.setdefault(label(entry), [None] * len(x))[place] = told.get("details", {}).get("standard_deviation")
        marked = None
        if number == 0 and best is not None:
            marked = (label(entries[best]), x.index(entries[best][across.name]))
        panels.append(Panel(name.upper(), series, errors, marked))
    return curves_png(panels, x=x, x_name=across.name)
