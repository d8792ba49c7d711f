"""Fréchet distance between two Gaussians, and FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from hdit_cli import runtime
from hdit_cli.errors import DataError
from hdit_cli.metrics.metric import Arrays, Better, Bias, Needs
from hdit_cli.metrics.moments import Gaussian, Moments, Normal

_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 1e-8  # largest bound on the rounding error, relative to the distance, at which the fast way is taken


def root(covariance: np.ndarray) -> np.ndarray:
    """R with R Rᵀ = covariance, from its eigenvalues; directions without variance are left out.

    Args:
        covariance: float64 (D, D), symmetric, positive semi-definite up to rounding.

    Returns:
        float64 (D, K), K its numerical rank.
    """
    values, vectors = torch.linalg.eigh(torch.from_numpy((covariance + covariance.T) / 2))
    floor = len(values) * _EPS * max(float(values[-1]), 0.0)
    kept = values > floor  # what is below is rounding; its root would not be small
    return (vectors[:, kept] * values[kept].sqrt()).numpy()


def _factor(a: Normal, b: Normal) -> tuple[np.ndarray, np.ndarray]:
    """R with R Rᵀ one of the two covariances, as slim as can be had cheaply, and the other covariance."""
    sigma_a, sigma_b = a.covariance, b.covariance
    rank_a, rank_b = (len(x.mean) if x.count is None else x.count - 1 for x in (a, b))
    if min(rank_a, rank_b) >= len(sigma_a):
        lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(sigma_a))
        if not failed and not torch.linalg.cholesky_ex(torch.from_numpy(sigma_b))[1]:
            return lower.numpy(), sigma_b
    return (root(sigma_a), sigma_b) if rank_a <= rank_b else (root(sigma_b), sigma_a)


def _sum_of_roots(values: Tensor) -> tuple[float, float]:
    """Σ √λ of ascending eigenvalues with rounding of eps λmax each, and a bound on the rounding of the sum."""
    if not len(values) or float(values[-1]) <= 0:
        return 0.0, 0.0
    noise = _EPS * float(values[-1])
    return float(values.clamp(min=0).sqrt().sum()), noise * float(values.clamp(min=noise).rsqrt().sum())


def frechet_distance(a: Normal, b: Normal) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), never negative.

    With Σa = R Rᵀ, Σa Σb and the symmetric Rᵀ Σb R have the same eigenvalues, apart from zeros; so the trace of the root
    is a sum of roots of eigenvalues, real whatever the rank. R is the Cholesky factor where both covariances have one,
    else the root of the one of lower rank. Where eigenvalues next to rounding would spoil the sum (two sets almost
    alike, or directions almost without variance), the trace is the sum of the singular values of RaᵀRb, which are
    the roots themselves and need none.

    Args:
        a, b: moments of at least two rows each, of one dimension D.
    """
    factor, other = _factor(a, b)
    fixed = float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance))
    inner = factor.T @ other @ factor
    cross, rounding = _sum_of_roots(torch.linalg.eigvalsh(torch.from_numpy((inner + inner.T) / 2)))
    if 2 * rounding > _ROUNDING * (fixed - 2 * cross):
        between = torch.from_numpy(root(a.covariance).T @ root(b.covariance))  # (Ka, Kb)
        cross = float(torch.linalg.svdvals(between).sum()) if between.numel() else 0.0
    return max(fixed - 2 * cross, 0.0)


def expected_at(n: int, reference: Normal, *, seed: int = 0) -> float:
    """The Fréchet distance that n draws from the reference's own Gaussian would get: the score of a perfect model.

    One draw of their covariance (Bartlett's decomposition of a Wishart matrix) stands for all: its trace hardly varies
    at the dimensions of feature nets. The mean adds tr Σ / n.

    Args:
        n: number of draws, at least two.
        reference: of dimension D.
    """
    sigma = reference.covariance
    spectrum = torch.linalg.eigvalsh(torch.from_numpy((sigma + sigma.T) / 2)).clamp(min=0).flip(0)  # (D,) descending
    spectrum = spectrum[spectrum > len(spectrum) * _EPS * spectrum[0]]
    freedom, d = n - 1, len(spectrum)
    if not d:
        return 0.0
    columns = min(freedom, d)
    drawn = runtime.normal(seed, "frechet-bias", np.arange(d), (columns,), like=torch.empty(0)).double()
    lower = drawn.tril(-1)
    degrees = freedom - torch.arange(columns, dtype=torch.float64)
    # the root of a chi-squared number is nearly normal (Fisher): mean √(k - ½), variance ½
    lower.diagonal().copy_(((degrees - 0.5).sqrt() + drawn.diagonal() * 0.5**0.5).clamp(min=0))
    scaled = lower * spectrum[:, None] / freedom**0.5  # singular values: those of Σ^½ S^½, S the drawn covariance
    cross, _ = _sum_of_roots(torch.linalg.eigvalsh(scaled.T @ scaled))
    trace = float((lower.square().sum(1) * spectrum).sum()) / freedom
    total = float(spectrum.sum())
    return max(total / n + total + trace - 2 * cross, 0.0)


class FID:
    """Fréchet distance of Inception features."""

    name: ClassVar[str] = "fid"
    state: ClassVar[str] = "moments"
    needs: ClassVar[Needs] = "inception"
    limit: ClassVar[int | None] = None
    fewest: ClassVar[int] = 2
    trusted: ClassVar[int] = 2048  # the dimension of the features: with fewer, the covariance is singular
    bias: ClassVar[Bias] = "upwards"
    better: ClassVar[Better] = "lower"
    alone: ClassVar[bool] = False

    def __init__(self) -> None:
        self.moments = Moments()
        self.given: Gaussian | None = None

    @classmethod
    def of(cls, gaussian: Gaussian) -> Self:
        """A set of which only the moments are known."""
        whole = cls()
        whole.given = gaussian
        return whole

    @property
    def count(self) -> int:
        return self.moments.count

    @property
    def normal(self) -> Normal:
        return self.given or self.moments

    def update(self, index: Sequence[int], x: np.ndarray, *, label: np.ndarray | None = None) -> None:
        """float (N, D) features; moments have no use for the numbers `index` of the pictures, nor for classes."""
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
        """`of_a_perfect_model`: what Gaussian features with the reference's moments would score at this n.

        Raises:
            DataError: features of different nets.
        """
        ours, theirs = self.normal, reference.normal
        if len(ours.mean) != len(theirs.mean):
            raise DataError(
                f"the features have {len(ours.mean):,} numbers, those of the reference {len(theirs.mean):,}",
                hint="compare features of one net: --features",
            )
        expected = expected_at(self.count, theirs)
        return {"value": frechet_distance(ours, theirs), "of_a_perfect_model": expected}


class SFID(FID):
    """Fréchet distance of Inception's features on a 17 x 17 map: of where things are (Nash et al. 2021, arXiv 2103.03841)."""

    name: ClassVar[str] = "sfid"
    state: ClassVar[str] = "spatial-moments"
    needs: ClassVar[Needs] = "spatial"
    trusted: ClassVar[int] = 2023  # the dimension of the features


class FD(FID):
    """Fréchet distance of the features of any net (Stein et al. 2023, arXiv 2306.04675: of DINOv2)."""

    name: ClassVar[str] = "fd"
    needs: ClassVar[Needs] = "features"
