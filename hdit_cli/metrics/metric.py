"""What every metric offers, so that one pass over the pictures feeds them all.

A metric object holds what it must remember of one set of pictures. Its state is a dictionary of arrays: states of
several processes are merged, and stored, without knowing the metric. The result depends on which pictures went in, by
number; not on their order, their batches, or the number of processes. Metrics with the same `state` share one: it is
collected, and kept on the disk, once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np

Arrays = dict[str, np.ndarray]
Needs = Literal["inception", "features", "logits", "spatial"] | None
Bias = Literal["upwards", "downwards"] | None
Better = Literal["lower", "higher"] | None


class Metric(Protocol):
    """One set of pictures as one metric sees it."""

    name: ClassVar[str]
    state: ClassVar[str]  # the kind of state; equal kinds have equal arrays, `needs` up to the net, and limits
    needs: ClassVar[
        Needs
    ]  # what `update` takes: features of an Inception net, of any net, logits, spatial ones; None: pictures
    limit: ClassVar[int | None]  # most pictures it can hold; of more, that many are chosen at random
    fewest: ClassVar[int]  # fewest pictures the definition allows
    trusted: ClassVar[int]  # fewest pictures for a score that can be compared with others
    bias: ClassVar[Bias]  # which way a score of few pictures errs
    better: ClassVar[Better]  # None: neither is, by itself
    alone: ClassVar[bool]  # the score needs no reference

    @property
    def count(self) -> int:
        """Number of pictures that went in."""
        ...

    def update(self, index: Sequence[int], x: np.ndarray, *, label: np.ndarray | None = None) -> None:
        """Takes in pictures number `index`.

        Args:
            x: float (N, D) features or (N, K) logits, or uint8 (N, H, W, 3) where `needs` is None.
            label: int64 (N,) classes, -1 for none; None where the set has none.
        """
        ...

    def arrays(self) -> Arrays:
        """The whole state."""
        ...

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        """The metric of the union of disjoint sets, from the `arrays` of each."""
        ...

    def score(self, reference: Self) -> dict[str, Any]:
        """`value`, or `values` by name where there are several, and what belongs beside it.

        A metric that is `alone` does not look at the reference.
        """
        ...
