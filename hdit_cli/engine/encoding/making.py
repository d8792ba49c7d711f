"""One shard: its pictures through the codec, in batches that never cross it, and its files beside what was made of them.

The last bits of a codec's numbers hang on the batch and, on a CPU, on the number of threads that share one product. So there each
product takes one thread, and as many batches are computed at once as there are threads: the bytes are a function of the
pictures, the codec and the size of a batch.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.data.encoded import CODEC, DTYPES, CodecFacts, SectionShard, SectionWriter, section_name
from hdit_cli.data.loader import to_x0
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import index_path
from hdit_cli.engine.encoding.sums import Sums
from hdit_cli.engine.encoding.work import Record, Task, write_record
from hdit_cli.errors import DataError, NonFiniteError
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.precision import computing, lent

_CHUNK = 1 << 22
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Made:
    """What a codec made of a batch: numbers of the pictures in their shard, and each view of them, (N, planes, h, w)."""

    numbers: np.ndarray
    views: tuple[np.ndarray, np.ndarray]


class Maker(AbstractContextManager["Maker"]):
    """Makes shards of an encoded set. Use it as a context: inside, products on a CPU take one thread each.

    Args:
        out: the encoded set.
        codec: on its device.
        facts: of the section; its shards and statistics come later.
        pictures: the tars come along.
        threads: how many batches are computed at once.
        tell: hears of pictures that are done.
    """

    def __init__(
        self,
        out: Path,
        *,
        codec: Frozen,
        facts: CodecFacts,
        pictures: bool,
        threads: int,
        tell: Callable[[int], None],
    ) -> None:
        self.out, self.codec, self.facts, self.pictures, self.tell = out, codec, facts, pictures, tell
        self.device, self.threads = codec.device, threads
        self._stack = ExitStack()

    def __enter__(self) -> "Maker":
        one = (
            torch.set_num_threads if self.device.type == "cpu" else int
        )  # each thread of Python's has a number of its own
        if self.device.type == "cpu":
            self._stack.callback(torch.set_num_threads, torch.get_num_threads())
            one(1)
        self._stack.enter_context(computing(self.facts.precision, self.device))
        self._pool = self._stack.enter_context(ThreadPoolExecutor(self.threads, initializer=one, initargs=(1,)))
        self._reading = self._stack.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for pool in (self._reading, self._pool):
                pool.shutdown(wait=False, cancel_futures=True)
        self._stack.close()

    def make(self, task: Task) -> Record:
        """Writes the files of a shard, and then its record.

        Raises:
            DataError: a picture, or the shard, is damaged.
            NonFiniteError: the codec makes NaN, infinity, or more than float16 holds.
        """
        folder, shard = self.out / task.side, task.reader.manifest.shards[task.number]
        files.reap(folder, of=Path(shard.name).stem)
        first, sums = task.reader.first_of(task.number), Sums()
        path = folder / section_name(shard.name, CODEC)
        with files.replacing(path) as handle:
            writer = SectionWriter(handle, self.facts, task.reader.sizes_in(task.number))
            for made in self._batches(task):
                for row, number in enumerate(made.numbers.tolist()):
                    views = [view[row] for view in made.views]
                    writer.add(number - first, views)
                    if not self.facts.vocabulary:
                        for view in views:
                            sums.add(view)
                self.tell(len(made.numbers))
            table = writer.close()
        told = SectionShard(path.name, path.stat().st_size, files.sha256(path), table)
        if self.pictures:
            copy(task.reader.folder / shard.name, folder / shard.name, sha256=shard.sha256)
        index = index_path(task.reader.folder, shard)
        files.write_bytes(index_path(folder, shard), index.read_bytes())
        record = Record(told, sums)
        write_record(self.out, task, record)
        return record

    def _batches(self, task: Task) -> Iterator[_Made]:
        """In a fixed order, whoever is faster; some are computed at once."""
        waiting: deque[Future[_Made]] = deque()
        coming = batches(task.reader, task.number, most=self.facts.batch_size)
        for numbers in coming:
            pixels = self._reading.submit(pictures, task.reader, numbers)
            waiting.append(self._pool.submit(self._made, numbers, pixels))
            if len(waiting) > self.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _made(self, numbers: np.ndarray, pixels: "Future[Tensor]") -> _Made:
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.facts.precision == "bf16")
        with lent(), torch.no_grad(), autocast:
            x = to_x0(pixels.result().to(self.device))
            views = [self.codec.moments(view) for view in (x, x.flip(3))]
        plain, mirrored = (self._checked(view, numbers) for view in views)
        return _Made(numbers, (plain, mirrored))

    def _checked(self, stored: Tensor, numbers: np.ndarray) -> np.ndarray:
        """As it is stored: (N, planes, h, w)."""
        dtype = np.dtype(DTYPES[self.facts.dtype])
        if self.facts.vocabulary:
            return stored[:, None].cpu().numpy().astype(dtype)
        found = stored.float().cpu()
        worst = found.abs().amax(dim=(1, 2, 3))
        for number, value in zip(numbers.tolist(), worst.tolist(), strict=True):
            if not value <= _LARGEST:
                what = (
                    f"latents up to {value:,.0f}, and float16 ends at {_LARGEST:,.0f}"
                    if value < np.inf
                    else "NaN or infinity"
                )
                raise NonFiniteError(
                    f"the codec makes {what} of picture {number}",
                    hint="its weights are damaged, or it expects other pictures: look at a few of its own decoded ones",
                )
        return found.numpy().astype(dtype)


def batches(reader: ShardReader, shard: int, *, most: int) -> Iterator[np.ndarray]:
    """Numbers of the pictures of a shard in batches of at most `most`, each of one size."""
    numbers = np.arange(reader.first_of(shard), reader.first_of(shard + 1))
    buckets = reader.bucket_numbers[numbers]
    for bucket in np.unique(buckets):
        here = numbers[buckets == bucket]
        yield from np.split(here, range(most, len(here), most))


def pictures(reader: ShardReader, numbers: np.ndarray) -> Tensor:
    """uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([reader.picture(number) for number in numbers.tolist()])).permute(0, 3, 1, 2)


def copy(source: Path, target: Path, *, sha256: str) -> None:
    """Copies a shard, and holds it against its hash.

    Raises:
        DataError: it is another one.
    """
    hashed = hashlib.sha256()
    with files.open_regular(source) as handle, files.replacing(target) as written:
        while chunk := handle.read(_CHUNK):
            hashed.update(chunk)
            written.write(chunk)
        if hashed.hexdigest() != sha256:
            raise DataError(
                f"shard {source} is damaged: it has changed since it was written",
                hint="copy it again from where it came from, or make the data set again with `hdit prepare`",
            )
