"""Pictures that are equal as prepared, found by the digests of their encoded bytes, and taken out of shards.

Equal pictures are found among a part of all digests at a time, so memory does not grow with their number; what is kept
of each duplicate is 16 bytes.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hdit_cli import files
from hdit_cli.data.prepare.plan import Plan
from hdit_cli.data.prepare.task import SIDES, Picture, Record, record_path, write_record
from hdit_cli.data.shards import index_path, shard_name, writing_shard

_AT_ONCE = 1 << 20  # pictures whose digests are in memory, 32 MB

_SEEN = np.dtype([("high", "<u8"), ("low", "<u8"), ("task", "<u4"), ("row", "<u4"), ("side", "u1")])
_FOUND = np.dtype([("task", "<u4"), ("row", "<u4"), ("first_task", "<u4"), ("first_row", "<u4"), ("across", "u1")])


class Double(NamedTuple):
    """A picture equal to an earlier one: task and row of the first of them; `across`: that is on the other side."""

    task: int
    row: int
    across: bool


class Duplicates:
    """All pictures that are equal to an earlier one, by task; `groups` counts the sets of equal ones."""

    def __init__(self, found: np.ndarray) -> None:
        self._found = np.sort(found, order=["task", "row"])
        firsts = np.sort(found[["first_task", "first_row"]])
        self.groups = len(firsts[:1]) + int((firsts[1:] != firsts[:-1]).sum())

    def __len__(self) -> int:
        return len(self._found)

    @property
    def across(self) -> int:
        """How many are on the other side of the split than the first that is equal."""
        return int(self._found["across"].sum())

    def of(self, task: int) -> dict[int, Double]:
        """Row => the first picture that is equal, for one task."""
        start, end = np.searchsorted(self._found["task"], [task, task + 1])
        rows = self._found[start:end].tolist()
        return {row: Double(first_task, first_row, bool(across)) for _, row, first_task, first_row, across in rows}


def find_duplicates(records: Callable[[], Iterable[Record]], *, pictures: int, at_once: int = _AT_ONCE) -> Duplicates:
    """Finds equal pictures.

    Args:
        records: gives all records, in order, as often as it is called.
        pictures: that they tell of.
        at_once: how many of these may be in memory.
    """
    parts = -(-pictures // at_once) or 1
    return Duplicates(np.concatenate([_among(_seen(records(), part, parts)) for part in range(parts)]))


def _seen(records: Iterable[Record], part: int, parts: int) -> np.ndarray:
    """The pictures whose digests fall into one part.

    Returns:
        _SEEN (n,).
    """
    kept = [np.empty(0, _SEEN)]
    for record in records:
        words = np.frombuffer(bytes.fromhex("".join(each.digest for each in record.pictures)), "<u8").reshape(-1, 2)
        seen = np.empty(len(words), _SEEN)
        seen["high"], seen["low"], seen["task"] = words[:, 0], words[:, 1], record.task
        seen["row"] = [each.row for each in record.pictures]
        seen["side"] = [each.verdict == "held_out" for each in record.pictures]
        kept.append(seen[seen["high"] % parts == part])
    return np.concatenate(kept)


def _among(seen: np.ndarray) -> np.ndarray:
    """The duplicates among _SEEN (n,): _FOUND (m,)."""
    seen = seen[np.lexsort((seen["row"], seen["task"], seen["low"], seen["high"]))]
    is_first = np.ones(len(seen), bool)
    is_first[1:] = (seen["high"][1:] != seen["high"][:-1]) | (seen["low"][1:] != seen["low"][:-1])
    first = seen[np.maximum.accumulate(np.where(is_first, np.arange(len(seen)), 0))]
    found = np.empty(len(seen), _FOUND)
    found["task"], found["row"] = seen["task"], seen["row"]
    found["first_task"], found["first_row"] = first["task"], first["row"]
    found["across"] = seen["side"] != first["side"]
    return found[~is_first]


def drop(plan: Plan, record: Record, rows: list[int]) -> Record:
    """Takes pictures out of the shards of a task. Under the lock of the whole.

    The record is gone meanwhile, so that a task that was killed here counts as not done, and is made again.
    """
    files.remove_file(record_path(plan, record.task))
    files.sync_folder(plan.work)
    shards = {}
    for verdict, side in SIDES.items():
        if side not in record.shards:
            continue
        pictures = [picture for picture in record.pictures if picture.verdict == verdict]
        told = record.shards[side]
        if any(picture.row in rows for picture in pictures):
            told = _rewritten(plan, record, side, pictures, rows)
        if told is not None:
            shards[side] = told
    after = Record(record.task, record.entries, shards, record.lines, record.pictures, rows)
    write_record(plan, after)
    return after


def _rewritten(
    plan: Plan, record: Record, side: str, pictures: list[Picture], rows: list[int]
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
            if picture.row not in rows:
                writer.add(key, members, label=picture.label, size=(picture.size[0], picture.size[1]))
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
