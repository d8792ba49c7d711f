"""Pictures by number, decoded in worker processes. Imports no torch: a worker starts in a fraction of a second."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Protocol

import numpy as np

from hdit_cli.data.reader import ShardReader
from hdit_cli.errors import OutOfMemory, UsageError

_CACHE_BYTES = 1 << 30  # decoded pictures kept by the one process that reads a small data set


def decode(reader: ShardReader, numbers: np.ndarray) -> np.ndarray:
    """The pictures of these numbers: uint8 (N, 3, H, W)."""
    out = np.empty((len(numbers), 3, *reader.image_size), dtype=np.uint8)
    for row, number in zip(out, numbers, strict=True):
        row[:] = reader.picture(int(number)).transpose(2, 0, 1)  # HWC => CHW
    return out


class Decoder(Protocol):
    """Turns picture numbers into pictures."""

    def decoded(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """int64 (N,) chunks of picture numbers => uint8 (N, 3, H, W), in the same order."""
        ...

    def close(self) -> None: ...


class InProcess:
    """Decodes in this process, when asked. A data set under 1 GiB of pixels is decoded once and kept."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        height, width = reader.image_size
        fits = len(reader) * 3 * height * width <= _CACHE_BYTES
        # np.empty takes memory page by page, as pictures come in
        self._kept = np.empty((len(reader), 3, height, width), dtype=np.uint8) if fits else None
        self._known = np.zeros(len(reader), dtype=bool)

    def decoded(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for numbers in chunks:
            yield decode(self._reader, numbers) if self._kept is None else self._from(self._kept, numbers)

    def _from(self, kept: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        new = numbers[~self._known[numbers]]
        kept[new] = decode(self._reader, new)
        self._known[new] = True
        return kept[numbers]

    def close(self) -> None:
        self._reader.close()


class WorkerProcesses:
    """Decodes ahead in processes; what comes out, and in which order, does not depend on their number.

    Args:
        count: number of processes, at least 1.
        ahead: chunks under way or waiting at any time; it bounds the memory.
    """

    def __init__(self, reader: ShardReader, *, count: int, ahead: int) -> None:
        # spawn: no thread, lock or CUDA context of this process is copied
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(reader,))
        self._count, self._ahead = count, ahead
        self._proven = False

    def decoded(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        numbers = iter(chunks)
        try:
            waiting = [self._pool.submit(_decode, chunk) for chunk in islice(numbers, self._ahead)]
            while waiting:
                yield self._result(waiting.pop(0))
                waiting += [self._pool.submit(_decode, chunk) for chunk in islice(numbers, 1)]
        except BrokenProcessPool as error:
            raise self._broken() from error

    def _result(self, future: "Future[np.ndarray]") -> np.ndarray:
        result = future.result()
        self._proven = True
        return result

    def _broken(self) -> UsageError | OutOfMemory:
        if not self._proven:
            return UsageError(
                "the processes that decode pictures cannot start",
                hint="in a script of your own, train under `if __name__ == '__main__':`; or set data.workers = 0",
            )
        return OutOfMemory(
            "a process that decodes pictures was killed, most likely because memory ran out",
            hint=f"lower data.workers (now {self._count}; 0 decodes in the training process), or train.batch_size",
        )

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


# In a worker

_reader: ShardReader | None = None


def _start(reader: ShardReader) -> None:
    global _reader  # the pool gives its processes no other place to keep something
    _reader = reader
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent finishes its step first
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "a worker was started by someone"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _decode(numbers: np.ndarray) -> np.ndarray:
    assert _reader is not None, "_start ran first"
    return decode(_reader, numbers)
