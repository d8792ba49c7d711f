"""Curves as PNG: one panel for each quantity, one line for each series. For a look, not for print."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 760, 340  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 34, 48
_COLOURS = ("#1f5fa8", "#c2571a", "#2f8f4e", "#8a3ea1", "#a8323e", "#5b6b7a", "#b08d1c", "#1c9aa0")
_INK, _LINES = "#333333", "#dddddd"


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Attributes:
        name: over the panel.
        series: label => y for each x; None where there is none.
        errors: as `series`, half the length of a bar.
        best: (label, place in x) of the point to mark.
    """

    name: str
    series: dict[str, list[float | None]]
    errors: dict[str, list[float | None]] = field(default_factory=dict)
    best: tuple[str, int] | None = None


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high], low < high, ascending: 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]


def curves_png(panels: Sequence[Panel], *, x: Sequence[float | str], x_name: str) -> bytes:
    """Panels under each other over one x axis.

    Args:
        x: numbers, which lie to scale, or names, which lie evenly.

    Returns:
        the bytes of a PNG file.
    """
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for number, panel in enumerate(panels):
        _Drawn(draw, font, panel, x=x, x_name=x_name, top=number * _HEIGHT)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()


class _Drawn:
    """Draws one panel when made."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
        panel: Panel,
        *,
        x: Sequence[float | str],
        x_name: str,
        top: int,
    ) -> None:
        self.draw, self.font, self.panel, self.x = draw, font, panel, x
        self.box = (_LEFT, top + _TOP, _WIDTH - _RIGHT, top + _HEIGHT - _BOTTOM)
        numbers = [value for value in x if not isinstance(value, str)]
        self.places = [float(v) for v in numbers] if len(numbers) == len(x) else [float(i) for i in range(len(x))]
        self.x_range = _padded(self.places)
        self.y_ticks = ticks(*_padded(self._values()))
        self._frame(x_name)
        for (label, values), colour in zip(panel.series.items(), _COLOURS * len(panel.series), strict=False):
            self._curve(label, values, colour)
        self._legend()

    def _values(self) -> list[float]:
        found = []
        for label, values in self.panel.series.items():
            errors = self.panel.errors.get(label) or [None] * len(values)
            for value, error in zip(values, errors, strict=True):
                if value is not None:
                    found += [value - (error or 0.0), value + (error or 0.0)]
        return found

    def _across(self, x: float) -> float:
        low, high = self.x_range
        return self.box[0] + (x - low) / (high - low) * (self.box[2] - self.box[0])

    def _up(self, y: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.box[3] - (y - low) / (high - low) * (self.box[3] - self.box[1])

    def _frame(self, x_name: str) -> None:
        left, top, right, bottom = self.box
        for tick in self.y_ticks:
            y = self._up(tick)
            self.draw.line((left, y, right, y), fill=_LINES)
            self.draw.text((left - 8, y), f"{tick:.6g}", fill=_INK, font=self.font, anchor="rm")
        shown = self._x_ticks()
        for place, text in shown:
            x = self._across(place)
            self.draw.line((x, bottom, x, bottom + 4), fill=_INK)
            self.draw.text((x, bottom + 7), text, fill=_INK, font=self.font, anchor="mt")
        self.draw.line((left, bottom, right, bottom), fill=_INK)
        self.draw.text(((left + right) / 2, bottom + 26), x_name, fill=_INK, font=self.font, anchor="mt")
        self.draw.text((left, top - 12), self.panel.name, fill=_INK, font=self.font, anchor="ls")

    def _x_ticks(self) -> list[tuple[float, str]]:
        if any(isinstance(value, str) for value in self.x):
            return [(place, str(value)) for place, value in zip(self.places, self.x, strict=True)]
        low, high = self.x_range
        return [(tick, f"{tick:.6g}") for tick in ticks(low, high, about=8) if low <= tick <= high]

    def _curve(self, label: str, values: list[float | None], colour: str) -> None:
        errors = self.panel.errors.get(label) or [None] * len(values)
        points = [
            (self._across(place), self._up(value), value, error)
            for place, value, error in zip(self.places, values, errors, strict=True)
            if value is not None
        ]
        self.draw.line([(x, y) for x, y, _, _ in points], fill=colour, width=2)
        for x, y, value, error in points:
            if error:
                self.draw.line((x, self._up(value - error), x, self._up(value + error)), fill=colour)
            self.draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        if self.panel.best is not None and self.panel.best[0] == label:
            place = self.panel.best[1]
            value = values[place]
            assert value is not None
            x, y = self._across(self.places[place]), self._up(value)
            self.draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=colour, width=2)

    def _legend(self) -> None:
        labels = [label for label in self.panel.series if label]
        x = float(self.box[2])
        for number, label in reversed(list(enumerate(labels))):
            x -= self.draw.textlength(label, font=self.font)
            self.draw.text(
                (x, self.box[1] - 12), label, fill=_COLOURS[number % len(_COLOURS)], font=self.font, anchor="ls"
            )
            x -= 14


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """A range a little wider than the values, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (
        low - margin if low < 0 or low > margin else 0.0
    ), high + margin  # what is never negative has no room below 0
