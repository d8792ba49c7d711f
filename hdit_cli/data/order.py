"""Which image comes when: a global permutation that is a function of (seed, epoch), and its split over processes.

The position of a run is one integer, the number of images seen. No shuffle buffer and no random state exist: any
process can tell the image at any position by itself, so the order is the same for any number of workers and processes.

Pictures of several sizes (buckets) come in batches of one size. Each bucket is an endless walk of its own, and which bucket
batch k takes is told by the Kronecker sequence u + k / phi modulo 1 of the golden ratio phi, whose discrepancy is as low as
that of any such sequence (Kuipers and Niederreiter 1974, chapter 2.3): it falls into the share of [0, 1) that is the
bucket's share of the pictures. How often that was so before batch k is a sum of floors, exact in a few dozen steps.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from hdit_cli import runtime
from hdit_cli.errors import UsageError


@lru_cache(maxsize=2)  # a batch meets at most two epochs, unless the data set is smaller than the batch
def permutation(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: `count` image numbers, each once.

    Returns:
        int64 (count,), read-only.
    """
    return _permuted(count, seed=seed, stream="order", epoch=epoch)


def _permuted(count: int, *, seed: int, stream: str, epoch: int) -> np.ndarray:
    words = runtime.bits(seed, f"{stream}/{epoch}", np.arange(count))[:, 0]
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
    return _walk(position, count=count, order=lambda epoch: permutation(count, seed=seed, epoch=epoch))


def _walk(position: np.ndarray, *, count: int, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """`sample_at`, where `order` gives the permutation of an epoch."""
    position = np.asarray(position, dtype=np.int64)
    epochs, slots = np.divmod(position, count)
    index = np.empty_like(position)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = order(int(epoch))[slots[here]]
    return index


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / phi, odd
_TURN = 1 << 64


class BucketOrder:
    """Which picture comes at each position, where every batch is of one bucket.

    Each bucket takes its share of the batches, and each of its pictures comes equally often in it.

    Args:
        bucket_numbers: int (N,), the bucket of each picture, 0 to the last, none of them empty.
        batch_size: images of one step, over all processes and micro-batches.
        seed: the user's seed.
    """

    def __init__(self, bucket_numbers: np.ndarray, *, batch_size: int, seed: int) -> None:
        counts = np.bincount(bucket_numbers)
        by_bucket = np.argsort(bucket_numbers, kind="stable").astype(np.int32)
        ends = np.cumsum(counts)
        self._members = np.split(by_bucket, ends[:-1])
        self._edges = [0, *(_TURN * int(end) // int(ends[-1]) for end in ends)]  # the buckets' shares of [0, 2^64)
        self._start = runtime.key(seed, "order/buckets")
        self._batch_size = batch_size
        # a batch meets two epochs of its bucket, as in `permutation`; each bucket keeps its own
        self._orders = [
            lru_cache(maxsize=2)(partial(_bucket_epoch, int(count), seed, number))
            for number, count in enumerate(counts)
        ]

    def bucket(self, batch: int) -> int:
        """The bucket of a batch, by the batch's number in the run."""
        point = (self._start + batch * _GOLDEN) % _TURN
        return next(number for number, end in enumerate(self._edges[1:]) if point < end)

    def batches_before(self, batch: int, *, bucket: int) -> int:
        """How many of the batches before this one are of a bucket."""
        low, high = (
            _floor_sum(batch, _TURN, _GOLDEN, self._start + _TURN - edge) for edge in self._edges[bucket : bucket + 2]
        )
        return low - high

    def samples(self, index: np.ndarray) -> np.ndarray:
        """The pictures at positions of one batch.

        Args:
            index: int64 (N,), images of the run before; all in one batch, which is index // batch_size.

        Returns:
            int64 (N,), picture numbers.
        """
        batch = int(index[0]) // self._batch_size
        assert int(index[-1]) // self._batch_size == batch, "positions of one batch"
        bucket = self.bucket(batch)
        members = self._members[bucket]
        position = index % self._batch_size + self.batches_before(batch, bucket=bucket) * self._batch_size
        return members[_walk(position, count=len(members), order=self._orders[bucket])].astype(np.int64)


def _bucket_epoch(count: int, seed: int, bucket: int, epoch: int) -> np.ndarray:
    return _permuted(count, seed=seed, stream=f"order/bucket-{bucket}", epoch=epoch)


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of (a i + b) // m over i = 0 ... n - 1, for non-negative numbers: Euclid's algorithm, in O(log m)."""
    total = 0
    while n > 0:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        # what is left counts the points below a line; the same points by columns are a sum of the same kind
        n, b, m, a = top // m, top % m, a, m
    return total


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
