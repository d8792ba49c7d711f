"""Reasons to stop early, agreed by all processes: a signal, or the time a recipe allows."""

import signal
import time
from types import FrameType

import torch
from torch import distributed

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler's notice, a terminal or ssh connection that was closed
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class StopRequest:
    """Catches signals while it is entered. The first asks to stop after the step; the second stops at once.

    Args:
        seconds: stop after this long; None never.
    """

    def __init__(self, *, seconds: float | None) -> None:
        self.name = ""
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._before: dict[int, object] = {}
        self._group = None
        if distributed.is_available() and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")  # on the host: asking must not wait for the GPU

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if signal.Signals(number).name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # as `nohup` wants it
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    @property
    def asked(self) -> str:
        """Why this process alone would stop now: a signal's name, "time", or ""."""
        timed_out = self.deadline is not None and time.monotonic() >= self.deadline
        return self.name or ("time" if timed_out else "")

    def agreed(self) -> str:
        """Why to stop now, the same answer on every process: a signal's name, "time", or "" to go on."""
        word = SIGNALS.index(signal.Signals[self.name]) + 2 if self.name else int(self.asked == "time")
        if self._group is not None:
            shared = torch.tensor(word)
            distributed.all_reduce(shared, op=distributed.ReduceOp.MAX, group=self._group)
            word = int(shared)
        return "" if not word else "time" if word == 1 else SIGNALS[word - 2].name
