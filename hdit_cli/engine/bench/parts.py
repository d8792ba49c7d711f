"""Where the time of a training step goes, by stamps at the borders of its parts, forward and backward.

A part's time is its own, without that of parts inside it. What no part claims is "the rest": what stands around the layers,
the loss, the gradient's norm.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hdit_cli import runtime
from hdit_cli.engine.bench.subject import Subject

REST = "the rest"


class Stopwatch:
    """Seconds by part; the innermost part that was entered runs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.open = [REST]
        self.since = time.perf_counter()

    def turn(self) -> None:
        """Gives the time since the last border to the part that ran."""
        runtime.wait_for_device(self.device)
        now = time.perf_counter()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def enter(self, part: str) -> None:
        self.turn()
        self.open.append(part)

    def leave(self, part: str) -> None:
        """Ends a part; one that was never entered, as where no gradient flows, is passed over."""
        self.turn()
        if part in self.open[1:]:
            del self.open[len(self.open) - 1 - self.open[::-1].index(part) :]

    @contextmanager
    def watched(self, owner: Any, method: str, part: str) -> Iterator[None]:
        """Calls of a method of one object are a part."""
        call: Callable[..., Any] = getattr(owner, method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave(part)

        setattr(owner, method, wrapped)
        try:
            yield
        finally:
            delattr(owner, method)

    def hooks(self, module: nn.Module, part: str) -> list[Any]:
        """A module is a part, forward and backward."""
        return [
            module.register_forward_pre_hook(lambda *_: self.enter(part)),
            module.register_forward_hook(lambda *_: self.leave(part)),
            module.register_full_backward_pre_hook(lambda *_: self.enter(part)),
            module.register_full_backward_hook(lambda *_: self.leave(part)),
        ]


def time_parts(subject: Subject, *, runs: int) -> dict[str, float]:
    """Seconds of each part of a step, the mean over `runs` steps, largest first.

    The stamps themselves cost time, on a GPU much: it is waited for at every border.
    """
    watch = Stopwatch(subject.device)
    state = subject.stepper.state
    handles: list[Any] = []
    for module, part in state.model.network.timed_parts():
        handles += watch.hooks(module, part)
    with ExitStack() as stack:
        stack.enter_context(watch.watched(subject.stepper, "draw", "drawing noise"))
        stack.enter_context(watch.watched(state.optimizer, "step", "optimizer"))
        stack.enter_context(watch.watched(state.ema, "update", "averages"))
        for average in state.averages.by_std.values():
            stack.enter_context(watch.watched(average, "update", "averages"))
        watch.turn()
        watch.seconds.clear()
        for _ in range(runs):
            subject.step()
        watch.turn()
    for handle in handles:
        handle.remove()
    found = {part: seconds / runs for part, seconds in watch.seconds.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
