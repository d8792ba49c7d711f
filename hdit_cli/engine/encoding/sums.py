"""Statistics of latents over a whole set, from sums over its shards: the same for any number of processes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Sums:
    """What a shard adds to the statistics of each channel, in float64.

    Attributes:
        count: values of a channel: places, over all pictures and views.
        first, second: sums of the means, and of their squares.
        variance: sum of the variances, with which latents are drawn.
    """

    count: int = 0
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)

    def add(self, stored: np.ndarray) -> None:
        """Adds one view of one picture as it is stored: mean and standard deviation, (2 C, h, w)."""
        mean, std = np.split(stored.astype(np.float64), 2)
        self.count += mean[0].size
        for name, values in (("first", mean), ("second", mean**2), ("variance", std**2)):
            here = values.sum(axis=(1, 2)).tolist()
            before = getattr(self, name) or [0.0] * len(here)
            setattr(self, name, [a + b for a, b in zip(before, here, strict=True)])


def statistics(parts: Iterable[Sums], *, pictures: int) -> dict[str, Any]:
    """Mean and standard deviation of the latents of each channel as they are drawn: std^2 = Var(mean) + E[std^2].

    Args:
        parts: of all shards, in order.
        pictures: how many they are of.
    """
    held = list(parts)
    count = sum(part.count for part in held)
    first, second, variance = (
        np.sum([getattr(part, name) for part in held], axis=0) / count for name in ("first", "second", "variance")
    )
    spread = np.maximum(second - first**2, 0.0) + variance
    return {"mean": first.tolist(), "std": np.sqrt(spread).tolist(), "pictures": pictures}
