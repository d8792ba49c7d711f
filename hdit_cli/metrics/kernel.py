"""KID: squared maximum mean discrepancy of Inception features (Binkowski et al. 2018, arXiv 1801.01401, section 4)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli import runtime
from hdit_cli.errors import NonFiniteError
from hdit_cli.metrics.metric import Arrays

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


class KID:
    """Mean squared MMD over random subsets."""

    name: ClassVar[str] = "kid"
    needs: ClassVar[str | None] = "inception"
    limit: ClassVar[int | None] = None
    fewest: ClassVar[int] = 2
    trusted: ClassVar[int] = 2  # unbiased at any number; the spread over subsets is told

    def __init__(self) -> None:
        self._index: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    @property
    def count(self) -> int:
        return sum(len(index) for index in self._index)

    def update(self, index: Sequence[int], x: np.ndarray) -> None:
        """float (N, D) features of the pictures number `index`.

        Raises:
            NonFiniteError: a feature is NaN or infinite.
        """
        assert len(index) == len(x)
        if not np.isfinite(x).all():
            raise NonFiniteError("the features of a picture are not finite", hint="check the feature net's weights")
        self._index.append(np.asarray(index, dtype=np.int64))
        self._rows.append(np.asarray(x, dtype=np.float32))

    def arrays(self) -> Arrays:
        if not self._index:
            return {"index": np.zeros(0, dtype=np.int64), "features": np.zeros((0, 0), dtype=np.float32)}
        return {"index": np.concatenate(self._index), "features": np.concatenate(self._rows)}

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        whole = cls()
        for part in parts:
            if len(part["index"]):
                whole.update(part["index"].tolist(), part["features"])
        return whole

    def _sorted(self) -> np.ndarray:  # float64 (N, D), by picture number: the subsets must not depend on the order
        state = self.arrays()
        return state["features"][np.argsort(state["index"], kind="stable")].astype(np.float64)

    def score(self, reference: Self) -> dict[str, Any]:
        x, y = self._sorted(), reference._sorted()
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
