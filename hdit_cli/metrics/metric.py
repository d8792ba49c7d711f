"""What every metric offers, so that one pass over the pictures feeds them all.

A metric object holds what it must remember of one set of pictures. Its state is a dictionary of arrays: states of
several processes are merged, and stored, without knowing the metric. The result depends on which pictures went in, by
number; not on their order, their batches, or the number of processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np

Arrays = dict[str, np.ndarray]


class Metric(Protocol):
    """One set of pictures as one metric sees it."""

    name: ClassVar[str]
    needs: ClassVar[str | None]  # the feature net whose output `update` takes; None: the pictures themselves
    limit: ClassVar[int | None]  # most pictures it can hold; of more, that many are chosen at random
    fewest: ClassVar[int]  # fewest pictures the definition allows
    trusted: ClassVar[int]  # fewest pictures for a score that can be compared with others

    @property
    def count(self) -> int:
        """Number of pictures that went in."""
        ...

    def update(self, index: Sequence[int], x: np.ndarray) -> None:
        """Takes in pictures number `index`: float (N, D) features, or uint8 (N, H, W, 3) where `needs` is None."""
        ...

    def arrays(self) -> Arrays:
        """The whole state."""
        ...

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        """The metric of the union of disjoint sets, from the `arrays` of each."""
        ...

    def score(self, reference: Self) -> dict[str, Any]:
        """`value` (smaller is better) and what belongs beside it."""
        ...
