"""Reads a run's logs as they are: growing, cut short, damaged or not there. Nothing here raises for what a file holds."""

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdit_cli import files

POINTS = 3000  # of a curve: more than a screen has columns; longer logs become means over several lines
_LARGEST_JSON = 1 << 26
_LAST_STEP = 1 << 53  # what a double counts exactly


@dataclass
class Log:
    """Lines of one `.jsonl` file that could be read, in order, and what is odd about the others."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: bool = True


def read_log(path: Path) -> Log:
    """Every line that is a JSON object with a step. A last line that is being written at this moment is passed over."""
    if not path.exists():
        return Log(found=False)
    log, bad = Log(), 0
    try:
        with files.open_regular(path) as handle:
            for raw in handle:
                line = _parsed(raw)
                if line is not None:
                    log.lines.append(line)
                elif raw.strip() and raw.endswith(b"\n"):
                    bad += 1
                elif raw.strip():
                    log.notes.append(
                        f"the last line of {path.name} is cut short: it was being written, or the disk was full"
                    )
    except OSError as error:
        log.notes.append(f"{path.name} cannot be read: {error.strerror}")
    if bad:
        log.notes.append(f"{bad:,} lines of {path.name} cannot be read and are left out")
    return log


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or isinstance(value.get("step"), bool) or not isinstance(value.get("step"), int):
        return None
    return value if 0 <= value["step"] < _LAST_STEP else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        value = json.loads(files.read_regular(path, most=_LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def exact(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def number(value: Any) -> float | None:
    """As `exact`, with six digits: what a curve can show."""
    found = exact(value)
    rounded = None if found is None else float(f"{found:.6g}")
    return rounded if rounded is None or math.isfinite(rounded) else None


def numbers(value: Any) -> list[float | None]:
    """The numbers of a list; empty for anything else."""
    return [number(entry) for entry in value] if isinstance(value, list) else []


def parted(lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of metrics.jsonl about training, and those of evaluations inside the run as `scores.jsonl` would hold them."""
    trained = [line for line in lines if not isinstance(line.get("eval"), dict)]
    scored = []
    for line in lines:
        if isinstance(told := line.get("eval"), dict):
            reference = {"path": "the training data", "count": told.get("n_reference")}
            scored.append({**told, "step": line["step"], "reference": reference})
    return trained, scored


def newest_of_each_step(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """By step, ascending: a run that went on from an older checkpoint has written some steps twice."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


class Axes:
    """Where a step stands: in images seen and in hours of training.

    Args:
        metrics, timing: lines of the two logs, in the order in which they were written.
        batch_size: images of a step where the log does not say; None where nobody does.
    """

    def __init__(
        self, metrics: Sequence[dict[str, Any]], timing: Sequence[dict[str, Any]], *, batch_size: int | None
    ) -> None:
        known = [line["images"] / line["step"] for line in metrics if line["step"] and number(line.get("images"))]
        self.images_per_step = known[-1] if known else batch_size
        self.steps: list[int] = []
        self.hours: list[float] = []
        self.seconds = self._cumulate(timing)

    def _cumulate(self, timing: Sequence[dict[str, Any]]) -> float:
        """Seconds of training over all stops, also for steps that were lost and done again; the clock starts anew each time."""
        before, last, at = 0.0, 0.0, {}
        for line in timing:
            seconds = number(line.get("trained_seconds"))
            if seconds is None:
                continue
            if seconds < last:
                before += last
            last = seconds
            at = {step: hours for step, hours in at.items() if step < line["step"]} if line["step"] in at else at
            at[line["step"]] = (before + seconds) / 3600
        self.steps = sorted(at)
        self.hours = [at[step] for step in self.steps]
        return before + last

    def columns(self, steps: Sequence[int]) -> dict[str, list[Any]]:
        """The three x axes for these steps; None where a run did not write it down."""
        per = self.images_per_step
        images = [None if per is None else number(step * per) for step in steps]
        return {"step": list(steps), "images": images, "hours": [number(self.hour(step)) for step in steps]}

    def hour(self, step: int) -> float | None:
        """Hours of training at a step, between two lines of the log in proportion."""
        if not self.steps or step > self.steps[-1]:
            return None
        i = bisect_left(self.steps, step)
        x1, y1 = self.steps[i], self.hours[i]
        x0, y0 = (self.steps[i - 1], self.hours[i - 1]) if i else (0, 0.0)
        return y1 if x1 == x0 else y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def thinned(lines: Sequence[dict[str, Any]], values: dict[str, Any], axes: Axes) -> dict[str, Any]:
    """A table of columns, at most POINTS rows: means over equally many lines, at the last step of each group.

    Args:
        lines: with "step", ascending.
        values: name => function of a line that gives a number or None. A column without any number is left out.
    """
    per = max(1, math.ceil(len(lines) / POINTS))
    groups = [lines[i : i + per] for i in range(0, len(lines), per)]
    table: dict[str, Any] = {**axes.columns([group[-1]["step"] for group in groups]), "lines_per_point": per}
    for name, value in values.items():
        column = [_mean([value(line) for line in group]) for group in groups]
        if any(entry is not None for entry in column):
            table[name] = column
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return number(sum(there) / len(there)) if there else None
