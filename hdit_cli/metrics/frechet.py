"""Fréchet distance between two Gaussians, and FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli.metrics.metric import Arrays
from hdit_cli.metrics.moments import Moments


def root(covariance: np.ndarray) -> np.ndarray:
    """R with R Rᵀ = covariance, from its eigenvalues; directions without variance are left out.

    Args:
        covariance: float64 (D, D), symmetric, positive semi-definite up to rounding.

    Returns:
        float64 (D, K), K its numerical rank.
    """
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    kept = values > floor  # what is below is rounding; its root would not be small
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), never negative.

    The eigenvalues of Σa Σb are the squared singular values of RaᵀRb with Σ = R Rᵀ. So the trace of the root is a sum
    of singular values: real whatever the rank, and symmetric in a and b.

    Args:
        a, b: moments of at least two rows each, of one dimension D.
    """
    sigma_a, sigma_b = a.covariance, b.covariance
    between = root(sigma_a).T @ root(sigma_b)  # (Ka, Kb)
    cross = float(np.linalg.svd(between, compute_uv=False).sum()) if between.size else 0.0
    means = float(((a.mean - b.mean) ** 2).sum())
    return max(means + float(np.trace(sigma_a)) + float(np.trace(sigma_b)) - 2.0 * cross, 0.0)


class FID:
    """Fréchet distance of Inception features."""

    name: ClassVar[str] = "fid"
    needs: ClassVar[str | None] = "inception"
    limit: ClassVar[int | None] = None
    fewest: ClassVar[int] = 2
    trusted: ClassVar[int] = 2048  # the dimension of the features: with fewer, the covariance is singular

    def __init__(self) -> None:
        self.moments = Moments()

    @property
    def count(self) -> int:
        return self.moments.count

    def update(self, index: Sequence[int], x: np.ndarray) -> None:
        """float (N, D) features; moments have no use for the numbers `index` of the pictures."""
        assert len(index) == len(x)
        self.moments.update(x)

    def arrays(self) -> Arrays:
        count = np.array([self.moments.count], dtype=np.int64)
        return {"count": count, "mean": self.moments.mean, "scatter": self.moments.scatter}

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        whole = cls()
        for part in parts:
            whole.moments.merge(Moments(int(part["count"][0]), part["mean"], part["scatter"]))
        return whole

    def score(self, reference: Self) -> dict[str, Any]:
        return {"value": frechet_distance(self.moments, reference.moments)}
