"""The one door for writing. A file or folder that appears under its final name is whole and on the disk.

Every operation that changes the disk announces itself to `observer` first, so that a test can kill the process, raise an
errno or record the sequence at any of them.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hdit_cli import owned
from hdit_cli.errors import StorageError, UsageError
from hdit_cli.owned import TEMPORARY, open_regular, read_regular, refuse_link, temporary_name

observer: Callable[[str, str], None] | None = None  # (operation, path), called before the operation; a seam for tests

_LEFT = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "lost+found")
_CHUNK = 1 << 22  # 4 MiB: large enough for the disk, small enough to be interrupted between


def _announce(operation: str, path: str | os.PathLike[str]) -> None:
    if observer is not None:
        observer(operation, os.fspath(path))


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError inside the block into a `StorageError` (exit 74) that names `path`."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space or choose another folder; nothing that was there before is lost",
            errno.EDQUOT: "the disk quota is used up; nothing that was there before is lost",
            errno.EACCES: "check the permissions of the folder, or choose another one",
            errno.EPERM: "check the permissions of the folder, or choose another one",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EFBIG: "the file size limit is reached (ulimit -f); nothing that was there before is lost",
        }
        code = error.errno or 0
        hint = hints.get(code, "check the disk and the path")
        raise StorageError(f"cannot write {path}: {os.strerror(code) if code else error}", hint=hint) from error


def make_folder(path: Path) -> None:
    """Creates a folder and its parents, and makes their names durable; already there is fine.

    Raises:
        UsageError: one of them is a link that leads nowhere.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in missing:
        if folder.is_symlink() and not folder.exists():
            raise UsageError(f"{folder} is a link that leads nowhere", hint="remove it, or make the folder it names")
    with storage_errors(path):
        for folder in reversed(missing):
            _announce("mkdir", folder)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)


def claim_folder(path: Path) -> bool:
    """Creates a folder that was not there; False, and nothing done, where something of that name is."""
    with storage_errors(path):
        _announce("mkdir", path)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        sync_folder(path.parent)
    return True


def make_own_folder(path: Path) -> None:
    """As `make_folder`, inside a folder of ours: a link in its place is refused, by a UsageError."""
    refuse_link(path)
    make_folder(path)


def sync_folder(path: Path) -> None:
    """Makes the names inside a folder durable. Does nothing where folders cannot be opened (Windows)."""
    _announce("fsync-folder", path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, *, size: int) -> None:
    """Raises StorageError unless `size` bytes and a tenth more are free where `folder` lies; before anything is written."""
    with storage_errors(folder):
        _announce("space", folder)
        free = shutil.disk_usage(folder).free
    if free < size * 1.1:
        raise StorageError(
            f"{folder} needs {size * 1.1 / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free",
            hint="free some space or choose another folder; nothing that was there before is lost",
        )


def _write_through(handle: BinaryIO, data: bytes | bytearray | memoryview, path: Path) -> None:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        _announce("write", path)
        handle.write(view[start : start + _CHUNK])
    handle.flush()
    _announce("fsync", path)
    os.fsync(handle.fileno())


def _open_held(temporary: Path) -> tuple[BinaryIO, int | None]:
    """A new file, and what keeps `reap` from it."""
    while True:
        handle: BinaryIO = open(temporary, "wb", opener=owned.new_opener)  # noqa: SIM115 - the caller closes it
        held = owned.hold(handle.fileno())
        if held is None or owned.is_at(held, temporary):
            return handle, held
        handle.close()  # reaped between the two
        owned.release(held)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing that replaces `path`, whole and synced, when the block ends well."""
    temporary, held = temporary_name(path), None
    with storage_errors(path):
        try:
            _announce("open", temporary)
            handle, held = _open_held(temporary)
            with handle:
                yield handle
                handle.flush()
                _announce("fsync", temporary)
                os.fsync(handle.fileno())
            _announce("rename", path)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            owned.release(held)


def write_bytes(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Writes a file whole: temporary name, fsync, rename, fsync of the folder."""
    temporary, held = temporary_name(path), None
    with storage_errors(path):
        try:
            _announce("open", temporary)
            handle, held = _open_held(temporary)
            with handle:
                _write_through(handle, data, temporary)
            _announce("rename", path)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            owned.release(held)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; bytes of a name that are none are escaped as JSON does it, which reads them back."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def json_text(value: Any) -> str:
    """JSON with stable key order as given, two spaces, and no NaN: one text for one value."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `json_text`."""
    write_text(path, json_text(value))


def append_line(path: Path, line: str) -> None:
    """Adds one line to a log in a single write; durable only after `sync_file`."""
    with storage_errors(path):
        _announce("append", path)
        with open(path, "a", encoding="utf-8", opener=owned.opener) as handle:
            handle.write(line + "\n")


