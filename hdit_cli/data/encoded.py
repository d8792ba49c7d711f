"""An encoded set: a prepared data set with, beside each shard, what a codec made of its pictures ("hdit-encoded/1").

`manifest.json` and the indices are those of the pictures; `encoded.json` tells of the rest, in one section a kind. A section
has facts of its own and a file for each shard, `00000.codec`: for each picture, in the order of the index, its views (as it is,
and mirrored left to right) one after the other, then the CRC-32 of each view as u32. Numbers are little-endian.

The codec's own file lies in the set as `codec.safetensors`, with the statistics over all training pictures as its shift and
scale where it had none. The tars may be left out: index, labels and fingerprint stay those of the pictures.
"""

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO

import numpy as np

from hdit_cli import files
from hdit_cli.data.shards import ShardInfo
from hdit_cli.errors import DataError

FORMAT = "hdit-encoded/1"
ENCODED = "encoded.json"
CODEC = "codec"  # the section of latents or tokens, and the ending of its files
CODEC_FILE = "codec.safetensors"
VIEWS = ("plain", "mirrored")
DTYPES = {"float16": "<f2", "uint8": "<u1", "uint16": "<u2", "int32": "<i4"}
MADE_BY = "make the encoded set again with `hdit encode`"

_LARGEST = 1 << 26  # bytes of encoded.json
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MOST = {"factor": 1 << 12, "planes": 1 << 13, "channels": 1 << 12, "vocabulary": 1 << 31, "batch_size": 1 << 20}


@dataclass(frozen=True)
class SectionShard:
    """The file of a section beside one shard; `table_crc32` is of the checksums at its end."""

    name: str
    bytes: int
    sha256: str
    table_crc32: int


@dataclass(frozen=True)
class CodecFacts:
    """Latents or tokens of the pictures.

    Attributes:
        kind: of the codec, its name in the catalog.
        sha256: of `codec.safetensors`, which turns what is stored into what a network sees, and back into pictures.
        of: SHA-256 of the file or checkpoint that the codec was read from; the same where it had statistics of its own.
        config: of the codec, as its file tells it.
        factor: pixels on a side of one place.
        planes: stored numbers of one place: mean and standard deviation of each channel, or 1, a token.
        channels: of what a network sees.
        vocabulary: of tokens; 0 for latents.
        dtype: of the stored numbers.
        batch_size, precision, device: with which they were computed: the last bits hang on them.
        statistics: of latents: "mean" and "std" of each channel, of latents that are drawn, over all training pictures and views,
            before they are normalised; and how many "pictures".
    """

    kind: str
    sha256: str
    of: str
    config: dict[str, Any]
    factor: int
    planes: int
    channels: int
    vocabulary: int
    dtype: str
    batch_size: int
    precision: str
    device: str
    statistics: dict[str, Any] = field(default_factory=dict)
    shards: list[SectionShard] = field(default_factory=list)

    def record(self, size: Sequence[int]) -> tuple[int, int, int]:
        """(planes, h, w) of one view of a picture of this (H, W)."""
        return self.planes, size[0] // self.factor, size[1] // self.factor

    def record_bytes(self, size: Sequence[int]) -> int:
        """Of one view of a picture of this (H, W)."""
        return math.prod(self.record(size)) * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class Encoded:
    """What `encoded.json` tells.

    Attributes:
        data: fingerprint of the pictures.
        pictures: whether the tars are there.
        codec: its section.
    """

    data: str
    pictures: bool
    codec: CodecFacts


def section_name(shard: str, section: str) -> str:
    """The file of a section beside the tar of this name."""
    return f"{Path(shard).stem}.{section}"


def is_encoded(folder: Path) -> bool:
    """Whether a folder tells that it is an encoded set."""
    return (folder / ENCODED).is_file()


# Reading


