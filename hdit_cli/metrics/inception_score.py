"""Inception Score (Salimans et al. 2016, arXiv 1606.03498, section 4): exp E KL(p(y|x) || p(y)), mean over ten parts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli import runtime
from hdit_cli.errors import NonFiniteError
from hdit_cli.metrics.metric import Arrays, Better, Bias, Needs

PARTS = 10  # the published protocol


def part_of(index: np.ndarray) -> np.ndarray:
    """Which part each picture falls into: int64 (N,) in 0 ... 9, a function of its number alone.

    Of ten pictures in a row, each falls into another part, which one at random: equal parts whatever the number of
    pictures, and each part a mixture also where classes come in turn.
    """
    block, place = np.divmod(np.asarray(index, dtype=np.int64), PARTS)
    words = runtime.bits(0, "inception-score-part", block, PARTS)  # (N, 10)
    return np.argsort(np.argsort(words, axis=1, kind="stable"), axis=1)[np.arange(len(place)), place]


class InceptionScore:
    """Sums over each part: memory does not grow with the number of pictures."""

    name: ClassVar[str] = "is"
    state: ClassVar[str] = "predictions"
    needs: ClassVar[Needs] = "logits"
    limit: ClassVar[int | None] = None
    fewest: ClassVar[int] = PARTS
    trusted: ClassVar[int] = PARTS
    bias: ClassVar[Bias] = "downwards"  # the mean prediction of few pictures is too peaked
    better: ClassVar[Better] = "higher"
    alone: ClassVar[bool] = True

    def __init__(self) -> None:
        self._counts = np.zeros(PARTS, dtype=np.int64)
        self._entropies = np.zeros(PARTS)  # Σ over pictures of Σ p log p
        self._predictions: np.ndarray | None = None  # float64 (10, K), Σ over pictures of p

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def update(self, index: Sequence[int], x: np.ndarray, *, label: np.ndarray | None = None) -> None:
        """float (N, K) logits of the pictures number `index`.

        Raises:
            NonFiniteError: a logit is NaN or infinite.
        """
        if not np.isfinite(x).all():
            raise NonFiniteError("the logits of a picture are not finite", hint="check the feature net's weights")
        shifted = x.astype(np.float64) - x.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        p = np.exp(log_p)
        parts = part_of(np.asarray(index))
        if self._predictions is None:
            self._predictions = np.zeros((PARTS, x.shape[1]))
        np.add.at(self._counts, parts, 1)
        np.add.at(self._entropies, parts, (p * log_p).sum(1))
        np.add.at(self._predictions, parts, p)

    def arrays(self) -> Arrays:
        predictions = np.zeros((PARTS, 0)) if self._predictions is None else self._predictions
        return {"count": self._counts, "entropy": self._entropies, "prediction": predictions}

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        whole = cls()
        for part in parts:
            if part["count"].sum():
                whole._counts = whole._counts + part["count"]
                whole._entropies = whole._entropies + part["entropy"]
                whole._predictions = (0 if whole._predictions is None else whole._predictions) + part["prediction"]
        return whole

    def score(self, reference: Self) -> dict[str, Any]:
        assert self._predictions is not None
        scores = []
        for n, entropy, prediction in zip(self._counts, self._entropies, self._predictions, strict=True):
            if n:
                mean = prediction / n
                scores.append(np.exp(entropy / n - (mean * np.log(np.where(mean > 0, mean, 1))).sum()))
        return {"value": float(np.mean(scores)), "standard_deviation": float(np.std(scores)), "parts": len(scores)}