def sync_file(path: Path) -> None:
    """Makes what was appended to a file durable, and its name."""
    with storage_errors(path):
        with open(path, "rb+", opener=owned.opener) as handle:
            _announce("fsync", path)
            os.fsync(handle.fileno())
        sync_folder(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cuts a log back to `size` bytes."""
    with storage_errors(path), open(path, "rb+", opener=owned.opener) as handle:
        _announce("truncate", path)
        handle.truncate(size)
        os.fsync(handle.fileno())


def unshare(path: Path) -> None:
    """Gives a file that has names elsewhere too (hard links) a body of its own, so that writing to it changes this one alone."""
    refuse_link(path)
    if path.is_file() and path.stat().st_nlink > 1:
        with storage_errors(path):
            data = path.read_bytes()
        write_bytes(path, data)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends well; its files must be written through this module.

    `path` must not exist. On any error the temporary folder is removed and `path` does not appear.
    """
    stage, held = temporary_name(path), None
    with storage_errors(path):
        try:
            _announce("mkdir", stage)
            while True:
                stage.mkdir(parents=True)
                held = owned.hold_folder(stage)
                if stage.is_dir() and (held is None or owned.is_at(held, stage)):
                    break
                owned.release(held)  # reaped between the two
            yield stage
            sync_folder(stage)
            _announce("rename", path)
            os.rename(stage, path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        finally:
            owned.release(held)


def rename(source: Path, target: Path) -> None:
    """Renames a file or folder within one file system and syncs the folder."""
    with storage_errors(target):
        _announce("rename", target)
        os.rename(source, target)
        sync_folder(target.parent)


def remove_folder(path: Path) -> None:
    """Removes a folder: renamed away first, so that a half-removed one is never mistaken for a whole one.

    Of a link to a folder the link goes, and the folder stays.
    """
    trash = temporary_name(path)
    with storage_errors(path):
        _announce("rename", trash)
        os.rename(path, trash)
        _announce("rmtree", trash)
        if trash.is_symlink():
            trash.unlink()
            return
        try:
            shutil.rmtree(trash)
        except (
            OSError
        ) as error:  # reaped by another process; or NFS keeps a file that is still open: it is reaped later
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
                raise


def remove_file(path: Path) -> None:
    """Removes one file; already gone is fine."""
    with storage_errors(path):
        _announce("unlink", path)
        path.unlink(missing_ok=True)


def reap(folder: Path, *, of: str = "") -> None:
    """Removes what dead processes left under temporary names in `folder`; what a live one is writing stays, whoever it is.

    Args:
        folder: need not exist; if it may be a link, call `refuse_link` before.
        of: only what was to become a name that begins so.
    """
    if not folder.is_dir():
        return
    for leftover in folder.glob(f"{TEMPORARY}{glob.escape(of)}*"):
        with owned.dead(leftover) as dead:
            if not dead:
                continue
            _announce("reap", leftover)
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def real_path(path: Path) -> Path:
    """`path.resolve()`, also where links lead in a circle: then as far as it goes."""
    return Path(os.path.realpath(path))


def left_by_others(name: str) -> bool:
    """Whether a name is of what file systems, desktops and editors leave in any folder: `.nfs0001`, `._a`, `Thumbs.db`, `a~`."""
    return name.startswith((".", "@", "~$")) or name.endswith("~") or name.lower() in _LEFT


def sha256(path: Path) -> str:
    """SHA-256 of a regular file, hexadecimal."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes in memory, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def lock(path: Path, *, what: str, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds a lock, released by the operating system however the process ends.

    Args:
        path: the lock file; it tells the holder's host, pid and start time.
        what: what is locked, for the message.
        shared: any number may hold it so, and meanwhile none for itself alone.
        wait: until it is free, instead of an error.

    Raises:
        UsageError: another process holds it; it was moved or removed, with its folder, this moment; or it is no lock file, but
            a link or something of the user's.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no flock; the README says that two runs in one folder are not told apart there
        yield
        return
    with storage_errors(path):
        handle = open(path, "a+", encoding="utf-8", errors="replace", opener=owned.opener)  # noqa: SIM115 - for as long as the lock
    with handle:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise UsageError(
                f"{what} is in use by {holder}", hint="wait for it to end, stop it, or use another folder"
            ) from error
        except OSError as error:
            raise StorageError(
                f"cannot lock {path}: {error.strerror}", hint="this file system has no locks; use a local folder"
            ) from error
        if not owned.is_at(
            handle.fileno(), path
        ):  # moved with its folder between opening and locking: it locks nothing here
            raise UsageError(f"{what} has just been moved away", hint="start again")
        handle.seek(0)
        written = handle.read(5).strip("\0")  # zeros: the power went
        if not "host ".startswith(written):
            raise UsageError(f"{path} is not a lock file of ours", hint="move it away")
        handle.truncate(0)
        handle.write(f"host {socket.gethostname()} pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        handle.flush()
        yield


def is_held(path: Path) -> bool:
    """Whether the process that `lock` wrote down lives on this machine. Only looks: taking the lock could stop that process."""
    try:
        words = read_regular(path, most=4096).decode("utf-8", "replace").split()
        host, pid = words[1], int(words[3])
    except (OSError, IndexError, ValueError):
        return False
    if os.name != "posix" or host != socket.gethostname() or pid < 1:
        return False
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is someone else's
        return True
    return True
