"""The features themselves, for metrics that moments are not enough for."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from hdit_cli.errors import DataError, NonFiniteError
from hdit_cli.metrics.metric import Arrays, Better, Bias, Needs

LIMIT = 50_000  # of 2,048 numbers each: 410 MB; the published protocols use at most as many


class Rows:
    """State of a metric that keeps every picture's features, float32, up to `LIMIT` pictures."""

    state: ClassVar[str] = "rows"
    needs: ClassVar[Needs] = "features"
    limit: ClassVar[int | None] = LIMIT
    fewest: ClassVar[int] = 2
    trusted: ClassVar[int] = 2
    bias: ClassVar[Bias] = None
    better: ClassVar[Better] = "lower"
    alone: ClassVar[bool] = False

    def __init__(self) -> None:
        self._index: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._label: list[np.ndarray] = []

    @property
    def count(self) -> int:
        return sum(len(index) for index in self._index)

    def update(self, index: Sequence[int], x: np.ndarray, *, label: np.ndarray | None = None) -> None:
        """float (N, D) features of the pictures number `index`.

        Raises:
            NonFiniteError: a feature is NaN or infinite.
        """
        assert len(index) == len(x)
        if not np.isfinite(x).all():
            raise NonFiniteError("the features of a picture are not finite", hint="check the feature net's weights")
        self._index.append(np.asarray(index, dtype=np.int64))
        self._rows.append(np.asarray(x, dtype=np.float32))
        self._label.append(np.full(len(x), -1) if label is None else np.asarray(label, dtype=np.int64))

    def arrays(self) -> Arrays:
        if not self._index:
            numbers = np.zeros(0, dtype=np.int64)
            return {"index": numbers, "label": numbers, "features": np.zeros((0, 0), dtype=np.float32)}
        parts = (self._index, self._label, self._rows)
        for kept in parts:  # one array of each, here too: not twice the memory
            kept[:] = kept if len(kept) == 1 else [np.concatenate(kept)]
        return {name: kept[0] for name, kept in zip(("index", "label", "features"), parts, strict=True)}

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        whole = cls()
        for part in parts:
            if len(part["index"]):
                whole._index.append(part["index"])
                whole._label.append(part["label"])
                whole._rows.append(part["features"])
        return whole

    def ordered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers int64 (N,), classes int64 (N,) and features float32 (N, D), by picture number.

        What is computed from them does not depend on the order in which the pictures came.
        """
        state = self.arrays()
        order = np.argsort(state["index"], kind="stable")
        if (order == np.arange(len(order))).all():
            return state["index"], state["label"], state["features"]
        return state["index"][order], state["label"][order], state["features"][order]

    def both(self, reference: Self) -> tuple[np.ndarray, np.ndarray]:
        """Features of this set and of the reference, float32 (N, D) and (M, D), by picture number.

        Raises:
            DataError: features of different nets.
        """
        x, y = self.ordered()[2], reference.ordered()[2]
        if x.shape[1] != y.shape[1]:
            raise DataError("the two sets have features of different nets", hint="use one net for both: --features")
        return x, y
