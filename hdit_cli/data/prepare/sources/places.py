"""Where the bytes of one source file lie, and how they are opened: in a folder, a zip or a tar; never extracted."""

import errno
import functools
import io
import os
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hdit_cli.data.prepare.sources.refused import Refused

LARGEST = 1 << 30  # bytes of one picture taken from an archive into memory


@dataclass(frozen=True)
class Place:
    """One source file.

    Args:
        container: the file itself, or the zip or tar that holds it.
        kind: file, zip or tar.
        position: number in the zip's directory, or offset in the tar in bytes.
        size: in bytes.
    """

    container: str
    kind: str
    position: int
    size: int


def open_place(place: Place) -> BinaryIO:
    """The bytes of one source file, seekable.

    Raises:
        Refused: unreadable, not-a-file, encrypted, damaged, truncated, too-large.
    """
    try:
        if place.kind == "zip":
            return io.BytesIO(_zip_member(place, LARGEST))
        handle = _regular(place.container)
        if place.kind == "file":
            return handle
        with handle:
            return io.BytesIO(_tar_member(handle, place))
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "error")
        raise Refused("unreadable", f"{reason}: {os.strerror(error.errno or errno.EIO)}") from error


def read_small(place: Place, *, limit: int) -> bytes:
    """The first `limit` bytes of a source file.

    Raises:
        Refused: as `open_place`.
    """
    with open_place(place) as stream:
        return stream.read(limit)


def _regular(path: str) -> BinaryIO:
    """Opens a regular file; anything that took its place since the scan is refused instead of waited for."""
    handle = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise Refused("not-a-file", "no longer a regular file")
    return handle


def _tar_member(handle: BinaryIO, place: Place) -> bytes:
    if place.size > LARGEST:
        raise Refused("too-large", f"{place.size} bytes in an archive; unpack it to read it from a folder")
    handle.seek(place.position)
    data = handle.read(place.size)
    if len(data) < place.size:
        raise Refused("truncated", "the tar ends inside this member")
    return data


@functools.lru_cache(maxsize=2)
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(Path(path))


def _zip_member(place: Place, limit: int) -> bytes:
    if place.size > limit:
        raise Refused("too-large", f"{place.size} bytes in an archive; unpack it to read it from a folder")
    try:
        archive = _archive(place.container)
        with archive.open(archive.infolist()[place.position]) as member:
            return member.read(limit)
    except (RuntimeError, NotImplementedError) as error:  # what zipfile raises for a password, or an unknown method
        raise Refused("encrypted" if "password" in str(error) else "unreadable", str(error).split(" <")[0]) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise Refused("damaged", "the zip is damaged at this member") from error
