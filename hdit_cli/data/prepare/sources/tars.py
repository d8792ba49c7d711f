"""Existing tars (webdataset shards, others' or our own): listed from their headers, never extracted."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hdit_cli.data.prepare.facts.paths import utf8
from hdit_cli.data.prepare.sources.listing import Entry, FileSource
from hdit_cli.data.prepare.sources.passed_over import PASSED_OVER, passed_over
from hdit_cli.data.prepare.sources.places import Place
from hdit_cli.data.prepare.sources.samples import NOT_A_FILE, Member, give_labels
from hdit_cli.data.shards import MANIFEST, load_manifest
from hdit_cli.errors import DataError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class OwnShards:
    """The tars of a data set of ours, and what its class indices mean."""

    names: list[str]
    classes: list[str]


def own_shards(folder: Path) -> OwnShards | None:
    """The shards of a data set made by prepare, or None where the folder is none."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = load_manifest(folder)
    except DataError:  # a manifest of something else
        return None
    return OwnShards(names=[shard.name for shard in manifest.shards], classes=manifest.classes)


class TarSource(FileSource):
    """One tar. A folder around everything that is called like the tar is no class."""

    kind = "tar"
    by_value = True

    def entries(self) -> Iterator[Entry]:
        entries = tar_entries(self._path, prefix="", classes=None, name=self.name)
        if len(entries) == 1 and entries[0].path == self._path.name and entries[0].code:
            hint = "give a folder of pictures, a .zip, or a .tar"
            raise DataError(f"the source {self._path} cannot be read: {entries[0].detail}", hint=hint)
        return iter(entries)


class OwnSource:
    """A data set that was made by prepare: its pictures in their order, with the classes in theirs."""

    kind = "tar"
    by_value = True

    def __init__(self, folder: Path, shards: OwnShards) -> None:
        self.name = utf8(folder.resolve().name)
        self.newest = 0.0
        self.classes: list[str] | None = shards.classes
        self.listed: list[str] = []
        self._folder = folder
        self._shards = shards

    def entries(self) -> Iterator[Entry]:
        for name in sorted(self._shards.names, key=lambda name: f"{name}/"):
            tar = self._folder / name
            yield from tar_entries(tar, prefix=f"{name}/", classes=self._shards.classes)
            self.newest = max(self.newest, os.stat(tar).st_mtime if tar.exists() else 0.0)


def tar_entries(tar: Path, *, prefix: str, classes: list[str] | None, name: str = "") -> list[Entry]:
    """The entries of one tar, in the order of the bytes of their paths; its defects are refused entries.

    Args:
        tar: the file.
        prefix: goes before the members' names.
        classes: what the indices in `.cls` mean; None = the text itself is the name.
        name: of the source, where the tar is one.
    """
    entries: list[Entry] = []
    members: list[Member] = []
    over: set[str] = set()
    is_cut = False
    try:
        for member in _members(tar):
            told = utf8(member.name)
            if part := passed_over(told):
                over.add(part)
                continue
            if not member.isreg() or member.issparse():
                refused = Entry(prefix + told, None, code=NOT_A_FILE, detail="a link, device or sparse member")
                members.append(Member(told, refused))
                continue
            place = Place(os.fspath(tar), "tar", member.offset_data, member.size)
            members.append(Member(told, Entry(prefix + told, place, mark=member.chksum)))
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        entries.append(Entry(prefix.rstrip("/") or tar.name, None, code="damaged", detail=f"tar: {error}"))
        is_cut = True
    give_labels(members, classes=classes, name=name, is_cut=is_cut)
    entries += [member.entry for member in members]
    entries += [Entry(prefix + part, None, code=PASSED_OVER) for part in over]
    return sorted(entries, key=lambda entry: entry.path)


def _members(tar: Path) -> Iterator[tarfile.TarInfo]:
    """All members but folders; damage in the middle is an error, not an early end."""
    with open(tar, "rb") as handle:
        head = handle.read(8)
    packed = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
    if packed:
        raise tarfile.ReadError(f"compressed with {packed}; unpack it first")
    with tarfile.open(tar, "r:") as archive:
        reached = -1
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            if archive.offset <= reached or member.size < 0:
                raise tarfile.ReadError(f"damaged at byte {member.offset}")
            reached = archive.offset
            if not member.isdir():
                yield member
        end = archive.offset
    with open(tar, "rb") as handle:
        handle.seek(end)
        rest = handle.read(tarfile.BLOCKSIZE)
        if not rest:
            raise tarfile.ReadError("ends without the mark of an end: it may have been cut off")
        while rest:  # an archive ends with empty blocks, and with nothing else
            if any(rest):
                raise tarfile.ReadError(f"damaged after byte {end}; what follows was not read")
            rest = handle.read(1 << 20)
