"""Are samples copies? Their distances to the nearest training pictures, beside those of pictures that were held out.

A held-out picture is as new as a picture can be. Where samples lie closer to the training set than held-out pictures do,
the model repeats what it has seen (Meehan et al. 2020, arXiv 2004.05675, compare the two with the same rank statistic).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli.metrics.metric import Better
from hdit_cli.metrics.neighbours import nearest
from hdit_cli.metrics.rows import Rows

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
SHOWN = 32  # pairs told, the closest first


def share_closer(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that a value of a is smaller than one of b, ties counting half: the Mann-Whitney U over all pairs."""
    ascending = np.sort(b)
    larger = len(b) - np.searchsorted(ascending, a, side="right")
    equal = np.searchsorted(ascending, a, side="right") - np.searchsorted(ascending, a, side="left")
    return float((larger + equal / 2).mean() / len(b))


@dataclass(frozen=True)
class Pairs:
    """Pictures with the nearest one of the reference, by picture number, and how far it is: arrays of (N,)."""

    picture: np.ndarray
    reference: np.ndarray
    distance: np.ndarray

    def quantiles(self) -> dict[str, float]:
        return {
            f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(self.distance, QUANTILES), strict=True)
        }

    def closest(self) -> list[dict[str, Any]]:
        order = np.argsort(self.distance, kind="stable")[:SHOWN]
        columns = (self.picture[order].tolist(), self.reference[order].tolist(), self.distance[order].tolist())
        return [{"picture": i, "reference": j, "distance": d} for i, j, d in zip(*columns, strict=True)]


class Memorisation(Rows):
    """Against the training pictures as reference; beside them the held-out ones, where there are any."""

    name: ClassVar[str] = "memorisation"
    fewest: ClassVar[int] = 1
    better: ClassVar[Better] = None

    def pairs(self, reference: Self) -> Pairs:
        """Each picture with the nearest one of the reference.

        Raises:
            DataError: features of different nets.
        """
        distance, position = nearest(*self.both(reference))
        return Pairs(self.ordered()[0], reference.ordered()[0][position[:, 0]], distance[:, 0])

    def score(self, reference: Self, *, held_out: Self | None = None) -> dict[str, Any]:
        """The median distance, quantiles, and the closest pairs.

        With held-out pictures, theirs too, and `share_closer`: how often a sample is closer to the reference than a
        held-out picture is. It is 0.5 where samples are as new as those, 1 where all are closer.
        """
        ours = self.pairs(reference)
        told: dict[str, Any] = {
            "value": float(np.median(ours.distance)),
            "quantiles": ours.quantiles(),
            "closest": ours.closest(),
        }
        if held_out is None:
            return told
        theirs = held_out.pairs(reference)
        told["held_out"] = {"n": held_out.count, "quantiles": theirs.quantiles()}
        return {**told, "share_closer": share_closer(ours.distance, theirs.distance)}
