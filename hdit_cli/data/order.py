"""Which image comes when: a global permutation that is a function of (seed, epoch), and its split over processes.

The position of a run is one integer, the number of images seen. No shuffle buffer and no random state exist: any
process can tell the image at any position by itself, so the order is the same for any number of workers and processes.
"""

from functools import lru_cache

import numpy as np

from hdit_cli import runtime
from hdit_cli.errors import UsageError


@lru_cache(maxsize=2)  # a batch meets at most two epochs, unless the data set is smaller than the batch
def permutation(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: `count` image numbers, each once.

    Returns:
        int64 (count,), read-only.
    """
    words = runtime.bits(seed, f"order/{epoch}", np.arange(count))[:, 0]
    order = _ranked(words)
    order.setflags(write=False)
    return order


def _ranked(words: np.ndarray) -> np.ndarray:
    """A stable argsort. Where no two words are equal, which they hardly ever are, a faster sort comes to the same."""
    order = np.argsort(words)
    ranked = words[order]
    return order if (ranked[1:] > ranked[:-1]).all() else np.argsort(words, kind="stable")


def sample_at(position: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """The image at each position of an endless walk through permuted epochs.

    Args:
        position: int64 (N,), images seen before; epoch = position // count.
        count: number of images of the data set, at least 1.
        seed: the user's seed.

    Returns:
        int64 (N,), image numbers in [0, count).
    """
    position = np.asarray(position, dtype=np.int64)
    epochs, slots = np.divmod(position, count)
    index = np.empty_like(position)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = permutation(count, seed=seed, epoch=int(epoch))[slots[here]]
    return index


def split(batch_size: int, *, world: int, rank: int, accumulate: int) -> list[np.ndarray]:
    """The slots of a global batch that one process holds, micro-batch by micro-batch.

    Slot (k * accumulate + m) * world + rank is the k-th of micro-batch m: fully interleaved, so that numbers stratified
    over the global batch (noise levels) are stratified over every micro-batch and process too.

    Args:
        batch_size: images of one optimizer step, over all processes and micro-batches.

    Returns:
        `accumulate` arrays, int64 (batch_size / (world * accumulate),), ascending slots in [0, batch_size).

    Raises:
        UsageError: the batch cannot be shared out evenly.
    """
    shares = world * accumulate
    if batch_size < 1 or batch_size % shares:
        nearest = max(1, round(batch_size / shares)) * shares
        raise UsageError(
            f"a global batch of {batch_size} cannot be shared by {world} process(es) x {accumulate} micro-batch(es)",
            hint=f"the nearest that can is train.batch_size = {nearest}",
        )
    k = np.arange(batch_size // shares, dtype=np.int64)
    return [(k * accumulate + m) * world + rank for m in range(accumulate)]
