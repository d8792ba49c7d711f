"""Pictures by number, decoded in worker processes. Imports no torch: a worker starts in a fraction of a second."""

import contextlib
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context, resource_tracker
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hdit_cli.data.reader import ShardReader
from hdit_cli.errors import OutOfMemory, UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_CACHE_BYTES = 1 << 30  # decoded pictures kept by the one process that reads a small data set
_MAX_AHEAD = 64  # chunks given to one worker: what a pipe holds without anyone reading
_READ_AHEAD = 2  # chunks that a worker has read and not decoded yet
_LEFT_TO_PARENT = tuple(  # sent to the whole group: the parent finishes its step first
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def decode(reader: ShardReader, numbers: np.ndarray, encoded: Sequence[bytes] | None = None) -> np.ndarray:
    """The pictures of these numbers, all of one size: uint8 (N, 3, H, W).

    Args:
        encoded: what `reader.read_many` gave for them, where that has been done.
    """
    out = np.empty((len(numbers), 3, *reader.size_of(numbers[0])), dtype=np.uint8)
    for place, (row, number) in enumerate(zip(out, numbers.tolist(), strict=True)):
        picture = reader.picture(number) if encoded is None else reader.decoded(number, encoded[place])
        row[:] = picture.transpose(2, 0, 1)  # HWC => CHW
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
        pixels = np.array([height * width for height, width in reader.sizes])
        fits = 3 * int(pixels[reader.bucket_numbers].sum()) <= _CACHE_BYTES
        self._kept: dict[int, np.ndarray] | None = {} if fits else None

    def decoded(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for numbers in chunks:
            yield decode(self._reader, numbers) if self._kept is None else self._from(self._kept, numbers)

    def _from(self, kept: dict[int, np.ndarray], numbers: np.ndarray) -> np.ndarray:
        wanted = numbers.tolist()
        for number in wanted:
            if number not in kept:
                kept[number] = decode(self._reader, np.array([number]))[0]
        return np.stack([kept[number] for number in wanted])

    def close(self) -> None:
        self._reader.close()


class WorkerProcesses:
    """Decodes ahead in processes; what comes out, and in which order, does not depend on their number.

    Args:
        count: number of processes, at least 1.
        ahead: chunks under way or waiting at any time; it bounds the memory.
    """

    def __init__(self, reader: ShardReader, *, count: int, ahead: int) -> None:
        self._ahead = min(ahead, count * _MAX_AHEAD)
        self._proven = False
        self._workers: list[_Worker] = []
        try:
            told = pickle.dumps(reader, protocol=pickle.HIGHEST_PROTOCOL)
            with _signals_blocked():
                for _ in range(count):
                    self._workers.append(_Worker(told))
        except BaseException:
            self.close()  # at exit Python would wait for those that run, and they wait for work
            raise

    def decoded(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        numbers = iter(chunks)
        workers = cycle(self._workers)  # chunk k is worker k's, modulo their number
        owed: deque[_Worker] = deque()

        def give(chunk: np.ndarray) -> None:
            owed.append(next(workers))
            owed[-1].give(chunk)

        for chunk in islice(numbers, self._ahead):
            give(chunk)
        while owed:
            yield self._result(owed.popleft().results.get())
            for chunk in islice(numbers, 1):
                give(chunk)

    def _result(self, result: "np.ndarray | Exception | None") -> np.ndarray:
        if isinstance(result, Exception):
            raise result
        if result is None:
            raise self._broken()
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
            hint=f"lower data.workers (now {len(self._workers)}; 0 decodes in the training process), or train.batch_size",
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # they only read
        for worker in self._workers:
            worker.end()


class _Worker:
    """One process behind a pipe, and a thread that takes its results as they come.

    A pipe and no queue: the semaphores of a queue have names in the system that nobody removes after a SIGKILL of the group.
    The reader, megabytes at a million pictures, goes through it too: among the arguments of the process it would keep the
    next one from being started until this one has imported all it needs and takes them.

    Args:
        reader: pickled.
    """

    def __init__(self, reader: bytes) -> None:
        context = get_context("spawn")  # no thread, lock or CUDA context of this process is copied
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.results: SimpleQueue[np.ndarray | Exception | None] = SimpleQueue()  # None: it has died
        self._handed = threading.Event()  # the reader is, so that numbers may follow
        self._receiver = threading.Thread(target=self._talk, args=(reader,), daemon=True)
        self._receiver.start()

    def give(self, numbers: np.ndarray) -> None:
        self._handed.wait()
        with contextlib.suppress(OSError):  # a dead worker is told by its results
            self.connection.send(numbers)

    def end(self) -> None:
        self.process.join()
        self._receiver.join()  # it has met the end of the pipe
        self.connection.close()

    def _talk(self, reader: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died, which the end of the pipe tells
            self.connection.send_bytes(reader)
        self._handed.set()
        self._receive()

    def _receive(self) -> None:
        try:
            while True:
                answer = self.connection.recv()
                if not isinstance(answer, Exception):
                    answer = np.empty(answer, dtype=np.uint8)
                    self.connection.recv_bytes_into(answer.data.cast("B"))
                self.results.put(answer)
        except (OSError, EOFError):
            self.results.put(None)
        except (
            Exception
        ) as error:  # no memory for the pictures, an error that does not unpickle: nobody must wait for ever
            self.results.put(error)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started within never see these signals, not even before their first line."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first process would start it, which unblocks these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a worker


def _work(connection: "Connection") -> None:
    for number in _LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    try:
        reader = connection.recv()
    except (OSError, EOFError):  # the parent has ended
        return
    coming: Queue[_Read | None] = Queue(_READ_AHEAD)
    threading.Thread(target=_read_ahead, args=(reader, connection, coming), daemon=True).start()
    with contextlib.suppress(OSError):  # the parent has ended
        while (chunk := coming.get()) is not None:
            _answer(reader, connection, chunk)


@dataclass(frozen=True, slots=True)
class _Read:
    """A chunk on its way: picture numbers, and their bytes or why there are none."""

    numbers: np.ndarray
    encoded: list[bytes] | Exception


def _read_ahead(reader: ShardReader, connection: "Connection", coming: "Queue[_Read | None]") -> None:
    """Reads the next chunks while this one is decoded: a slow disk and the decoder do not wait for each other."""
    with contextlib.suppress(OSError, EOFError):  # the parent has ended
        while True:
            numbers = connection.recv()
            try:
                encoded: list[bytes] | Exception = reader.read_many(numbers)
            except Exception as error:  # whatever it is, it is the parent's to tell
                encoded = error
            coming.put(_Read(numbers, encoded))
    coming.put(None)


def _answer(reader: ShardReader, connection: "Connection", chunk: _Read) -> None:
    try:
        if isinstance(chunk.encoded, Exception):
            raise chunk.encoded
        pixels = decode(reader, chunk.numbers, chunk.encoded)
    except Exception as error:  # whatever it is, it is the parent's to tell
        connection.send(error)
    else:
        connection.send(pixels.shape)
        connection.send_bytes(pixels.data.cast("B"))
