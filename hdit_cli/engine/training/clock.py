"""How fast a run goes."""

import time
from collections import deque
from typing import Any

import torch

from hdit_cli import runtime

WINDOW = 50  # steps that a rate is taken over, at least; fewer where there were no more
PATIENCE = 10.0  # seconds after which a device that runs behind is waited for, though nothing else asks


class Clock:
    """Images per second of training, over the last steps; what happens outside `with` is not counted.

    A GPU is told its work long before it does it, and how long the telling took says little. There, seconds run from one
    moment at which it had done everything to the next: `settle`, to be called before anything but training begins. After the
    first step, and when the last such moment is `PATIENCE` ago, the clock waits by itself. In between `rate` is that of the steps
    before the last such moment, an estimate; the first step, in which code is compiled, is none of them once there are others.

    Args:
        images: of a step, of all processes.
        device: that computes.
    """

    def __init__(self, *, images: int, device: torch.device) -> None:
        self.images, self.device = images, device
        self.behind = runtime.runs_behind(device)
        self.recent: deque[tuple[int, float]] = deque()  # steps and seconds between two such moments
        self.trained = 0.0
        self._steps, self._start = 0, 0.0  # since the last one
        self._first = self.behind  # whether `recent` has the first step

    def __enter__(self) -> None:
        if not self._steps:
            runtime.wait_for_device(self.device)  # what it still does is something else than training
            self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        self._steps += 1
        if not (self.behind and self.recent) or time.perf_counter() - self._start > PATIENCE:
            self.settle()

    def settle(self) -> None:
        """Waits for the device; from here on nothing is counted until the next step begins."""
        if not self._steps:
            return
        runtime.wait_for_device(self.device)
        seconds = time.perf_counter() - self._start
        self.trained += seconds
        self.recent.append((self._steps, seconds))
        self._steps = 0
        if self._first and len(self.recent) > 1:
            self.recent.popleft()
            self._first = False
        while sum(steps for steps, _ in self.recent) - self.recent[0][0] >= WINDOW:
            self.recent.popleft()

    @property
    def rate(self) -> float:
        return self.images * sum(steps for steps, _ in self.recent) / max(sum(s for _, s in self.recent), 1e-9)

    def line(self, step: int) -> dict[str, Any]:
        """A line of timing.jsonl, of what was settled."""
        return {
            "step": step,
            "time": round(time.time(), 3),
            "trained_seconds": round(self.trained, 3),
            "images_per_second": round(self.rate, 3),
            "peak_bytes": peak_bytes(self.device),
        }


def is_due(step: int, every: int, *, last: int) -> bool:
    """Whether what is done every so many steps, and after the last, is done after this one; 0 is never."""
    return every > 0 and (step % every == 0 or step == last)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors have taken on a CUDA device since the process began; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
