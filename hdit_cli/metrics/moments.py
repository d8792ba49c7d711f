"""Mean and covariance in one pass, float64, mergeable (Chan, Golub & LeVeque 1979, eq. 2.1)."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hdit_cli.errors import NonFiniteError


class Normal(Protocol):
    """What the Fréchet distance must know of a set: its first two moments."""

    @property
    def count(self) -> int | None:
        """Rows behind the moments; None: unknown."""
        ...

    @property
    def mean(self) -> np.ndarray:
        """float64 (D,)."""
        ...

    @property
    def covariance(self) -> np.ndarray:
        """float64 (D, D)."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Moments that somebody else computed, from a number of rows that nobody wrote down."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


@dataclass
class Moments:
    """Moments of the rows seen so far.

    Attributes:
        count: number of rows.
        mean: float64 (D,).
        scatter: float64 (D, D), the sum of outer products of centred rows.
    """

    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def update(self, x: np.ndarray) -> None:
        """Takes in float (N, D) rows, N >= 0.

        Raises:
            NonFiniteError: a row holds NaN or infinity.
        """
        if len(x) == 0:
            return
        x = x.astype(np.float64)
        if not np.isfinite(x).all():
            raise NonFiniteError("the features of a picture are not finite", hint="check the feature net's weights")
        mean = x.mean(0)
        centred = x - mean
        self.merge(Moments(len(x), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> None:
        """Takes in the rows that `other` has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self.scatter = other.count, other.mean.copy(), other.scatter.copy()
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(delta, delta * (self.count * other.count / total))
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """float64 (D, D), unbiased (divided by count - 1); needs two rows."""
        assert self.count >= 2, "a covariance needs two rows"
        return self.scatter / (self.count - 1)
