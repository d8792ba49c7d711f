"""The plan of a preparation, written down before the work: which files there are, in order, and how they are cut into tasks.

A task is a fixed range of candidate pictures, `shard_size` of them, with the side files and refusals at sight that follow
them. What comes of a task is a function of the plan and of its number, so any process on any machine that sees source
and output may do it. The entries stand in a file of their own, a line each, and are read back task by task.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.sources.listing import Entry, Listing
from hdit_cli.errors import UsageError

WORK = ".prepare"  # folder inside the output, until it is complete

_PLAN, _ENTRIES = "plan.json", "entries.jsonl"
_FORMAT = "hdit-prepare-plan/2"
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True)
class Task:
    """One shard to be made: its lines in the file of entries, from byte `start` to byte `end`, and how many."""

    number: int
    start: int
    end: int
    entries: int


@dataclass(frozen=True)
class Plan:
    """What is to be made, and from what.

    Args:
        out: the data set's folder.
        roots: the sources, absolute, where this process finds them.
        options: what the bytes depend on besides the source.
        source: as the manifest keeps it.
        classes: in the order of their indices, while the work goes on.
        cuts: of each task, where its entries start, in bytes, and how many there are; at last where they end, and 0.
        notes: what is odd about the source, for people.
        fixed: the sources have this list of classes themselves, so that those without a picture stay in it.
    """

    out: Path
    roots: tuple[str, ...]
    options: PrepareOptions
    source: dict[str, Any]
    classes: list[str]
    cuts: list[list[int]]
    notes: list[str] = field(default_factory=list)
    fixed: bool = False

    def __len__(self) -> int:
        return len(self.cuts) - 1

    @property
    def work(self) -> Path:
        return self.out / WORK

    @cached_property
    def labels(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    def task(self, number: int) -> Task:
        (start, entries), (end, _) = self.cuts[number : number + 2]
        return Task(number, start, end, entries)

    def entries(self, task: Task) -> Iterator[Entry]:
        """The entries of a task, with the places where this process finds them."""
        for line in _lines(self.work / _ENTRIES, task.start, task.end):
            yield Entry.of(json.loads(line), moved=lambda container: _joined(container, self.roots))

    def path(self, number: int, row: int) -> str:
        """The path of entry `row` of a task."""
        task = self.task(number)
        return Entry.of(json.loads(_recent_lines(self.work / _ENTRIES, task.start, task.end)[row]), moved=str).path


def open_plan(out: Path, listing: Listing, options: PrepareOptions, *, sources: Sequence[Path]) -> Plan:
    """Writes the plan, or takes the one that is there, if it is the same. Call it under the lock of the plan.

    Raises:
        UsageError: `out` was begun with other options, from another source, or by another version; or its plan is damaged.
    """
    files.reap(out / WORK, of=_PLAN)
    files.reap(out / WORK, of=_ENTRIES)
    path, roots = out / WORK / _PLAN, tuple(os.path.abspath(source) for source in sources)
    hint = f"remove {out} and run prepare again"
    try:
        before = json.loads(path.read_bytes())
    except FileNotFoundError:
        before = None
    except ValueError as error:
        raise UsageError(f"{path} is damaged", hint=hint) from error
    if before is None:
        told = _write(out, listing, options, sources=sources)
    else:
        if before.get("format") != _FORMAT:
            raise UsageError(f"{out} was begun by another version of hdit", hint=hint)
        exhaust(listing)
        check_same(out, before, listing, options, since=path.stat().st_mtime)
        if files.sha256(out / WORK / _ENTRIES) != before["entries"]:
            raise UsageError(f"{out / WORK / _ENTRIES} is damaged", hint=hint)
        told = before
    notes, fixed = told.get("notes", []), listing.fixed is not None
    return Plan(out, roots, options, told["source"], told["classes"], told["tasks"], notes, fixed)


def exhaust(listing: Listing) -> None:
    """Reads a listing to its end, so that what is known of the whole source is known."""
    for _ in listing.stream():
        pass


def check_same(out: Path, before: dict[str, Any], listing: Listing, options: PrepareOptions, *, since: float) -> None:
    """Stops where `out` was made from something else than what is asked for now.

    Args:
        out: for the message.
        before: "source" and "options" as a plan or a manifest tells them.
        listing: read to its end.
        options: asked for now.
        since: when `before` was written, in seconds since the epoch.

    Raises:
        UsageError: something differs, or a file of the source is newer.
    """
    hint = f"remove {out} to make it anew, or choose another folder with --out"
    now = {"options": options.told(), "source": listing.source()}
    for part, what in (("options", "with other options"), ("source", "from another source, or the source has changed")):
        then = before.get(part) or {}
        if then != now[part]:
            told = [key for key in dict.fromkeys([*now[part], *then]) if now[part].get(key) != then.get(key)]
            raise UsageError(f"{out} was made {what} ({', '.join(told)} differ)", hint=hint)
    if listing.newest > since:
        raise UsageError(f"files of the source are newer than {out}", hint=hint)


def _write(out: Path, listing: Listing, options: PrepareOptions, *, sources: Sequence[Path]) -> dict[str, Any]:
    """Streams the entries to the disk, then writes what is known of them."""
    cuts, hashed, size, candidates = [[0, 0]], hashlib.sha256(), 0, 0
    starts = [os.fspath(source) for source in sources]
    with files.replacing(out / WORK / _ENTRIES) as handle:
        for entry in listing.stream():
            if not entry.code:
                if candidates and candidates % options.shard_size == 0:
                    cuts.append([size, 0])
                candidates += 1
            told = entry.told(moved=lambda container: _parted(container, starts))
            line = _ENCODER.encode(told).encode() + b"\n"
            handle.write(line)
            hashed.update(line)
            size += len(line)
            cuts[-1][1] += 1
    plan = {
        "format": _FORMAT,
        "source": listing.source(),
        "options": options.told(),
        "classes": listing.classes,
        "entries": hashed.hexdigest(),
        "tasks": [*cuts, [size, 0]],
        "notes": listing.layout.notes(sources),
    }
    files.write_bytes(out / WORK / _PLAN, json.dumps(plan).encode())
    return plan


# Lines


def _lines(path: Path, start: int, end: int) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        handle.seek(start)
        while handle.tell() < end:
            yield handle.readline()


@lru_cache(maxsize=4)
def _recent_lines(path: Path, start: int, end: int) -> list[bytes]:
    return list(_lines(path, start, end))


# Places: relative to the source, which another machine may see under another name


def _parted(container: str, sources: Sequence[str]) -> str:
    """ "N:rest" of a file in source N, ":path" of one elsewhere."""
    for number, source in enumerate(sources):
        if container == source:
            return f"{number}:"
        folder = source.rstrip(os.sep) + os.sep
        if container.startswith(folder):
            return f"{number}:{container[len(folder) :]}"
    return f":{os.path.abspath(container)}"


def _joined(container: str, roots: Sequence[str]) -> str:
    number, _, rest = container.partition(":")
    if not number:
        return rest
    return os.path.join(roots[int(number)], rest) if rest else roots[int(number)]
