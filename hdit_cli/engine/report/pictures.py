"""The grids of a run as `data:` addresses: chosen, made smaller where they must be, within a budget of bytes."""

import base64
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

BUDGET = 9_000_000  # bytes of all pictures of a page; base64 makes 12 MB of it
STEPS = 40  # grids over time on a page, all runs together
_SIDE = 1600  # pixels: more than a page shows
_SMALLEST = 160
_QUALITY = 85
_PIXELS = 300_000_000  # a grid of 64 pictures of 2048 x 2048 pixels
_NAME = re.compile(r"step-(\d{8,15})-(\w[\w.-]{0,30})\.png")


def grids(folder: Path, *, runs: int) -> dict[str, Any]:
    """The grids of `samples/`, evenly chosen over time, first and last kept.

    Args:
        runs: how many share the page.

    Returns:
        total: steps with grids in the folder; shown: [{"step", "pictures": {weights: data address}}]; scale: of the smallest
        picture on the page, 1 where none was made smaller; notes.
    """
    found: dict[int, dict[str, Path]] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        entries = []
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = entry
    steps = evenly(sorted(found), max(4, STEPS // runs))
    budget = BUDGET // runs // max(1, sum(len(found[step]) for step in steps))
    shown, scale, notes = [], 1.0, []
    for step in steps:
        pictures = {}
        for weights, path in found[step].items():
            try:
                pictures[weights], each = _address(path, budget=budget)
                scale = min(scale, each)
            except Exception as error:  # whatever a decoder says of a file that may come from anywhere
                sentence = " ".join(str(error).replace(str(path), "").split())[:120]
                notes.append(f"{path.name} cannot be shown: {sentence or type(error).__name__}")
        if pictures:
            shown.append({"step": step, "pictures": pictures})
    return {"total": len(found), "shown": shown, "scale": round(scale, 3), "notes": notes}


def evenly(values: Sequence[int], n: int) -> list[int]:
    """At most n of the values, first and last among them, the others as evenly spread as they come."""
    if len(values) <= n:
        return list(values)
    return [values[round(i * (len(values) - 1) / (n - 1))] for i in range(n)]


def _address(path: Path, *, budget: int) -> tuple[str, float]:
    """A `data:` address of at most `budget` bytes of WebP where that goes, and how much smaller the picture became."""
    if not path.is_file():
        raise ValueError("it is no file")  # opening a pipe would wait for ever
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the size: the limit is ours, a line below
        with Image.open(path, formats=("PNG",)) as image:
            width, height = image.size
            if width * height > _PIXELS:
                raise ValueError(f"{width} x {height} pixels are too many for a page")
            picture = image.convert("RGB")
    scale = min(1.0, _SIDE / max(width, height))
    while True:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        smaller = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        smaller.save(buffer, format="WEBP", quality=_QUALITY)
        data = buffer.getvalue()
        if len(data) <= budget or max(size) <= _SMALLEST:
            return f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}", scale
        scale *= 0.8
