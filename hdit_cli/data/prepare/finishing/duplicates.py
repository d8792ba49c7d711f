"""Pictures that are equal as prepared, found by the digests of their encoded bytes, and taken out of shards.

Equal pictures are found among a part of all digests at a time, so memory does not grow with their number; what is kept
of each duplicate is a string of 17 bytes.
"""

import struct
import tarfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from hdit_cli import files
from hdit_cli.data.prepare.finishing.numbering import Numbering, numbering_of
from hdit_cli.data.prepare.making.plan import Plan
from hdit_cli.data.prepare.making.task import SIDES, Picture, Record, record_path, write_record
from hdit_cli.data.shards import NO_LABEL, index_path, shard_name, writing_shard

_AT_ONCE = 1 << 19  # pictures whose digests are in memory, 40 MB

_SEEN = struct.Struct(
    ">16sIIB"
)  # digest, task, row, held out: sorted as bytes, equal pictures stand together, in order
_FOUND = struct.Struct(">IIIIB")  # of a duplicate: task and row, those of the first that is equal, on the other side


class Double(NamedTuple):
    """A picture equal to an earlier one: task and row of the first of them; `across`: that is on the other side."""

    task: int
    row: int
    across: bool


class Duplicates:
    """All pictures that are equal to an earlier one, by task; `groups` counts the sets of equal ones."""

    def __init__(self, found: list[bytes]) -> None:
        self._found = sorted(found)
        self.groups = len({each[8:16] for each in found})

    def __len__(self) -> int:
        return len(self._found)

    @property
    def across(self) -> int:
        """How many are on the other side of the split than the first that is equal."""
        return sum(each[-1] for each in self._found)

    def of(self, task: int) -> dict[int, Double]:
        """Row => the first picture that is equal, for one task."""
        start, end = (bisect_left(self._found, number.to_bytes(4, "big")) for number in (task, task + 1))
        told = (_FOUND.unpack(each) for each in self._found[start:end])
        return {row: Double(first_task, first_row, bool(across)) for _, row, first_task, first_row, across in told}


def find_duplicates(records: Callable[[], Iterable[Record]], *, most: int, at_once: int = _AT_ONCE) -> Duplicates:
    """Finds equal pictures.

    Args:
        records: gives all records, in order, as often as it is called.
        most: pictures that they tell of, at most.
        at_once: how many of these may be in memory.
    """
    parts = -(-most // at_once) or 1
    return Duplicates([each for part in range(parts) for each in _among(_seen(records(), part, parts))])


def _seen(records: Iterable[Record], part: int, parts: int) -> list[bytes]:
    """The pictures whose digests fall into one part, as _SEEN."""
    seen = []
    for record in records:
        for picture in record.pictures:
            digest = bytes.fromhex(picture.digest)
            if int.from_bytes(digest[:4], "big") % parts == part:
                seen.append(_SEEN.pack(digest, record.task, picture.row, picture.verdict == "held_out"))
    return seen


def _among(seen: list[bytes]) -> Iterator[bytes]:
    """The duplicates among what was seen, as _FOUND."""
    seen.sort()
    first = b""
    for each in seen:
        if each[:16] != first[:16]:
            first = each
        else:
            yield each[16:24] + first[16:24] + bytes([each[24] != first[24]])


def rewrite(plan: Plan, record: Record, rows: list[int], numbering: Numbering) -> None:
    """Takes pictures out of the shards of a task, and numbers the classes of the others anew. Under the lock of the whole.

    The record is gone meanwhile, so that a task that was killed here counts as not done, and is made again.
    """
    files.remove_file(record_path(plan, record.task))
    files.sync_folder(plan.work)
    before = numbering_of(plan, record)
    shards = {}
    for verdict, side in SIDES.items():
        if side not in record.shards:
            continue
        pictures = [each for each in record.pictures if each.verdict == verdict and each.row not in record.dropped]
        told: dict[str, object] | None = record.shards[side]
        stays = all(each.row not in rows and before.of(each.label) == numbering.of(each.label) for each in pictures)
        if not stays:
            told = _rewritten(plan, record, side, pictures, rows, numbering)
        if told is not None:
            shards[side] = told
    write_record(plan, replace(record, shards=shards, dropped=rows, numbered=numbering.told()))


def _rewritten(
    plan: Plan, record: Record, side: str, pictures: list[Picture], rows: list[int], numbering: Numbering
) -> dict[str, object] | None:
    """The shard without some pictures, as the record tells it; None where none is left."""
    folder, info = plan.out / side, record.info(side)
    assert info is not None, "this side has a shard"
    if all(picture.row in rows for picture in pictures):
        files.remove_file(folder / info.name)
        files.remove_file(index_path(folder, info))
        return None
    with writing_shard(folder, record.task, sized=plan.options.buckets is not None) as writer:
        for picture, (key, members) in zip(pictures, _samples(folder / info.name), strict=True):
            if picture.row in rows:
                continue
            label = numbering.of(picture.label)
            if label != NO_LABEL:
                members[".cls"] = str(label).encode()
            writer.add(key, members, label=label, size=(picture.size[0], picture.size[1]))
    return {**asdict(writer.info(shard_name(record.task))), "index": files.sha256_of(writer.index())}


def _samples(tar: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Key and members of each sample of a shard of ours."""
    with tarfile.open(tar, "r:") as archive:
        key, members = -1, {}
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            number, _, suffix = member.name.partition(".")
            if int(number) != key and members:
                yield key, members
                members = {}
            handle = archive.extractfile(member)
            assert handle is not None, "a shard holds files alone"
            key, members[f".{suffix}"] = int(number), handle.read()
        if members:
            yield key, members
