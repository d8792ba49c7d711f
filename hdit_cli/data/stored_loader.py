"""Training batches of what a codec made of the pictures, in the order in which the pictures would come."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType

import numpy as np
import torch

from hdit_cli.data.loader import Batch, turned
from hdit_cli.data.order import BucketOrder, sample_at
from hdit_cli.data.stored import StoredReader

_AHEAD = 4  # micro-batches


class StoredLoader:
    """As `loader.Loader`, of an encoded set: batches have `stored` in the place of pixels. Use it as a context.

    Args:
        batch_size, seed, position, steps, slots: as there.
        ahead: a thread reads the next batches meanwhile.
        flip: half of the pictures come mirrored, the same as where pixels are flipped.
        pin_memory: page-locked, for asynchronous copies to CUDA.
    """

    def __init__(
        self,
        stored: StoredReader,
        *,
        batch_size: int,
        seed: int,
        position: int,
        steps: int,
        slots: Sequence[np.ndarray],
        ahead: bool = False,
        flip: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self._stored, self._reader = stored, stored.reader
        self._firsts = range(position, position + steps * batch_size, batch_size)
        self._seed, self._slots, self._flip, self._pin_memory = seed, slots, flip, pin_memory
        buckets = self._reader.bucket_numbers
        self._order = BucketOrder(buckets, batch_size=batch_size, seed=seed) if self._reader.buckets else None
        self._pool = ThreadPoolExecutor(1) if ahead else None

    def __enter__(self) -> "StoredLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yields, for each step, this process's micro-batches.

        Raises:
            DataError: what is stored is damaged.
        """
        batches = self._batches()
        for _ in self._firsts:
            yield [next(batches) for _ in self._slots]

    def close(self) -> None:
        """Ends the thread, and closes the files."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._stored.close()

    def _batches(self) -> Iterator[Batch]:
        numbers = (first + micro for first in self._firsts for micro in self._slots)
        if self._pool is None:
            yield from map(self._batch, numbers)
            return
        waiting = deque(self._pool.submit(self._batch, index) for index in islice(numbers, _AHEAD))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(self._pool.submit(self._batch, index) for index in islice(numbers, 1))

    def _batch(self, index: np.ndarray) -> Batch:
        if self._order is not None:
            samples = self._order.samples(index)
        else:
            samples = sample_at(index, count=len(self._reader), seed=self._seed)
        mirrored = turned(index, seed=self._seed).numpy() if self._flip else np.zeros(len(index), dtype=bool)
        found = self._stored.views(samples, mirrored)
        # tokens as an embedding takes them: (N, h, w)
        stored = torch.from_numpy(found[:, 0].astype(np.int64) if self._stored.facts.vocabulary else found)
        label = self._reader.labels[samples].astype(np.int64)
        label[label < 0] = len(self._reader.classes)
        return Batch(
            pixels=None,
            stored=stored.pin_memory() if self._pin_memory else stored,
            label=torch.from_numpy(label),
            index=index,
        )
