"""The measurements of `hdit bench` as a picture, by matplotlib (the extra `plot`)."""

import io
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.errors import UsageError


def check() -> None:
    """Raises UsageError where matplotlib is not installed; to be asked before minutes of measuring."""
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("--plot needs matplotlib", hint="pip install 'hdit-cli[plot]'") from None


def plot(facts: dict[str, Any], path: Path) -> None:
    """Writes a PNG: parts of a step, attention backends, and the curves there are.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check()
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    curves = [name for name in ("sizes", "batches") if facts.get(name)]
    figure = Figure(figsize=(5 * (2 + len(curves)), 4), layout="constrained")
    axes = figure.subplots(1, 2 + len(curves))
    _bars(axes[0], {name: seconds * 1e3 for name, seconds in facts["parts"].items()}, "ms of a training step")
    backends = {
        f"level {level['level']}: {name}": row["both_seconds"][0] * 1e3
        for level in facts["attention"]
        for name, row in level["backends"].items()
        if "both_seconds" in row
    }
    _bars(axes[1], backends, "ms of attention, forward and backward")
    for axis, name in zip(axes[2:], curves, strict=True):
        points = facts[name]
        axis.plot([p["value"] for p in points], [p["images_per_second"] for p in points], marker="o")
        axis.set_xlabel({"sizes": "side in pixels", "batches": "images of a batch"}[name])
        axis.set_title("training images/s", loc="left")
        axis.set_ylim(bottom=0)
    figure.suptitle(f"{facts['recipe']}, {facts['environment']['hardware']}, {facts['date']}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    files.write_bytes(path, buffer.getvalue())


def _bars(axis: Any, values: dict[str, float], title: str) -> None:
    axis.barh(list(values), list(values.values()))
    axis.invert_yaxis()
    axis.set_title(title, loc="left")
