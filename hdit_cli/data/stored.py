"""Random access to what a codec made of the pictures of an encoded set: one view is one read, checked by its CRC-32."""

import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np

from hdit_cli import files
from hdit_cli.data.encoded import CODEC_FILE, DTYPES, MADE_BY, VIEWS, CodecFacts, file_bytes, offsets
from hdit_cli.data.reader import ShardReader
from hdit_cli.errors import DataError, UsageError

_OPEN = 64  # files kept open: far below the usual limit
_MEND = f"copy the file again from where it came from, or {MADE_BY}"


class StoredReader:
    """The latents or tokens of an encoded set, by number and view. One thread at a time may read.

    Args:
        reader: of the set, whose `encoded` is not None.

    Raises:
        DataError: a file is missing, or of another length than its pictures ask for.
    """

    def __init__(self, reader: ShardReader) -> None:
        assert reader.encoded is not None, "asked for of encoded sets alone"
        self.reader, self.folder = reader, reader.folder
        self.facts: CodecFacts = reader.encoded.codec
        self._dtype = np.dtype(DTYPES[self.facts.dtype])
        self._places: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # shard => offsets, checksums
        self._open: dict[int, BufferedReader] = {}
        if why := misfit(reader, self.facts.factor):
            raise DataError(f"{self.folder} tells of a codec that cannot have made it: {why}", hint=MADE_BY)
        for shard, told in enumerate(self.facts.shards):
            path = self.folder / told.name
            wanted = file_bytes(self.facts, reader.sizes_in(shard))
            try:
                found = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path} is missing ({error.strerror})", hint=_MEND) from error
            if wanted != told.bytes or found != told.bytes:
                raise DataError(f"{path} is damaged: {found} bytes, not {wanted} as its pictures need", hint=_MEND)

    def view(self, index: int, *, mirrored: bool) -> np.ndarray:
        """What was made of picture number `index`, as it is or mirrored: (planes, h, w) of the section's dtype.

        Raises:
            DataError: the file is gone, or its bytes are not those that were written; a number is none.
        """
        shard, number = self.reader.place_of(index)
        places, table = self._table(shard)
        size = int(places[number + 1] - places[number]) // len(VIEWS)
        path = self.folder / self.facts.shards[shard].name
        try:
            handle = self._handle(shard)
            handle.seek(int(places[number]) + mirrored * size)
            data = handle.read(size)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", hint="check the disk") from error
        if zlib.crc32(data) != table[number, int(mirrored)]:
            raise DataError(f"{path} is damaged: the checksum of picture {index} does not match", hint=_MEND)
        found = np.frombuffer(data, self._dtype).reshape(self.facts.record(self.reader.size_of(index)))
        if why := self._nonsense(found):
            raise DataError(f"{path}: picture {index} holds {why}", hint=_MEND)
        return found

    def views(self, numbers: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Of pictures of one size: (N, planes, h, w)."""
        pairs = zip(numbers.tolist(), mirrored.tolist(), strict=True)
        return np.stack([self.view(number, mirrored=turned) for number, turned in pairs])

    def problem(self, shard: int) -> str:
        """Reads the whole file of one shard; one sentence on what is wrong with it, or ""."""
        told = self.facts.shards[shard]
        try:
            if files.sha256(self.folder / told.name) != told.sha256:
                return "has changed since it was written"
            self._table(shard)
            first = self.reader.first_of(shard)
            for number in range(first, first + self.reader.manifest.shards[shard].count):
                for mirrored in (False, True):
                    self.view(number, mirrored=mirrored)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except DataError as error:
            return error.message
        return ""

    def _nonsense(self, found: np.ndarray) -> str:
        """What a record of the right checksum must not hold all the same: a file that was received may hold anything."""
        if not self.facts.vocabulary:
            return "" if np.isfinite(found).all() else "NaN or infinity"
        whole = found.min() >= 0 and found.max() < self.facts.vocabulary
        return "" if whole else f"a token beyond the {self.facts.vocabulary:,} of the codec"

    def close(self) -> None:
        """Closes the files; the next read opens them again."""
        for handle in self._open.values():
            handle.close()
        self._open.clear()

    def _handle(self, shard: int) -> BufferedReader:
        """The longest unused of many is closed."""
        handle = self._open.pop(shard, None)
        if handle is None:
            if len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open))).close()
            handle = files.open_regular(self.folder / self.facts.shards[shard].name)
        self._open[shard] = handle
        return handle

    def _table(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._places:
            told, sizes = self.facts.shards[shard], self.reader.sizes_in(shard)
            places = offsets(self.facts, sizes)
            path = self.folder / told.name
            try:
                handle = self._handle(shard)
                handle.seek(int(places[-1]))
                raw = handle.read(4 * len(VIEWS) * len(sizes))
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}", hint="check the disk") from error
            if zlib.crc32(raw) != told.table_crc32:
                raise DataError(f"{path} is damaged: its checksums are not those that were written", hint=_MEND)
            self._places[shard] = places, np.frombuffer(raw, "<u4").reshape(len(sizes), len(VIEWS))
        return self._places[shard]


def misfit(reader: ShardReader, factor: int) -> str:
    """Why a codec of this factor cannot take the pictures of a set, one sentence, or ""."""
    for height, width in reader.sizes:
        beside = next((side for side in (height, width) if side % factor), None)
        if beside is not None:
            return f"its pictures are {height}x{width}, and {beside} is no multiple of {factor}, the codec's factor"
    return ""


def stored_of(reader: ShardReader, *, sha256: str, codec: str) -> StoredReader | None:
    """What a codec made of the pictures of a set, where that is stored in it; None where nothing is.

    Args:
        sha256: of the codec's file.
        codec: its path, for the message.

    Raises:
        UsageError: it is of another codec.
        DataError: a file is missing or damaged, or the codec in the set is not its own.
    """
    if reader.encoded is None:
        return None
    section = reader.encoded.codec
    if section.sha256 != sha256:
        own = reader.folder / CODEC_FILE
        if files.real_path(Path(codec)) == files.real_path(own):
            raise DataError(
                f"{codec} is not the codec that {reader.folder} was encoded with: its SHA-256 begins with {sha256[:8]}, "
                f"not {section.sha256[:8]}",
                hint="copy it there again, or make the encoded set again with `hdit encode`",
            )
        raise UsageError(
            f"{reader.folder} was encoded with another codec than {codec}: that of SHA-256 {section.sha256[:8]}, not {sha256[:8]}",
            hint=f"--set codec.path={own}; with another codec, give the data set that it was made from: its pictures are "
            "encoded as they come",
        )
    return StoredReader(reader)
