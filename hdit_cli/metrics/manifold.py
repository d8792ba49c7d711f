"""Precision, recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density, coverage (Naeem et al. 2020, arXiv 2002.09797).

The manifold of a set is the union of balls around its pictures, each as wide as the distance to its k-th neighbour.
"""

from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli.metrics.metric import Better
from hdit_cli.metrics.neighbours import distances, nearest
from hdit_cli.metrics.rows import Rows

NEIGHBOURS = 3  # of precision and recall; the published choice
NEIGHBOURS_WIDE = 5  # of density and coverage; the published choice


def manifold_scores(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage of x against y, memory independent of the number of pairs.

    Args:
        x, y: generated and real features, float (N, D) and (M, D); N, M > 5.
    """
    theirs = nearest(y, y, k=NEIGHBOURS_WIDE, itself=True)[0]  # float64 (M, 5)
    near, wide = theirs[:, NEIGHBOURS - 1], theirs[:, -1]  # radii
    ours = nearest(x, x, k=NEIGHBOURS, itself=True)[0][:, -1]  # float64 (N,)
    precise, recalled = np.zeros(len(x), dtype=bool), np.zeros(len(y), dtype=bool)
    inside, covered = 0, np.zeros(len(y), dtype=bool)
    for rows, columns, block in distances(x, y):
        precise[rows] |= (block <= near[columns]).any(1)
        recalled[columns] |= (block <= ours[rows, None]).any(0)
        hits = block < wide[columns]
        inside += int(hits.sum())
        covered[columns] |= hits.any(0)
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": inside / (NEIGHBOURS_WIDE * len(x)),
        "coverage": float(covered.mean()),
    }


class PrecisionRecall(Rows):
    """How much of what is made is real, and how much of what is real is made."""

    name: ClassVar[str] = "precision-recall"
    fewest: ClassVar[int] = NEIGHBOURS_WIDE + 1
    better: ClassVar[Better] = "higher"

    def score(self, reference: Self) -> dict[str, Any]:
        """Raises:
        DataError: features of different nets.
        """
        return {"values": manifold_scores(*self.both(reference)), "neighbours": NEIGHBOURS}
