"""Progress on stderr: tqdm on a terminal, a plain line every few seconds where there is none."""

import sys
import time
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from hdit_cli.commands.say import say, shown

_EVERY = 10.0  # seconds between plain lines


class Bar(tqdm):
    """tqdm that prints whole lines where it cannot draw over itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.plain = not sys.stderr.isatty()
        self._last_line = time.monotonic()
        self.images_per_second = 0.0
        self.label = ""
        super().__init__(
            *args, **{"ascii": True, "ncols": 100, **options} if self.plain else {"dynamic_ncols": True, **options}
        )

    def __str__(self) -> str:
        return shown(super().__str__())  # a label may be a path

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        if not self.plain:
            return super().display(msg, pos)
        now = time.monotonic()
        if now - self._last_line >= _EVERY:
            self._last_line = now
            say(str(self), err=True)
        return True

    def close(self) -> None:
        if self.plain and not self.disable:
            if self.leave:
                say(str(self), err=True)
            self.disable = True  # no empty line of tqdm's own
            return
        super().close()

    def advance(self, count: int) -> None:
        """`update` that never runs past the total: with several processes each counts for all."""
        self.update(min(count, (self.total or 0) - self.n))

    def write_line(self, text: str, *, err: bool = True) -> None:
        """A line that stays, above the bar."""
        if self.plain:
            say(text, err=err)
        else:
            self.write(shown(text), file=sys.stderr if err else sys.stdout)


def bar(*, total: int, initial: int = 0, unit: str, label: str = "", quiet: bool = False, passing: bool = False) -> Bar:
    """A progress bar with the time left; `unit` is what is counted. `quiet` prints nothing.

    Args:
        passing: it goes when it is closed, and what is over within a second shows none.
    """
    options = {"desc": label or None, "smoothing": 0.05, "disable": quiet, "leave": not passing}
    made = Bar(total=total, initial=initial, unit=unit, delay=1.0 if passing else 0.0, **options)
    made.label = label
    return made


class Bars:
    """One bar for each thing that takes long: reading the reference, generating, downloading."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clear(self) -> None:
        """What is shown is done with; the next thing gets a bar of its own."""
        self._stack.close()
        self._open.clear()

    def pictures(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total, unit="image")

    def download(self, done: int, total: int) -> None:
        self._show("Inception weights", done // 2**20, total // 2**20, unit="MiB")

    def _show(self, what: str, done: int, total: int, *, unit: str) -> None:
        if what not in self._open:
            self._open[what] = self._stack.enter_context(bar(total=total, unit=unit, label=what, quiet=self._quiet))
        shown = self._open[what]
        shown.update(done - shown.n)
        if done >= total:
            shown.refresh()
