"""The data set on the disk: tars in webdataset layout, an index beside each, one manifest ("hdit-shards/1").

A shard `00000.tar` holds per sample `<9-digit key>.jpg|webp|png`, `.json`, and `.cls` and `.txt` where there is a label
or a caption. `00000.idx` has one little-endian record of 20 bytes per picture, so that a sample is one `pread` away;
where pictures are of several sizes (aspect-ratio buckets), 24 bytes, the last four being height and width.
Headers carry no time, no owner: the bytes are a function of the samples alone.
"""

import contextlib
import functools
import hashlib
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from reprlib import repr as short  # also of a name of 100 MB
from typing import Any, BinaryIO

from hdit_cli import files
from hdit_cli.errors import DataError

FORMAT = "hdit-shards/1"
MANIFEST = "manifest.json"
HELD_OUT = "held-out"  # folder inside a data set: a data set of the pictures that are never trained on
NO_LABEL = -1

# offset and size of the picture's bytes inside the tar, their CRC-32, and the class index (-1 = none)
_RECORD = struct.Struct("<QIIi")
# of a data set with buckets: height and width of the picture too
_SIZED_RECORD = struct.Struct("<QIIiHH")

PICTURE_SUFFIXES = (".jpg", ".webp", ".png")

_LARGEST_MANIFEST = 1 << 26  # bytes; 300,000 shards
_LARGEST_SIDE = 1 << 16  # pixels

