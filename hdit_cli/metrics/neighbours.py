"""Nearest neighbours of feature rows, in blocks: memory does not grow with the number of pairs."""

from collections.abc import Iterator

import numpy as np

_BLOCK = 2048  # rows of each side at a time: 33 MB of distances, 67 MB of rows of 2,048 numbers


def distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Euclidean distances of all pairs, block by block: (rows of x, rows of y, float64 (n, m)).

    Args:
        x, y: float (N, D) and (M, D). Computed in float64, so that two equal rows are at about 1e-7 of their norm.
    """
    norms = np.einsum("nd,nd->n", y, y, dtype=np.float64)
    for top in range(0, len(x), _BLOCK):
        ours = x[top : top + _BLOCK].astype(np.float64)
        own = np.einsum("nd,nd->n", ours, ours)
        for left in range(0, len(y), _BLOCK):
            right = slice(left, min(left + _BLOCK, len(y)))
            squared = ours @ y[right].astype(np.float64).T
            squared *= -2
            squared += own[:, None]
            squared += norms[right]
            yield slice(top, top + len(ours)), right, np.sqrt(squared.clip(min=0))


def nearest(x: np.ndarray, y: np.ndarray, *, k: int = 1, itself: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of y for every row of x, nearest first.

    Args:
        x, y: float (N, D) and (M, D), M >= k.
        itself: x and y are one set, and no row is its own neighbour; then M > k.

    Returns:
        distances float64 (N, k), and positions in y int64 (N, k).
    """
    best = np.full((len(x), k), np.inf)
    where = np.full((len(x), k), -1, dtype=np.int64)
    for rows, columns, block in distances(x, y):
        if itself:
            own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
            block[own - rows.start, own - columns.start] = np.inf
        together = np.concatenate([best[rows], block], axis=1)
        numbers = np.concatenate([where[rows], np.broadcast_to(np.arange(columns.start, columns.stop), block.shape)], 1)
        kept = np.argpartition(together, k - 1, axis=1)[:, :k] if together.shape[1] > k else np.arange(k)[None]
        kept = np.broadcast_to(kept, (len(together), k))
        best[rows], where[rows] = np.take_along_axis(together, kept, 1), np.take_along_axis(numbers, kept, 1)
    order = np.lexsort((where, best), axis=1)
    return np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)