def load_encoded(folder: Path, *, shards: Sequence[ShardInfo], fingerprint: str) -> Encoded | None:
    """Reads and checks `encoded.json`, of whose words none is believed; None where the data set has none.

    Args:
        shards, fingerprint: of the manifest beside it.

    Raises:
        DataError: damaged, of another format, or about other pictures.
    """
    path = folder / ENCODED
    try:
        raw = files.read_regular(path, most=_LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    try:
        found = _validated(json.loads(raw))
        _expect(found.data == fingerprint, "it is about other pictures than the manifest beside it")
        names = [section_name(shard.name, CODEC) for shard in shards]
        _expect([each.name for each in found.codec.shards] == names, "its files are not those of the shards")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON", hint=MADE_BY) from error
    except _Invalid as error:
        raise DataError(f"{path}: {error}", hint=MADE_BY) from error
    return found


class _Invalid(Exception):
    """What is wrong, in words."""


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise _Invalid(what)


def _natural(value: Any, *, least: int = 0, most: int = 1 << 62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _validated(value: Any) -> Encoded:
    _expect(isinstance(value, dict), "not a JSON object")
    _expect(value.get("format") == FORMAT, f"format is {short(value.get('format'))}, not {FORMAT!r}")
    _expect(_is_hash(value.get("data")), "data is not a fingerprint")
    _expect(isinstance(value.get("pictures"), bool), "pictures is neither true nor false")
    sections = value.get("sections")
    _expect(isinstance(sections, dict), "sections is not an object")
    unknown = [name for name in sections if name != CODEC]
    _expect(not unknown, f"it has a section {short(unknown[:1])[1:-1]}, which this version of hdit does not know")
    _expect(CODEC in sections, "it has no section")
    return Encoded(value["data"], value["pictures"], _validated_codec(sections[CODEC]))


def _validated_codec(value: Any) -> CodecFacts:
    _expect(isinstance(value, dict), f"the section {CODEC} is not an object")
    told = {name: value.get(name) for name in CodecFacts.__dataclass_fields__}
    kind, dtype = told["kind"], told["dtype"]
    _expect(isinstance(kind, str) and _KIND.fullmatch(kind) is not None, f"{short(kind)} is not the kind of a codec")
    _expect(_is_hash(told["sha256"]) and _is_hash(told["of"]), "the codec is not named by a hash")
    _expect(isinstance(told["config"], dict), "config is not an object")
    _expect(isinstance(dtype, str) and dtype in DTYPES, f"dtype is {short(dtype)}, not one of {', '.join(DTYPES)}")
    for name, most in _MOST.items():
        least = 0 if name == "vocabulary" else 1
        _expect(_natural(told[name], least=least, most=most), f"{name} is not a number from {least} to {most}")
    for name in ("precision", "device"):
        _expect(isinstance(told[name], str) and _KIND.fullmatch(told[name]) is not None, f"{name} is not a word")
    is_latents = dtype == "float16"
    _expect(is_latents == (told["vocabulary"] == 0), "it tells neither latents nor tokens")
    _expect(told["planes"] == (2 * told["channels"] if is_latents else 1), "planes are not those of its channels")
    if is_latents:
        _check_statistics(told["statistics"], channels=told["channels"])
    _expect(isinstance(told["shards"], list), "shards is not a list")
    shards = [*map(_validated_shard, value["shards"])]
    return CodecFacts(**{**told, "statistics": told["statistics"] if is_latents else {}, "shards": shards})


def _check_statistics(value: Any, *, channels: int) -> None:
    _expect(isinstance(value, dict) and bool(value), "it has no statistics of its latents")
    for name in ("mean", "std"):
        numbers = value.get(name)
        _expect(
            isinstance(numbers, list) and len(numbers) == channels, f"its statistics lack a {name} for each channel"
        )
        _expect(
            all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e30 for n in numbers or ()),
            f"a {name} in its statistics is no number",
        )
    _expect(all(n >= 0 for n in value["std"]), "a std in its statistics is negative")


def _validated_shard(value: Any) -> SectionShard:
    _expect(isinstance(value, dict), "a shard is not an object")
    name, size, digest, table = (value.get(key) for key in SectionShard.__dataclass_fields__)
    _expect(isinstance(name, str), f"{short(name)} is not the name of a file")
    _expect(_natural(size, least=1), f"{short(name)}: bytes is not a positive number")
    _expect(_is_hash(digest), f"{short(name)}: sha256 is not a hash")
    _expect(_natural(table, most=(1 << 32) - 1), f"{short(name)}: table_crc32 is none")
    return SectionShard(name, size, digest, table)


# Writing


def save_encoded(folder: Path, encoded: Encoded) -> None:
    """Writes `encoded.json`."""
    section = asdict(encoded.codec)
    told = {"data": encoded.data, "pictures": encoded.pictures, "sections": {CODEC: section}}
    files.write_json(folder / ENCODED, {"format": FORMAT, **told})


class SectionWriter:
    """Writes the records of one shard, in any order, and the checksums behind them.

    Args:
        sizes: (H, W) of each picture, in the order of the index.
    """

    def __init__(self, handle: BinaryIO, section: CodecFacts, sizes: Sequence[Sequence[int]]) -> None:
        self._handle, self._dtype = handle, np.dtype(DTYPES[section.dtype])
        self._places = offsets(section, sizes)
        self._table = np.zeros((len(sizes), len(VIEWS)), dtype="<u4")

    def add(self, number: int, views: Sequence[np.ndarray]) -> None:
        """The views of picture `number` of the shard, each (planes, h, w) of the section's dtype."""
        data = [np.ascontiguousarray(view, dtype=self._dtype).tobytes() for view in views]
        assert sum(map(len, data)) == self._places[number + 1] - self._places[number], "a record has its own length"
        self._table[number] = [zlib.crc32(view) for view in data]
        self._handle.seek(int(self._places[number]))
        self._handle.write(b"".join(data))

    def close(self) -> int:
        """Writes the checksums; gives theirs."""
        self._handle.seek(int(self._places[-1]))
        table = self._table.tobytes()
        self._handle.write(table)
        return zlib.crc32(table)


def offsets(section: CodecFacts, sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """Where the record of each picture begins in the file of its shard, and where the checksums do: int64 (n + 1,)."""
    known = {tuple(size): len(VIEWS) * section.record_bytes(size) for size in {*map(tuple, sizes)}}
    return np.cumsum([0, *(known[tuple(size)] for size in sizes)], dtype=np.int64)


def file_bytes(section: CodecFacts, sizes: Sequence[Sequence[int]]) -> int:
    """Of the file beside a shard of pictures of these (H, W)."""
    return int(offsets(section, sizes)[-1]) + 4 * len(VIEWS) * len(sizes)
