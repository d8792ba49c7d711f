"""`hdit eval-fid --sweep`: what was typed, as axes, and the table of scores."""

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from hdit_cli.commands.numbers import MOST_CFG, MOST_SEED, MOST_STEPS, real, whole

if TYPE_CHECKING:
    from hdit_cli.engine.scoring.sweep import Axis

NAMES = ("cfg", "steps", "sampler", "seed", "weights")
MOST = 500  # points of a sweep
_DIGITS = 40  # of a number that is read at all
_READERS = {
    "cfg": real("--sweep cfg", least=0, most=MOST_CFG),
    "steps": whole("--sweep steps", least=1, most=MOST_STEPS),
    "seed": whole("--sweep seed", least=0, most=MOST_SEED),
}
_HINT = "cfg=1:3:0.25, steps=10,20,50, sampler=heun,dpmpp-3m-sde, seed=0:4:1 or weights=ema,0.05,0.1"


def parse(texts: list[str]) -> tuple["Axis", ...]:
    """The axes of NAME=VALUES, values a list with commas of values or of LO:HI:STEP.

    Raises:
        UsageError: an unknown name, no values, a value of another kind, or too many points.
    """
    from hdit_cli.engine.scoring.sweep import Axis
    from hdit_cli.errors import UsageError

    axes: dict[str, Axis] = {}
    total = 1
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lower()
        if not equals or name not in NAMES:
            raise UsageError(f"--sweep {text!r} names none of {', '.join(NAMES)}", hint=_HINT)
        if name in axes:
            raise UsageError(f"--sweep {name} is given twice", hint=f"one list: {name}=A,B,C")
        axes[name] = Axis(name, tuple(dict.fromkeys(_values(name, values, text))))
        total *= len(axes[name].values)
    if total > MOST:
        raise UsageError(f"--sweep makes {total:,} points, more than {MOST}", hint="fewer values")
    return tuple(axes.values())


def _values(name: str, text: str, typed: str) -> list[Any]:
    from hdit_cli import catalog
    from hdit_cli.engine.run import weights
    from hdit_cli.errors import UsageError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"--sweep {typed!r} has no values", hint=_HINT)
    if name == "sampler":
        for word in words:
            catalog.get("sampler", word)
        return words
    if name == "weights" and not any(":" in word for word in words):
        return [weights.option(weights.parse(word)) for word in words]
    try:
        numbers = [number for word in words for number in _range(word)]
    except (InvalidOperation, ValueError):
        raise UsageError(f"--sweep {typed!r} cannot be read", hint=_HINT) from None
    if name == "weights":
        return [weights.option(weights.parse(str(number))) for number in numbers]
    read = _READERS[name]
    return [read(f"{number:f}" if number != int(number) else int(number)) for number in numbers]


def _range(word: str) -> list[Decimal]:
    """LO:HI:STEP with both ends, or one number; decimal, so that 0.1 thrice is 0.3."""
    parts = [Decimal(part) for part in word.split(":")]
    if not all(part.is_finite() and abs(part.adjusted()) < _DIGITS for part in parts):
        raise ValueError(word)
    if len(parts) == 1:
        return parts
    low, high, step = parts
    if step <= 0 or high < low or (high - low) / step > MOST:
        raise ValueError(word)
    return [low + step * k for k in range(int((high - low) / step) + 1)]


def point_line(entry: dict[str, Any], names: list[str]) -> str:
    """One finished point, for stderr."""
    place = ", ".join(f"{name} {_text(entry[name])}" for name in names)
    return f"{place}: {', '.join(f'{metric} {value:.4g}' for metric, value in _scores(entry).items())}"


def page(table: dict[str, Any]) -> list[str]:
    """The table, the best point marked, then what all points share."""
    names = [axis["name"] for axis in table["axes"]]
    metrics = list(_scores(table["points"][0]))
    rows = [[*names, *metrics, ""]]
    for place, entry in enumerate(table["points"]):
        values = [_text(entry[name]) for name in names]
        scores = [f"{value:.4g}" for value in _scores(entry).values()]
        rows.append([*values, *scores, "<- best" if place == table["best"] else ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    record = table["points"][0]["record"]
    counts = sorted({score["n"] for entry in table["points"] for score in entry["record"]["scores"]})
    lines.append(f"n = {', '.join(f'{n:,}' for n in counts)} against {record['reference']['path']}")
    lines += [f"note: {note}" for note in _notes(table["points"])]
    if len(table["points"]) > 1:
        lines.append(
            f"note: best of {len(table['points'])} on the same pictures that it is chosen by: score it again with another --seed"
        )
    return [*lines, f"table {table['table']}", f"plot  {table['plot']}"]


def _notes(points: list[dict[str, Any]]) -> list[str]:
    """Those of the first point, and what is said of guidance where only later ones have any."""
    first = points[0]["record"]["notes"]
    later = [note for point in points[1:] for note in point["record"]["notes"] if "guidance" in note]
    return list(dict.fromkeys([*first, *later]))


def _scores(entry: dict[str, Any]) -> dict[str, float]:
    return {score["metric"]: score["value"] for score in entry["record"]["scores"]}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
