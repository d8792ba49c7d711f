"""KID: squared maximum mean discrepancy of Inception features (Binkowski et al. 2018, arXiv 1801.01401, section 4)."""

from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli import runtime
from hdit_cli.metrics.metric import Needs
from hdit_cli.metrics.rows import Rows

SUBSETS = 100  # number and size: the published protocol, and clean-fid's
SUBSET_SIZE = 1000


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (xᵀy / D + 1)³ of all pairs: (N, D), (M, D) => (N, M)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared MMD under the polynomial kernel; can be slightly negative.

    Args:
        x, y: float64 (N, D) and (M, D); N, M >= 2.
    """
    within_x, within_y = polynomial_kernel(x, x), polynomial_kernel(y, y)
    n, m = len(x), len(y)
    mean_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    mean_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(mean_x + mean_y - 2.0 * polynomial_kernel(x, y).mean())


def subset(side: str, number: int, *, size: int, total: int) -> np.ndarray:
    """Positions of one random subset, without repeats: int64 (size,), ascending, a function of the arguments alone."""
    words = runtime.bits(number, f"kid-subset-{side}", np.arange(total))[:, 0]
    return np.sort(np.argsort(words, kind="stable")[:size])


class KID(Rows):
    """Mean squared MMD over random subsets, of Inception features. Unbiased at any number; the spread is told."""

    name: ClassVar[str] = "kid"
    needs: ClassVar[Needs] = "inception"

    def score(self, reference: Self) -> dict[str, Any]:
        x, y = (side.astype(np.float64) for side in self.both(reference))
        size = min(len(x), len(y), SUBSET_SIZE)
        count = 1 if size == len(x) == len(y) else SUBSETS  # every subset is the whole: one says it all
        values = np.array(
            [
                squared_mmd(
                    x[subset("generated", number, size=size, total=len(x))],
                    y[subset("reference", number, size=size, total=len(y))],
                )
                for number in range(count)
            ]
        )
        return {
            "value": float(values.mean()),
            "standard_deviation": float(values.std()),
            "subsets": count,
            "subset_size": size,
        }


class KD(KID):
    """The same of the features of any net."""

    name: ClassVar[str] = "kd"
    needs: ClassVar[Needs] = "features"
