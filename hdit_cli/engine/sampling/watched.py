"""A sampling that is looked at between two steps of its sampler: how far it is, and whether it is to end."""

from collections.abc import Callable
from typing import Protocol


class Stop(Protocol):
    """What can ask to stop."""

    @property
    def asked(self) -> str:
        """Why, or ""."""
        ...


class BrokenOff(Exception):
    """What was under way ended because somebody asked; it is to be done again."""


def check(stop: Stop | None) -> None:
    """Raises BrokenOff where this process was asked to stop."""
    if stop is not None and stop.asked:
        raise BrokenOff


class Watched:
    """What `stream` calls after each step of the sampler.

    Args:
        images: of this process.
        steps: of the sampler, for each batch.
        stop: asked after each step.
        tell: called after each step with the number of images that the work so far would have made.
    """

    def __init__(
        self, *, images: int, batch_size: int, steps: int, stop: Stop | None, tell: Callable[[int], None]
    ) -> None:
        self.images, self.batch_size, self.steps = images, batch_size, steps
        self.stop, self.tell = stop, tell
        self._taken = 0  # steps, of all batches

    def __call__(self, step: int) -> None:
        self._taken += 1
        batch, within = divmod(self._taken, self.steps)
        before = min(batch * self.batch_size, self.images)
        self.tell(before + min(self.batch_size, self.images - before) * within // self.steps)
        if within:  # after its last step a batch is as good as made
            check(self.stop)
