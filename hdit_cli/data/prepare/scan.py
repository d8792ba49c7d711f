"""Finds what is in a source. The first folder of a path is the class; the label of a sample in a tar goes before it.

Nothing is opened here but directories (of folders, zips and tars) and the small label members of tars. What cannot be a
picture gets its verdict at sight: side files, and what is not a regular file.
"""

import errno
import os
import stat
import zipfile
from pathlib import Path
from typing import NamedTuple

from hdit_cli.data.prepare.listing import Entry, Listing, first_folder, is_side_name, utf8
from hdit_cli.data.prepare.places import Place
from hdit_cli.data.prepare.tars import add_tar, own_shards
from hdit_cli.errors import DataError

_HINT = "give a folder of pictures, a .zip, or a .tar"


def scan(source: Path) -> Listing:
    """Lists a folder of pictures, a zip, a tar, or a folder of tars.

    Raises:
        DataError: missing, unreadable, none of these, or empty.
    """
    try:
        status = os.stat(source)
    except OSError as error:
        raise DataError(f"cannot find the source {source}: {error.strerror}", hint=_HINT) from error
    if stat.S_ISDIR(status.st_mode):
        listing = _scan_folder(source)
    elif not stat.S_ISREG(status.st_mode):
        raise DataError(f"the source {source} is neither a folder nor a file", hint=_HINT)
    else:
        listing = _scan_archive(source)
        listing.newest = status.st_mtime
    if not listing.entries:
        raise DataError(f"the source {source} is empty", hint=_HINT)
    return listing.finish()


def source_name(source: Path) -> str:
    """What a source is called: the folder's name, or the archive's without its suffix."""
    resolved = source.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem


# Folders


class _Ancestors(NamedTuple):
    """The (device, inode) of a folder and of all above it."""

    identity: tuple[int, int]
    above: "_Ancestors | None"

    def hold(self, identity: tuple[int, int]) -> bool:
        link: _Ancestors | None = self
        while link is not None:
            if link.identity == identity:
                return True
            link = link.above
        return False


def _scan_folder(root: Path) -> Listing:
    shards = own_shards(root)
    if shards is not None:
        listing = Listing("tar", source_name(root))
        for name in shards.names:
            add_tar(listing, root / name, prefix=f"{name}/", classes=shards.classes)
            listing.newest = max(listing.newest, os.stat(root / name).st_mtime if (root / name).exists() else 0.0)
        return listing
    listing = Listing("folder", source_name(root))
    _walk(listing, root)
    tars = [entry for entry in listing.entries if _is_tar(entry)]
    if tars:
        listing.kind = "tar"
        listing.entries = [entry for entry in listing.entries if not _is_tar(entry)]
        for entry in tars:
            assert entry.place is not None, "a tar was seen as a regular file"
            add_tar(listing, Path(entry.place.container), prefix=f"{entry.path}/", classes=None)
    return listing


def _is_tar(entry: Entry) -> bool:
    return entry.place is not None and "/" not in entry.path and entry.path.lower().endswith(".tar")


def _walk(listing: Listing, root: Path) -> None:
    """Every name under a folder; symbolic links are followed, but not in circles."""
    base = os.fsencode(root)
    status = os.stat(root)
    pending = [(b"", _Ancestors((status.st_dev, status.st_ino), None))]
    while pending:
        relative, ancestors = pending.pop()
        try:
            names = os.listdir(os.path.join(base, relative))
        except OSError as error:
            listing.refuse(_told(relative) or ".", "unreadable", error.strerror or "")
            continue
        for name in names:
            path = os.path.join(relative, name)
            deeper = _visit(listing, base, path, ancestors)
            if deeper is not None:
                pending.append((path, deeper))


def _visit(listing: Listing, base: bytes, path: bytes, ancestors: _Ancestors) -> _Ancestors | None:
    """Adds the entry of one name, or returns the ancestors that its own names will have."""
    full, name = os.path.join(base, path), _told(path)
    try:
        status = os.stat(full)  # opens nothing, so a FIFO cannot block it
    except OSError as error:
        codes = {errno.ELOOP: "symlink-loop", errno.ENOENT: "broken-link"}
        listing.refuse(name, codes.get(error.errno or 0, "unreadable"), error.strerror or "")
        return None
    if stat.S_ISDIR(status.st_mode):
        identity = (status.st_dev, status.st_ino)
        if not ancestors.hold(identity):
            return _Ancestors(identity, ancestors)
        listing.refuse(name, "symlink-loop", "leads back to a folder above it")
    elif stat.S_ISREG(status.st_mode):
        place = Place(os.fsdecode(full), "file", 0, status.st_size)
        code = "side-file" if is_side_name(name) else ""
        listing.entries.append(Entry(name, place, group=first_folder(name), code=code))
        listing.newest = max(listing.newest, status.st_mtime)
    else:
        listing.refuse(name, "not-a-file", "a pipe, socket or device")
    return None


def _told(path: bytes) -> str:
    return utf8(path.replace(os.fsencode(os.sep), b"/"))


# Archives


def _scan_archive(source: Path) -> Listing:
    name = source_name(source)
    suffix = source.suffix.lower()
    if suffix == ".zip" or (suffix != ".tar" and zipfile.is_zipfile(source)):
        listing = Listing("zip", name)
        _add_zip(listing, source)
        return listing
    listing = Listing("tar", name)
    add_tar(listing, source, prefix="", classes=None)
    if len(listing.entries) == 1 and listing.entries[0].path == source.name and listing.entries[0].code:
        raise DataError(f"the source {source} cannot be read: {listing.entries[0].detail}", hint=_HINT)
    return listing


def _add_zip(listing: Listing, source: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"the source {source} is not a zip that can be read: {error}", hint=_HINT) from error
    names = [utf8(member.filename.replace("\\", "/")) for member in members]
    wrapper = _wrapper(names, listing.name)
    for number, (member, name) in enumerate(zip(members, names, strict=True)):
        if member.is_dir():
            continue
        if ".." in name.split("/") or name.startswith("/"):
            listing.refuse(name, "bad-path", "leads out of the archive")
            continue
        place = Place(os.fspath(source), "zip", number, member.file_size)
        code = "side-file" if is_side_name(name) else ""
        group = first_folder(name.removeprefix(wrapper))
        listing.entries.append(Entry(name, place, group=group, code=code, mark=member.CRC))


def _wrapper(names: list[str], stem: str) -> str:
    """The one folder around everything, called like the zip, that packing a folder makes; it is no class."""
    tops = {name.partition("/")[0] for name in names if "/" in name and not name.startswith("__MACOSX/")}
    loose = any("/" not in name for name in names)
    return f"{stem}/" if tops == {stem} and not loose else ""
