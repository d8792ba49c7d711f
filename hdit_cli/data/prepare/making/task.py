"""One task of a plan: a shard, and the record of what it was made of.

The record appears whole or not at all, and after the files that it tells of. Where it stands and the files are what it
tells, the task is done, whoever did it.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hdit_cli import files
from hdit_cli.data.prepare.making.plan import Plan, Task
from hdit_cli.data.prepare.pictures.outcome import Outcome
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.shards import HELD_OUT, NO_LABEL, ShardInfo, ShardWriter, index_path, shard_name, writing_shard
from hdit_cli.errors import UsageError

SIDES = {"kept": "", "held_out": HELD_OUT}  # verdict => folder inside the data set

_MILLION = 1_000_000


class Line(NamedTuple):
    """A file that was not plainly kept: its number in the task, and its verdict."""

    row: int
    path: str
    verdict: str
    codes: list[str]
    detail: str


class Picture(NamedTuple):
    """A picture in a shard: its number in the task, and what the finish must know of it.

    `source` and `size` are [H, W] as stored and as written, `cut` the share cropped away in whole millionths.
    """

    row: int
    verdict: str
    label: int
    source: list[int]
    size: list[int]
    cut: int
    captioned: bool
    digest: str


@dataclass
class Record:
    """What a task came to.

    Args:
        task: its number.
        entries: files told of.
        shards: side (a folder inside the data set) => ShardInfo as a dict, and the SHA-256 of the "index".
        lines: of files that were not plainly kept, in order.
        pictures: of the shards as they were made, in order.
        dropped: rows of pictures that were taken out again, being equal to an earlier one.
        numbered: the classes of the plan that the labels in the shards count through; None = all of them.
    """

    task: int
    entries: int
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    numbered: list[int] | None = None

    def info(self, side: str) -> ShardInfo | None:
        """The shard on one side, None where it has no picture."""
        told = {key: value for key, value in self.shards.get(side, {}).items() if key != "index"}
        return ShardInfo(**told) if told else None


def make_shard(
    plan: Plan, task: Task, outcomes: Iterable[tuple[Entry, Outcome]], *, tell: Callable[[Outcome], None] | None = None
) -> Record:
    """Writes what a task's outcomes come to: a shard, one of held-out pictures, and the record. Under the task's lock.

    Args:
        plan: which the bytes depend on alone, with the task.
        task: to be done.
        outcomes: of all its entries, in order.
        tell: called after each.
    """
    record, writers, candidates = Record(task.number, 0), {}, 0
    with contextlib.ExitStack() as open_shards:
        for entry, outcome in outcomes:
            key = task.number * plan.options.shard_size + candidates
            candidates += not entry.code
            if outcome.verdict in SIDES:
                side = SIDES[outcome.verdict]
                if side not in writers:
                    writers[side] = open_shards.enter_context(_new_shard(plan, task.number, side))
                _add(record, writers[side], key, entry, outcome, plan)
            if outcome.codes or outcome.verdict != "kept":
                record.lines.append(
                    Line(record.entries, entry.path, outcome.verdict, list(outcome.codes), outcome.detail)
                )
            record.entries += 1
            if tell is not None:
                tell(outcome)
    assert record.entries == task.entries, "each entry of the task has its outcome"
    record.shards = {side: _told(writer, task.number) for side, writer in writers.items()}
    write_record(plan, record)
    return record


def _new_shard(plan: Plan, number: int, side: str) -> "contextlib.AbstractContextManager[ShardWriter]":
    folder = plan.out / side
    if side:  # the folder of the set itself may be a link
        files.refuse_link(folder)
    files.make_folder(folder)
    return writing_shard(folder, number, sized=plan.options.buckets is not None)


def _add(record: Record, writer: ShardWriter, key: int, entry: Entry, outcome: Outcome, plan: Plan) -> None:
    label = NO_LABEL if entry.group is None else plan.labels[entry.group]
    cls = {} if label == NO_LABEL else {".cls": str(label).encode()}
    writer.add(key, {**outcome.members, **cls}, label=label, size=outcome.size)
    source, size, cut = list(outcome.source_size), list(outcome.size), round(outcome.cut * _MILLION)
    captioned = ".txt" in outcome.members
    picture = Picture(record.entries, outcome.verdict, label, source, size, cut, captioned, outcome.digest)
    record.pictures.append(picture)


def _told(writer: ShardWriter, number: int) -> dict[str, Any]:
    return {**asdict(writer.info(shard_name(number))), "index": files.sha256_of(writer.index())}


# Records


def record_path(plan: Plan, number: int) -> Path:
    return plan.work / f"{number:05d}.json"


def write_record(plan: Plan, record: Record) -> None:
    """Writes a record whole: a line of JSON, and a line with its SHA-256."""
    told = json.dumps(vars(record), separators=(",", ":"), ensure_ascii=False).encode()
    files.write_bytes(record_path(plan, record.task), told + f"\n{files.sha256_of(told)}\n".encode())


def read_record(plan: Plan, number: int) -> Record | None:
    """None where the task is not done, or its record is damaged."""
    try:
        data = record_path(plan, number).read_bytes()
    except FileNotFoundError:
        return None
    text, _, digest = data.removesuffix(b"\n").rpartition(b"\n")
    if files.sha256_of(text).encode() != digest:
        return None
    told = json.loads(text)
    lines = [Line(*each) for each in told.pop("lines")]
    pictures = [Picture(*each) for each in told.pop("pictures")]
    return Record(**told, lines=lines, pictures=pictures)


def records(plan: Plan) -> Iterator[Record]:
    """Of all tasks, in order, one at a time; they are all done."""
    for number in range(len(plan)):
        record = read_record(plan, number)
        assert record is not None, "all tasks are done"
        yield record


def is_whole(plan: Plan, record: Record) -> bool:
    """Whether the files are what the record tells, to the last bit."""
    return all(_is_whole(plan.out / side, told) for side, told in record.shards.items())


def _is_whole(folder: Path, told: dict[str, Any]) -> bool:
    tar = folder / told["name"]
    index = tar.with_suffix(".idx")
    if not tar.is_file() or not index.is_file() or tar.stat().st_size != told["bytes"]:
        return False
    return files.sha256(index) == told["index"] and files.sha256(tar) == told["sha256"]


def unfinished(plan: Plan) -> list[int]:
    """Tasks without a record, or without the files of it (by their sizes)."""
    return [number for number in range(len(plan)) if not _stands(plan, read_record(plan, number))]


def _stands(plan: Plan, record: Record | None) -> bool:
    if record is None:
        return False
    for side in record.shards:
        info = record.info(side)
        assert info is not None, "a side that is told of has a shard"
        tar, index = plan.out / side / info.name, index_path(plan.out / side, info)
        if not index.is_file() or not tar.is_file() or tar.stat().st_size != info.bytes:
            return False
    return True


# Who does it


def claim(plan: Plan, number: int) -> tuple[contextlib.ExitStack | None, Record | None]:
    """Takes a task, so that no other process does it too.

    Returns:
        The task's lock, to be closed when it is done, or None where there is nothing to do: the task is done, and there is
        its record, or another process is at it.
    """
    with contextlib.ExitStack() as hold:
        try:
            hold.enter_context(files.lock(plan.work / f"{number:05d}.lock", what=f"task {number}"))
        except UsageError:
            return None, None
        record = read_record(plan, number)
        if record is not None and is_whole(plan, record):
            return None, record
        files.remove_file(record_path(plan, number))
        for folder in (plan.work, *(plan.out / side for side in SIDES.values())):
            files.reap(folder, of=f"{number:05d}.")
        return hold.pop_all(), None
