"""Random access to a data set: one picture is one `pread` at its indexed offset, checked by its CRC-32.

No tar is ever parsed here; the index beside each shard says where its pictures lie.
"""

import contextlib
import copy
import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdit_cli.data import shard_index, shards
from hdit_cli.data.encoded import load_encoded
from hdit_cli.data.pixels import Pixels
from hdit_cli.errors import DataError, UsageError

_OPEN_SHARDS = 64  # files kept open per process: far below the usual limit of 256 to 1,024


class ShardReader:
    """The pictures of one data set, by number.

    Opening reads the manifest and the indices and compares them with the sizes on the disk; shards open on first use,
    in each process for itself, so a reader may be pickled or forked. A pickled one carries no index: it reads that of a
    shard with the shard's first picture. (It is read and not mapped: a file that shrinks under a mapping ends the process.)
    One thread at a time may read, and one decode.

    Attributes:
        image_size: (H, W) of the pictures; of several sizes, the one they were made around.
        buckets: the sizes and how many pictures have each; empty where all are of one size.
        bucket_numbers: int (N,), which of `buckets` each picture is in; all 0 without buckets.
        encoded: what `hdit encode` made of the pictures; None where it made nothing.

    Args:
        folder: a data set made by `hdit prepare`.

    Raises:
        DataError: missing, incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = shards.load_manifest(self.folder)
        self.classes = self.manifest.classes
        self.image_size = (self.manifest.image_size[0], self.manifest.image_size[1])  # (H, W)
        self.fingerprint = shards.fingerprint(self.manifest)
        self.encoded = load_encoded(self.folder, shards=self.manifest.shards, fingerprint=self.fingerprint)
        if self.has_pictures:
            for shard in self.manifest.shards:
                _check_size(os.path.join(self.folder, shard.name), shard.bytes)
        self.buckets = self.manifest.buckets
        index = shard_index.read_indices(self.folder, self.manifest)
        self._index: np.ndarray | None = index
        self._indices: dict[int, np.ndarray] = {}  # shard => its part of the index, where the whole was left behind
        # number of the first picture of each shard, and the end
        self._first: list[int] = np.cumsum([0, *(shard.count for shard in self.manifest.shards)]).tolist()
        self.bucket_numbers: np.ndarray = self._bucket_numbers(index)
        self._stored = self.image_size  # differs where pictures are cut as they are read
        self.labels: np.ndarray = index["label"].astype(np.int32)  # (N,), -1 = no class
        worst = int(self.labels.max())
        if worst >= max(1, len(self.classes)):
            raise DataError(
                f"{self.folder}: a picture has label {worst}, but there are {len(self.classes)} classes", hint=_MEND
            )
        self._open: dict[int, int] = {}  # shard => descriptor, the longest unused first
        self._owner = os.getpid()
        self._pixels = Pixels()

    def __len__(self) -> int:
        return self.manifest.count

    def _bucket_numbers(self, index: np.ndarray) -> np.ndarray:
        if not self.buckets:
            return np.zeros(len(index), dtype=np.uint16)
        numbers = shard_index.bucket_numbers(index, self.buckets)
        found = np.bincount(numbers, minlength=len(self.buckets)).tolist()
        if found != [bucket.count for bucket in self.buckets]:
            raise DataError(
                f"{self.folder}: the manifest counts other pictures in its buckets than there are", hint=_MEND
            )
        return numbers

    @property
    def has_pictures(self) -> bool:
        """Whether the pictures themselves are there: an encoded set may do without."""
        return self.encoded is None or self.encoded.pictures

    def require_pictures(self, what: str) -> None:
        """Raises DataError where the pictures were left out.

        Args:
            what: for which they are needed, as the beginning of a sentence.
        """
        if not self.has_pictures:
            raise DataError(
                f"{what} needs pictures, and {self.folder} was encoded without them (--drop-pictures)",
                hint="name the data set that it was made from, or one that was encoded with its pictures",
            )

    def place_of(self, index: int) -> tuple[int, int]:
        """(shard, number in the shard) of picture number `index`."""
        shard = self._shard(index)
        return shard, index - self._first[shard]

    def first_of(self, shard: int) -> int:
        """The number of a shard's first picture; of the number of shards: the end."""
        return self._first[shard]

    def sizes_in(self, shard: int) -> list[tuple[int, int]]:
        """(H, W) of each picture of a shard."""
        return [self.sizes[number] for number in self.bucket_numbers[self._first[shard] : self._first[shard + 1]]]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes (H, W) that `picture` gives, in the order of `buckets`."""
        return [(bucket.size[0], bucket.size[1]) for bucket in self.buckets] or [self.image_size]

    def size_of(self, index: int) -> tuple[int, int]:
        """(H, W) of picture number `index`, without reading it."""
        return self.sizes[self.bucket_numbers[index]]

    def centred(self, size: tuple[int, int]) -> "ShardReader":
        """The same data set, each picture cut at its centre to this (H, W) when it is read.

        Raises:
            UsageError: there are buckets, or pictures are smaller than that.
        """
        self.check_cut(size)
        other = copy.copy(self)
        other.image_size = size
        return other

    @property
    def cut(self) -> tuple[int, int] | None:
        """(H, W) that pictures are cut to when they are read; None where they are given as they are stored."""
        return None if self.image_size == self._stored else self.image_size

    def check_cut(self, size: tuple[int, int]) -> None:
        """Raises UsageError where pictures cannot be cut to this (H, W)."""
        if self.buckets:
            raise UsageError(
                f"{self.folder} holds pictures of several sizes (buckets), which are not cut again",
                hint='data.crop = "none", or a data set of one size: `hdit prepare` without --buckets',
            )
        if size[0] > self._stored[0] or size[1] > self._stored[1]:
            raise UsageError(
                f"pictures of {self._stored[0]}x{self._stored[1]} in {self.folder} cannot be cut to {size[0]}x{size[1]}",
                hint=f"`hdit prepare SRC --size {size[0]}x{size[1]}`, or larger",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_owner": None, "_index": None, "_indices": {}}

    def read(self, index: int) -> bytes:
        """The encoded picture (JPEG, WebP or PNG) number `index`.

        Raises:
            DataError: the shard is gone, shorter than it was, or its bytes are not those that were written.
        """
        self.require_pictures("this")
        shard = self._shard(index)
        record = self._record(shard, index)
        try:
            data = _read_at(self._descriptor(shard), int(record["size"]), int(record["offset"]))
        except OSError as error:
            name = self.manifest.shards[shard].name
            raise DataError(f"cannot read {self.folder / name}: {error.strerror}", hint="check the disk") from error
        if zlib.crc32(data) != record["crc32"]:
            raise self._damaged(index, "its checksum does not match")
        return data

    def read_many(self, numbers: Sequence[int] | np.ndarray) -> list[bytes]:
        """The encoded pictures of these numbers, read in the order in which they lie on the disk.

        The system is told of all of them first, where it takes such advice: it then fetches them at once, not one after
        the other.

        Raises:
            DataError: as `read`.
        """
        places = np.argsort(numbers, kind="stable").tolist()
        for place in places:
            self._announce(int(numbers[place]))
        found = {place: self.read(int(numbers[place])) for place in places}
        return [found[place] for place in range(len(numbers))]

    def picture(self, index: int) -> np.ndarray:
        """The decoded picture number `index`.

        Returns:
            uint8 (H, W, 3), of `size_of(index)`.

        Raises:
            DataError: as `read`; or the bytes are no picture of the size that manifest and index tell.
        """
        return self.decoded(index, self.read(index))

    def decoded(self, index: int, data: bytes) -> np.ndarray:
        """As `picture`, of what `read` gave for it."""
        try:
            pixels = self._pixels(data)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._damaged(index, f"it cannot be decoded ({error})") from error
        if pixels.shape[:2] != (self.size_of(index) if self.buckets else self._stored):
            raise self._damaged(index, f"it is {pixels.shape[0]}x{pixels.shape[1]}, not of the size in the manifest")
        if self.cut is None:
            return pixels
        height, width = self.cut
        top, left = (self._stored[0] - height) // 2, (self._stored[1] - width) // 2
        return pixels[top : top + height, left : left + width]

    def close(self) -> None:
        """Closes the shards that this process opened; the next read opens them again."""
        if self._owner == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)
        self._open = {}

    def _shard(self, index: int) -> int:
        return bisect_right(self._first, index) - 1

    def _record(self, shard: int, index: int) -> np.void:
        if self._index is not None:
            return self._index[index]
        if shard not in self._indices:
            self._indices[shard] = shard_index.read_index(
                self.folder, self.manifest.shards[shard], buckets=self.buckets
            )
        return self._indices[shard][index - self._first[shard]]

    def _announce(self, index: int) -> None:
        if hasattr(os, "posix_fadvise"):
            shard = self._shard(index)
            record = self._record(shard, index)
            with contextlib.suppress(OSError):  # some file systems take no advice; what is wrong is told by the reading
                descriptor = self._descriptor(shard)
                os.posix_fadvise(descriptor, int(record["offset"]), int(record["size"]), os.POSIX_FADV_WILLNEED)

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():  # after a fork or in another process: the parent's descriptors are not ours
            self._open, self._owner = {}, os.getpid()
        descriptor = self._open.pop(shard, None)
        if descriptor is None:
            if len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.pop(next(iter(self._open))))
            path = self.folder / self.manifest.shards[shard].name
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._open[shard] = descriptor
        return descriptor

    def _damaged(self, index: int, why: str) -> DataError:
        shard = self._shard(index)
        path = self.folder / self.manifest.shards[shard].name
        return DataError(f"picture {index:09d} in {path} is damaged: {why}", hint=_MEND)


_MEND = "copy the shard again from where it came from, or make the data set again with `hdit prepare`"


def _check_size(path: str, size: int) -> None:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"shard {path} is missing ({error.strerror})", hint=_MEND) from error
    if found != size:
        raise DataError(f"shard {path} is damaged: {found} bytes, not {size} as its manifest tells", hint=_MEND)


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows; the descriptor is this process's own
    return os.read(descriptor, size)
