"""Training batches from any position of a run, the same for any number of worker processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from hdit_cli import runtime
from hdit_cli.data.decoders import Decoder, InProcess, WorkerProcesses
from hdit_cli.data.order import BucketOrder, sample_at
from hdit_cli.data.reader import ShardReader

_CHUNK = (
    32  # pictures a worker decodes at once: a batch is shared by the workers, and a chunk is well above its overhead
)


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one process.

    Attributes:
        pixels: uint8 (N, 3, H, W); None where `stored` is there.
        label: int64 (N,), the number of classes where there is no class.
        index: int64 (N,), numbers of the images in the run: every random draw for an image is a function of it.
        stored: what a codec made of the pictures, flipped already: float16 (N, planes, h, w), or tokens, int64 (N, h, w).
    """

    pixels: Tensor | None
    label: Tensor
    index: np.ndarray
    stored: Tensor | None = None


class Loader:
    """Batches of consecutive optimizer steps. Use it as a context; leaving it ends the workers.

    Args:
        batch_size: images of one step, over all processes and micro-batches.
        seed: of the permutation.
        position: images seen before the first step.
        steps: how many steps to yield.
        slots: this process's slots of the global batch, one array per micro-batch, as `order.split` gives them.
        workers: processes that decode ahead; 0 decodes in this process and keeps small data sets in memory.
        pin_memory: page-locked pixels, for asynchronous copies to CUDA.
        cut: (H, W), cut each picture to it at a place that is random, a function of (seed, index) alone.

    Where the reader has buckets, each step is of one bucket, on every process.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        batch_size: int,
        seed: int,
        position: int,
        steps: int,
        slots: Sequence[np.ndarray],
        workers: int = 0,
        pin_memory: bool = False,
        cut: tuple[int, int] | None = None,
    ) -> None:
        self._reader = reader
        self._firsts = range(position, position + steps * batch_size, batch_size)
        self._seed, self._slots, self._pin_memory, self._cut = seed, slots, pin_memory, cut
        self._order = BucketOrder(reader.bucket_numbers, batch_size=batch_size, seed=seed) if reader.buckets else None
        self._decoder: Decoder = InProcess(reader)
        if workers:
            per_step = sum(len(_chunks(micro)) for micro in slots)
            self._decoder = WorkerProcesses(reader, count=workers, ahead=2 * max(per_step, workers))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yields, for each step, this process's micro-batches.

        Raises:
            DataError: a picture is damaged.
            OutOfMemory: a worker was killed.
            UsageError: the workers cannot start.
        """
        pictures = self._decoder.decoded(
            chunk for first in self._firsts for micro in self._slots for chunk in _chunks(self._samples(first + micro))
        )
        for first in self._firsts:
            yield [self._batch(first + micro, pictures) for micro in self._slots]

    def close(self) -> None:
        """Ends the workers."""
        self._decoder.close()

    def _samples(self, index: np.ndarray) -> np.ndarray:
        if self._order is not None:
            return self._order.samples(index)
        return sample_at(index, count=len(self._reader), seed=self._seed)

    def _batch(self, index: np.ndarray, pictures: Iterator[np.ndarray]) -> Batch:
        samples = self._samples(index)
        size = self._cut or self._reader.size_of(int(samples[0]))
        pixels = torch.empty((len(index), 3, *size), dtype=torch.uint8, pin_memory=self._pin_memory)
        for part, numbers in zip(pixels.split(_CHUNK), _chunks(index), strict=True):
            decoded = next(pictures)
            if self._cut is not None:
                decoded = cut_at_random(decoded, self._cut, index=numbers, seed=self._seed)
            part.copy_(torch.from_numpy(decoded))
        label = self._reader.labels[samples].astype(np.int64)
        label[label < 0] = len(self._reader.classes)
        return Batch(pixels=pixels, label=torch.from_numpy(label), index=index)


def _chunks(samples: np.ndarray) -> list[np.ndarray]:
    return [samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK)]


def cut_at_random(pixels: np.ndarray, size: tuple[int, int], *, index: np.ndarray, seed: int) -> np.ndarray:
    """Cuts pictures to a smaller size; every place is equally likely, and which one is a function of (seed, index) alone.

    Args:
        pixels: (N, C, h, w).
        size: (H, W), at most (h, w).
        index: int64 (N,), numbers of the images in the run.

    Returns:
        (N, C, H, W).
    """
    room = np.subtract(pixels.shape[2:], size)
    uniforms = runtime.uniform(seed, "crop", index, 2).numpy()
    corners = np.minimum((uniforms * (room + 1)).astype(np.int64), room)  # (N, 2): top, left; rounding may give 1
    height, width = size
    return np.stack(
        [
            picture[:, top : top + height, left : left + width]
            for picture, (top, left) in zip(pixels, corners.tolist(), strict=True)
        ]
    )


def to_x0(pixels: Tensor) -> Tensor:
    """uint8 (N, C, H, W) => float32 (N, C, H, W) in [-1, 1]: x / 127.5 - 1."""
    return pixels.float() / 127.5 - 1


def flip(x0: Tensor, *, index: np.ndarray, seed: int) -> Tensor:
    """Mirrors half of the images left to right; which ones is a function of (seed, index) alone.

    Args:
        x0: (N, C, H, W).
        index: int64 (N,), numbers of the images in the run.
    """
    chosen = turned(index, seed=seed).to(x0.device, non_blocking=True)
    return torch.where(chosen[:, None, None, None], x0.flip(3), x0)


def turned(index: np.ndarray, *, seed: int) -> Tensor:
    """Which images of these numbers (N,) are mirrored: bool (N,)."""
    return runtime.uniform(seed, "flip", index)[:, 0] < 0.5
