"""Whose a file is: no link leads away from what we write to, and of a temporary one can see whether its owner still lives.

A temporary is held by an advisory lock (flock) from its making to its renaming. The system lets go of it however its owner
ends, so neither the reuse of a process number nor another thread or container misleads; on another machine it may not be
seen, so the name tells the machine, and what another one left goes only when nothing was written to it for a day.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from hdit_cli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: it lets nobody remove a file that is open
    fcntl = None

TEMPORARY = ".tmp-"
_OURS = re.compile(r"-([0-9a-f]{6})-\d+-[0-9a-f]{8}")  # machine, process, and a number of its own, at the end of a name
_NAME_BYTES = (
    200  # of the final name in that of the temporary: with the rest it stays below the 255 that a name may have
)
_ENDING = 40  # characters in which that is
_LOST = 86_400.0  # seconds
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_CLOSED_IN_CHILDREN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)


# Links


def refuse_link(*paths: Path) -> None:
    """Raises UsageError for the first path that is a link itself, wherever it leads; folders above it may be links."""
    for path in paths:
        if path.is_symlink():
            raise UsageError(
                f"{path} is a link, and what is written there would land elsewhere",
                hint="put what it leads to in its place, or remove the link; the whole folder around it may be a link",
            )


def opener(name: str, flags: int) -> int:
    """For `open(..., opener=)`: a file of ours, never a link's target, a pipe or a device.

    Raises:
        UsageError: something of that kind is in its place.
    """
    try:
        descriptor = os.open(name, flags | _NO_LINK | _NO_WAIT | _CLOSED_IN_CHILDREN, 0o666)
    except OSError:
        refuse_link(Path(name))
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{name} is not a plain file", hint="a pipe or a device lies there: remove it")
    return descriptor


def new_opener(name: str, flags: int) -> int:
    """As `opener`, for a file that must not be there yet."""
    return opener(name, flags | os.O_EXCL)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is what has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


# Temporaries


def temporary_name(path: Path) -> Path:
    """A name beside `path`, on the same file system, that no other thread or process ever chooses."""
    shown = path.name.encode(errors="surrogateescape")[:_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f"{TEMPORARY}{shown}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}")


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def hold(descriptor: int) -> int | None:
    """Marks an open file or folder as in work until the descriptor that is returned is closed; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # who looks whether it is dead has it for a moment alone
        return os.dup(descriptor)
    except OSError:
        return None


def hold_folder(path: Path) -> int | None:
    """As `hold`, of a folder that was just made; None also where `reap` has taken it this moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK | _CLOSED_IN_CHILDREN)
    except OSError:  # Windows opens no folders
        return None
    held = hold(descriptor)
    os.close(descriptor)
    return held


def release(held: int | None) -> None:
    """Ends what `hold` began."""
    if held is not None:
        with contextlib.suppress(OSError):
            os.close(held)


@contextlib.contextmanager
def dead(path: Path) -> Iterator[bool]:
    """Whether nobody is at work on a temporary any more; so it stays within the block, in which it may be removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT | _CLOSED_IN_CHILDREN)
    except OSError:
        # a link that was on its way out is never followed; the rest was renamed meanwhile, or is another user's
        yield path.is_symlink()
        return
    try:
        yield _is_dead(descriptor, path)
    finally:
        os.close(descriptor)


def _is_dead(descriptor: int, path: Path) -> bool:
    try:
        if fcntl is None:
            return _is_old(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return _is_old(path)
    made = _OURS.search(path.name[-_ENDING:])
    here = made is None or made[1] == _machine()
    return is_at(descriptor, path) and (here or _is_old(path))


def _is_old(path: Path) -> bool:
    """Whether nothing in it was written for a day."""
    try:
        inside = list(path.rglob("*")) if path.is_dir() else []
        return max(entry.lstat().st_mtime for entry in (path, *inside)) < time.time() - _LOST
    except OSError:
        return False


# Reading what may be anything


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a file for reading; a pipe, a device or a folder is an OSError (EINVAL), and not waited for."""

    def unblocked(name: str, _: int) -> int:
        return os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))

    handle = open(path, "rb", opener=unblocked)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return handle


def read_regular(path: str | os.PathLike[str], *, most: int) -> bytes:
    """The content of a regular file of up to `most` bytes; anything else is an OSError."""
    with open_regular(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, expected at most {most}", os.fspath(path))
        return handle.read()
