"""The indices of a data set, as tables: where each picture lies in its shard, its checksum, its label, its size.

Apart from `shards`, which writes them, because a table takes numpy, and numpy takes a fifth of a second to be imported.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hdit_cli import files
from hdit_cli.data.shards import MADE_BY, MANIFEST, NO_LABEL, Bucket, Manifest, ShardInfo, index_path
from hdit_cli.errors import DataError

# offset and size of the picture's bytes inside the tar, their CRC-32, and the class index (-1 = none)
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("label", "<i4")])
# of a data set with buckets: the size of the picture in pixels too
SIZED_INDEX_DTYPE = np.dtype([*INDEX_DTYPE.descr, ("height", "<u2"), ("width", "<u2")])


def read_index(folder: Path, shard: ShardInfo, *, buckets: Sequence[Bucket] = ()) -> np.ndarray:
    """The index of one shard.

    Args:
        buckets: of the manifest; every record tells the size of one of them.

    Returns:
        INDEX_DTYPE (count,), with buckets SIZED_INDEX_DTYPE (count,), in the order of the keys.

    Raises:
        DataError: missing, or not the index of this shard.
    """
    path, dtype = index_path(folder, shard), SIZED_INDEX_DTYPE if buckets else INDEX_DTYPE
    index = np.frombuffer(_index_bytes(folder, shard, dtype), dtype=dtype)
    inside = _inside(index, shard.bytes)
    if not inside.all():
        raise DataError(f"{path} is damaged: record {int(np.argmin(inside))} points outside its shard", hint=MADE_BY)
    known = _of_buckets(index, buckets) if buckets else inside
    if not known.all():
        raise DataError(f"{path} is damaged: record {int(np.argmin(known))} has the size of no bucket", hint=MADE_BY)
    return index


def read_indices(folder: Path, manifest: Manifest) -> np.ndarray:
    """The indices of all shards, one after the other: as `read_index` of each, and checked in one go.

    Returns:
        INDEX_DTYPE (N,), with buckets SIZED_INDEX_DTYPE (N,).

    Raises:
        DataError: as `read_index`.
    """
    dtype = SIZED_INDEX_DTYPE if manifest.buckets else INDEX_DTYPE
    raw = b"".join(_index_bytes(folder, shard, dtype) for shard in manifest.shards)
    index = np.frombuffer(raw, dtype=dtype)
    ends = np.repeat([shard.bytes for shard in manifest.shards], [shard.count for shard in manifest.shards])
    if not _inside(index, ends).all() or (manifest.buckets and not _of_buckets(index, manifest.buckets).all()):
        for shard in manifest.shards:
            read_index(folder, shard, buckets=manifest.buckets)  # tells where
    return index


def _index_bytes(folder: Path, shard: ShardInfo, dtype: np.dtype) -> bytes:
    path = index_path(folder, shard)
    size = shard.count * dtype.itemsize
    try:
        raw = files.read_regular(path, most=size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint=MADE_BY) from error
    if len(raw) < size:
        raise DataError(f"{path} is damaged: {len(raw)} bytes for {shard.count} pictures", hint=MADE_BY)
    if shard.index_crc32 is not None and zlib.crc32(raw) != shard.index_crc32:
        raise DataError(f"{path} is damaged: its checksum is not the one in {MANIFEST}", hint=MADE_BY)
    return raw


def _inside(index: np.ndarray, end: np.ndarray | int) -> np.ndarray:
    """Which records lie inside a shard of so many bytes, and have a label."""
    ends = index["offset"] + index["size"]
    return (ends >= index["offset"]) & (ends <= end) & (index["label"] >= NO_LABEL)


def _of_buckets(index: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    return np.isin(size_codes(index), [_size_code(*bucket.size) for bucket in buckets])


def size_codes(index: np.ndarray) -> np.ndarray:
    """One number for each record of an index with sizes, the same where the sizes are: int64 (N,)."""
    return _size_code(index["height"].astype(np.int64), index["width"].astype(np.int64))


def _size_code(height: Any, width: Any) -> Any:
    return height << 16 | width


def bucket_numbers(index: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """Which bucket each record of an index with sizes belongs to: uint16 (N,), numbers in `buckets`."""
    codes = np.array([_size_code(*bucket.size) for bucket in buckets])
    order = np.argsort(codes)
    return order[np.searchsorted(codes, size_codes(index), sorter=order)].astype(np.uint16)
