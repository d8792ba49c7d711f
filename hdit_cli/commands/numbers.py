"""Numbers on the command line: each option says from where to where it goes, and a number outside stops before anything runs."""

import math
import re
from collections.abc import Callable
from typing import Any

from hdit_cli.errors import UsageError

MOST_IMAGES = 100_000_000
MOST_STEPS = 100_000
MOST_STEP = 99_999_999  # of a run, as its folders are called
MOST_BATCH = 65_536
MOST_SEED = 2**63 - 1
MOST_CFG = 1_000.0
MOST_CHANNELS = 64  # of an image or latent, as a recipe has them
MOST_SIDE = 65_536  # pixels
MOST_PROCESSES = 1_024  # on one machine
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DIGITS = 40  # of a whole number that is read at all: Python takes its time over thousands
_SHOWN = 40  # characters of what was typed


def whole(option: str, *, least: int, most: int) -> Callable[[Any], int]:
    """What typer reads a whole number with (`parser=`).

    Args:
        option: as it is typed, for the message.
        least, most: the range, both ends in it.

    Raises:
        UsageError: when it is called with something else.
    """

    def read(text: Any) -> int:
        word = str(text).strip()
        if not _WHOLE.fullmatch(word):
            raise _refused(option, word, "not a whole number", hint=f"a whole number {_range(least, most)}")
        value = int(word) if len(word) <= _DIGITS else (-1 if word.startswith("-") else 1) * 10**_DIGITS
        if not least <= value <= most:
            raise _refused(option, word, "out of range", hint=f"a whole number {_range(least, most)}")
        return value

    read.__name__ = "int"  # what `--help` shows
    return read


def real(option: str, *, least: float, most: float, above: bool = False) -> Callable[[Any], float]:
    """What typer reads a number with (`parser=`); NaN and infinity are none.

    Args:
        option: as it is typed, for the message.
        least, most: the range, both ends in it.
        above: `least` itself is not in it.

    Raises:
        UsageError: when it is called with something else.
    """
    words = f"above {least:g}, at most {most:,.6g}" if above else _range(least, most)

    def read(text: Any) -> float:
        word = str(text).strip()
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _refused(option, word, "not a number", hint=f"a number {words}")
        if not least <= value <= most or (above and value == least):
            raise _refused(option, word, "out of range", hint=f"a number {words}")
        return value

    read.__name__ = "float"  # what `--help` shows
    return read


def _range(least: float, most: float) -> str:
    return f"from {least:,} to {most:,}" if isinstance(most, int) else f"from {least:g} to {most:,.6g}"


def _refused(option: str, word: str, what: str, *, hint: str) -> UsageError:
    shown = word if len(word) <= _SHOWN else f"{word[:_SHOWN]}…"
    return UsageError(f"{option} {shown!r} is {what}", hint=hint)