_SHARD_NAME = re.compile(r"[0-9]{5,9}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can hold it, no file or terminal can
MADE_BY = "make the data set again with `hdit prepare`"


@dataclass(frozen=True)
class ShardInfo:
    """One shard: file name of its tar, number of samples, size of the tar in bytes, SHA-256 of the tar.

    `index_crc32` is the CRC-32 of the whole index beside it; None in data sets that were made before there was one.
    """

    name: str
    count: int
    bytes: int
    sha256: str
    index_crc32: int | None = None


@dataclass(frozen=True)
class Bucket:
    """The pictures of one size [H, W], in a data set that holds several sizes."""

    size: list[int]
    count: int


@dataclass(frozen=True)
class Manifest:
    """What a data set is.

    `image_size` is [H, W] in pixels; `classes` in the order of their indices; `source` and `options` tell what it was
    made from and how. With `buckets` the pictures are of these sizes, from tall to wide, each holding one or more, and
    `image_size` is the one that they were made around.
    """

    count: int
    classes: list[str]
    image_size: list[int]
    shards: list[ShardInfo]
    source: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    buckets: list[Bucket] = field(default_factory=list)


def buckets_of(counts: Mapping[tuple[int, int], int]) -> list[Bucket]:
    """Buckets from the number of pictures of each size (H, W), in the order of a manifest: by width / height."""
    sizes = sorted(counts, key=lambda size: (Fraction(size[1], size[0]), size))
    return [Bucket(size=list(size), count=counts[size]) for size in sizes if counts[size]]


def shard_name(number: int) -> str:
    """File name of the tar of shard `number`."""
    return f"{number:05d}.tar"


def index_path(folder: Path, shard: ShardInfo) -> Path:
    """The index beside a shard's tar."""
    return (folder / shard.name).with_suffix(".idx")


# Reading


def load_manifest(folder: Path) -> Manifest:
    """Reads and checks `manifest.json`; the shards themselves are not touched.

    Raises:
        DataError: missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        raw = files.read_regular(path, most=_LARGEST_MANIFEST)
    except FileNotFoundError as error:
        what = f"no {MANIFEST} in {folder}" if folder.is_dir() else f"no data set at {folder}"
        raise DataError(what, hint=f"hdit prepare YOUR_PICTURES --out {folder}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    try:
        return _validated(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON", hint=MADE_BY) from error
    except _Invalid as error:
        raise DataError(f"{path}: {error}", hint=MADE_BY) from error


class _Invalid(Exception):
    """What is wrong with a manifest, in words."""


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise _Invalid(what)


def _natural(value: Any, *, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _validated(value: Any) -> Manifest:
    _expect(isinstance(value, dict), "not a JSON object")
    _expect(value.get("format") == FORMAT, f"format is {short(value.get('format'))}, not {FORMAT!r}")
    classes, size, shards = (value.get(key) for key in ("classes", "image_size", "shards"))
    _expect(
        isinstance(classes, list) and all(isinstance(name, str) and not _HALF.search(name) for name in classes),
        "classes is not a list of names",
    )
    _expect(len(set(classes)) == len(classes), "a class is named twice")
    _expect(
        isinstance(size, list) and len(size) == 2 and all(_natural(n, least=1) and n < _LARGEST_SIDE for n in size),
        "image_size is not [H, W]",
    )
    _expect(isinstance(shards, list), "shards is not a list")
    infos = [_validated_shard(shard) for shard in shards]
    _expect(len({info.name for info in infos}) == len(infos), "a shard is named twice")
    _expect(_natural(value.get("count"), least=1), "count is not a positive number")
    _expect(value["count"] == sum(info.count for info in infos), "count is not the sum over the shards")
    extra = {key: value.get(key, {}) for key in ("source", "options")}
    _expect(all(isinstance(entry, dict) for entry in extra.values()), "source or options is not an object")
    buckets = _validated_buckets(value["buckets"], count=value["count"]) if "buckets" in value else []
    return Manifest(count=value["count"], classes=classes, image_size=size, shards=infos, buckets=buckets, **extra)


def _validated_buckets(value: Any, *, count: int) -> list[Bucket]:
    _expect(isinstance(value, list) and bool(value), "buckets is not a list of sizes and counts")
    for bucket in value:
        size, number = (bucket.get(key) for key in ("size", "count")) if isinstance(bucket, dict) else (None, None)
        _expect(
            isinstance(size, list) and len(size) == 2 and all(_natural(n, least=1) and n < _LARGEST_SIDE for n in size),
            "the size of a bucket is not [H, W]",
        )
        _expect(_natural(number, least=1), "the count of a bucket is not a positive number")
    buckets = [Bucket(size=bucket["size"], count=bucket["count"]) for bucket in value]
    _expect(len({tuple(bucket.size) for bucket in buckets}) == len(buckets), "a bucket is named twice")
    _expect(count == sum(bucket.count for bucket in buckets), "count is not the sum over the buckets")
    return buckets


def _validated_shard(value: Any) -> ShardInfo:
    _expect(isinstance(value, dict), "a shard is not an object")
    name, count, size, digest = (value.get(key) for key in ("name", "count", "bytes", "sha256"))
    _expect(
        isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None, f"{short(name)} is not the name of a shard"
    )
    _expect(_natural(count, least=1) and _natural(size, least=1), f"{name}: count or bytes is not a positive number")
    _expect(isinstance(digest, str) and _SHA256.fullmatch(digest) is not None, f"{name}: sha256 is not a hash")
    index_crc32 = value.get("index_crc32")
    _expect(index_crc32 is None or (_natural(index_crc32) and index_crc32 < 1 << 32), f"{name}: index_crc32 is none")
    return ShardInfo(name=name, count=count, bytes=size, sha256=digest, index_crc32=index_crc32)


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 over the shards' hashes and the classes: the same where pictures, order and labels are the same."""
    told = {"shards": [shard.sha256 for shard in manifest.shards], "classes": manifest.classes}
    return hashlib.sha256(json.dumps(told, ensure_ascii=True).encode()).hexdigest()


# Writing


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`; the last file of a data set, its presence means that all others are whole."""
    told = asdict(manifest)
    if not manifest.buckets:
        del told["buckets"]
    for shard in told["shards"]:
        if shard["index_crc32"] is None:
            del shard["index_crc32"]
    files.write_json(folder / MANIFEST, {"format": FORMAT, **told})


class ShardWriter:
    """Appends samples to one tar, and keeps the index and the hash of what it wrote.

    Args:
        sized: the index tells the size of each picture.
    """

    def __init__(self, handle: BinaryIO, *, sized: bool = False) -> None:
        self._handle = handle
        self._record = _SIZED_RECORD if sized else _RECORD
        self._hash = hashlib.sha256()
        self._position = 0
        self._index = bytearray()

    @property
    def count(self) -> int:
        return len(self._index) // self._record.size

    def add(
        self, key: int, members: dict[str, bytes], *, label: int = NO_LABEL, size: tuple[int, int] = (0, 0)
    ) -> None:
        """Appends one sample.

        Args:
            key: number of the sample in the whole data set.
            members: suffix (".jpg") => bytes, in the order to be written; the picture first.
            label: class index, -1 = none.
            size: (H, W) of the picture; written where the writer is `sized`.
        """
        pieces = []
        for suffix, data in members.items():
            pieces += [header(f"{key:09d}{suffix}", len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)]
        picture = pieces[1]
        record = (self._position + len(pieces[0]), len(picture), zlib.crc32(picture), label, *size)
        self._index += self._record.pack(*(record if self._record is _SIZED_RECORD else record[:4]))
        self._write(b"".join(pieces))

    def close(self) -> None:
        """Writes the end of the archive: two empty blocks, filled up to a whole record of 10,240 bytes."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self._position + end) % tarfile.RECORDSIZE))

    def info(self, name: str) -> ShardInfo:
        return ShardInfo(
            name=name,
            count=self.count,
            bytes=self._position,
            sha256=self._hash.hexdigest(),
            index_crc32=zlib.crc32(self.index()),
        )

    def index(self) -> bytes:
        return bytes(self._index)

    def _write(self, data: bytes) -> None:
        self._handle.write(data)
        self._hash.update(data)
        self._position += len(data)


def place_in(index: bytes, number: int, *, sized: bool) -> tuple[int, int]:
    """Offset and size in bytes of one picture inside its shard, by the index of this shard as it was just written."""
    record = _SIZED_RECORD if sized else _RECORD
    return record.unpack_from(index, number * record.size)[:2]


@functools.cache
def _frame() -> tuple[bytes, bytes, int]:
    """What is the same in every header, before the size and behind the checksum, and the sum over both."""
    member = tarfile.TarInfo()
    member.mode = 0o644  # mtime, uid and gid stay 0, the names of owner and group empty
    block = member.tobuf(format=tarfile.USTAR_FORMAT)
    before, time, behind = block[100:124], block[136:148], block[156:]
    return before, time + b"%06o\0 " + behind, sum(before + time + behind) + 8 * ord(" ")


def header(name: str, size: int) -> bytes:
    """The block before a member, as it is always written (ustar). `tarfile` alone would take 20 times as long for each."""
    assert len(name) < 100 and size < 8**11, "keys are short, and pictures under 8 GiB"
    before, behind, total = _frame()
    told, length = name.encode("ascii"), b"%011o\0" % size
    return told.ljust(100, b"\0") + before + length + behind % (total + sum(told) + sum(length))


@contextlib.contextmanager
def writing_shard(folder: Path, number: int, *, sized: bool = False) -> Iterator[ShardWriter]:
    """Yields a writer; tar and index appear under their names, whole, when the block ends well.

    Args:
        sized: of a data set with buckets.
    """
    path = folder / shard_name(number)
    with files.replacing(path) as handle:
        writer = ShardWriter(handle, sized=sized)
        yield writer
        writer.close()
    files.write_bytes(path.with_suffix(".idx"), writer.index())
