"""Samples in existing tars (webdataset shards, others' or our own): listed from their headers, never extracted.

Members of one sample share the name up to the first dot. Its class is the text of `.cls`, else what its `.json` says,
else the first folder of its name.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hdit_cli.data.prepare.listing import Entry, Listing, first_folder, is_side_name, utf8
from hdit_cli.data.prepare.places import Place, read_small
from hdit_cli.data.prepare.refused import Refused
from hdit_cli.data.shards import MANIFEST, load_manifest
from hdit_cli.errors import DataError

_LABEL_BYTES = 1 << 16
_JSON_KEYS = ("cls", "class", "class_name", "label")


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


def add_tar(listing: Listing, tar: Path, *, prefix: str, classes: list[str] | None) -> None:
    """Adds the entries of one tar; its defects become refused entries.

    Args:
        listing: is added to.
        tar: the file.
        prefix: goes before the members' names.
        classes: what the indices in `.cls` mean; None = the text itself is the name.
    """
    samples: dict[str, _Sample] = {}
    try:
        for member in _members(tar):
            name = utf8(member.name)
            if not member.isreg() or member.issparse():
                listing.refuse(prefix + name, "not-a-file", "a link, device or sparse member")
                continue
            place = Place(os.fspath(tar), "tar", member.offset_data, member.size)
            entry = Entry(prefix + name, place, mark=member.chksum)
            samples.setdefault(_key(name), _Sample()).add(entry, name, classes)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        listing.refuse(prefix.rstrip("/") or tar.name, "damaged", f"tar: {error}")
    for sample in samples.values():
        listing.entries.extend(sample.labelled())


def _members(tar: Path) -> Iterator[tarfile.TarInfo]:
    """All members but folders; damage in the middle is an error, not an early end."""
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
        while rest := handle.read(1 << 20):  # an archive ends with empty blocks, and with nothing else
            if any(rest):
                raise tarfile.ReadError(f"damaged after byte {end}; what follows was not read")


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


@dataclass
class _Sample:
    """The members that share a key."""

    entries: list[Entry] = field(default_factory=list)
    group: str | None = None
    told: bool = False
    caption: Place | None = None

    def add(self, entry: Entry, name: str, classes: list[str] | None) -> None:
        self.entries.append(entry)
        suffix = os.path.splitext(name)[1].lower()
        if suffix == ".cls":
            entry.code = "label"
            self._label(entry.place, classes)
        elif is_side_name(name):
            entry.code = "caption" if suffix == ".txt" else "side-file"
            self.caption = entry.place if suffix == ".txt" else self.caption
            if suffix == ".json" and classes is None and not self.told:
                self.group = _label_in_json(entry.place) or self.group
        if self.group is None:
            self.group = first_folder(name)

    def _label(self, place: Place | None, classes: list[str] | None) -> None:
        text = _small_text(place).strip()
        if classes is not None:
            text = classes[int(text)] if text.isascii() and text.isdigit() and int(text) < len(classes) else ""
        if text:
            self.group, self.told = text, True

    def labelled(self) -> list[Entry]:
        for entry in self.entries:
            entry.group = self.group
            entry.caption = self.caption if not entry.code else None
        return self.entries


def _small_text(place: Place | None) -> str:
    try:
        return read_small(place, limit=_LABEL_BYTES).decode("utf-8", "replace") if place else ""
    except Refused:  # cut off: the pictures around it get their own verdict
        return ""


def _label_in_json(place: Place | None) -> str | None:
    try:
        value = json.loads(_small_text(place))
    except (ValueError, RecursionError):
        return None
    found = next((value[key] for key in _JSON_KEYS if key in value), None) if isinstance(value, dict) else None
    return str(found) if isinstance(found, (str, int)) and not isinstance(found, bool) and str(found) else None
