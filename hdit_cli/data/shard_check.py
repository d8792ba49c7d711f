"""A whole shard, byte by byte: its hash, its index, and whether the tar holds what the index tells and nothing else.

The reader needs less: it takes pictures by the index alone. What it never reads (headers, padding, the other members) is
looked at only here. A shard holds samples in ascending order of their keys; the members of one stand together, the
picture first; the text of `.cls` is the label in the index; every header is exactly as it is written by `shards`.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hdit_cli import files
from hdit_cli.data import shard_index, shards
from hdit_cli.data.shards import Manifest, ShardInfo
from hdit_cli.errors import DataError

_NAME = re.compile(r"([0-9]{9,})(\.[a-z]+)")
_BESIDE = (".json", ".cls", ".txt")  # what may follow the picture of a sample, each once
_CHUNK = 1 << 22


class _Wrong(Exception):
    """What is wrong with a shard, in words."""


@dataclass(frozen=True)
class _Member:
    key: int
    suffix: str
    offset: int  # of its content
    size: int


def shard_problem(folder: Path, shard: ShardInfo, manifest: Manifest, *, after: int = -1) -> tuple[str, int]:
    """Reads one shard completely.

    Args:
        after: the last key of the shard before; those of this one are larger.

    Returns:
        One sentence, "" where the shard is whole; and its last key, as far as it could be read.
    """
    path = folder / shard.name
    reached = [after]
    try:
        index = shard_index.read_index(folder, shard, buckets=manifest.buckets)
        size = path.stat().st_size
        if size != shard.bytes:
            raise _Wrong(f"has {size} bytes, not {shard.bytes} as its manifest tells")
        is_as_written = files.sha256(path) == shard.sha256
        with open(path, "rb") as handle:
            _check_pictures(handle, index)
            _check_members(handle, index, reached, end=size)
        if not is_as_written:
            raise _Wrong("has changed since it was written, outside of its pictures")
        if int(index["label"].max()) >= max(1, len(manifest.classes)):
            raise _Wrong("has a label in its index that stands for no class")
    except _Wrong as wrong:
        return str(wrong), reached[0]
    except OSError as error:
        return f"cannot be read: {error.strerror}", reached[0]
    except DataError as error:
        return error.message, reached[0]
    return "", reached[0]


def _check_pictures(handle: BinaryIO, index: np.ndarray) -> None:
    damaged = []
    for number, record in enumerate(index):
        handle.seek(int(record["offset"]))
        if zlib.crc32(handle.read(int(record["size"]))) != record["crc32"]:
            damaged.append(number)
    if damaged:
        others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise _Wrong(f"has changed since it was written: picture {damaged[0]}{others} is not what its index tells")


def _check_members(handle: BinaryIO, index: np.ndarray, reached: list[int], *, end: int) -> None:
    number, label = -1, None
    seen: set[str] = set(_BESIDE)
    for member in _members(handle, end=end):
        if member.suffix in shards.PICTURE_SUFFIXES:
            _check_label(index, number, label)
            number, label = number + 1, None
            seen.clear()
            if member.key <= reached[0]:
                raise _Wrong(f"has the key {member.key:09d} twice, or out of order")
            reached[0] = member.key
            _check_record(index, number, member)
        elif member.key != reached[0] or member.suffix in seen:
            raise _Wrong(f"has a second {member.key:09d}{member.suffix}, or one apart from its picture")
        else:
            seen.add(member.suffix)
        if member.suffix == ".cls":
            handle.seek(member.offset)
            label = handle.read(member.size)
    _check_label(index, number, label)
    if number + 1 != len(index):
        raise _Wrong(f"has {number + 1} pictures, and {len(index)} in its index")


def _check_record(index: np.ndarray, number: int, member: _Member) -> None:
    if number >= len(index):
        raise _Wrong(f"has more pictures than the {len(index)} of its index")
    if (int(index[number]["offset"]), int(index[number]["size"])) != (member.offset, member.size):
        raise _Wrong(f"has picture {member.key:09d} elsewhere than record {number} of its index tells")


def _check_label(index: np.ndarray, number: int, label: bytes | None) -> None:
    """Compares the text of `.cls` (None = there is none) with the record of the same sample."""
    if number < 0:
        return
    told = int(index[number]["label"])
    if (None if told == shards.NO_LABEL else str(told).encode()) != label:
        raise _Wrong(f"has another label for record {number} than its index")


def _members(handle: BinaryIO, *, end: int) -> Iterator[_Member]:
    """All members of a tar that was written by `shards`, and by nothing else."""
    position = 0
    while True:
        handle.seek(position)
        block = handle.read(tarfile.BLOCKSIZE)
        if not any(block):
            break
        member = _parsed(block, position)
        yield member
        stop = member.offset + member.size
        position = stop + -stop % tarfile.BLOCKSIZE
        handle.seek(stop)
        if position > end or any(handle.read(position - stop)):
            raise _Wrong(f"is damaged after byte {stop}")
    handle.seek(position, os.SEEK_SET)
    while rest := handle.read(_CHUNK):
        if any(rest):
            raise _Wrong(f"is damaged after byte {position}")


def _parsed(block: bytes, position: int) -> _Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        match = _NAME.fullmatch(info.name)
        if match and match[2] in (*shards.PICTURE_SUFFIXES, *_BESIDE) and shards.header(info.name, info.size) == block:
            return _Member(int(match[1]), match[2], position + tarfile.BLOCKSIZE, info.size)
    except (
        tarfile.HeaderError,
        ValueError,
        AssertionError,
    ):  # no header, or not of a name or size that is ever written
        pass
    raise _Wrong(f"has something at byte {position} that is no member of a sample")
