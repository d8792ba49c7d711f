"""The work in progress of an encoding, in `.encode/` inside the output: what was asked for, and a record of each finished shard.

A record appears whole or not at all, and after the files that it tells of. Where it stands and the files are what it tells, the
shard is done, by whichever process.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.data.encoded import SectionShard
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import index_path
from hdit_cli.engine.encoding.sums import Sums
from hdit_cli.errors import UsageError

WORK = ".encode"
_PLAN, _LARGEST = "plan.json", 1 << 26


@dataclass(frozen=True)
class Task:
    """A shard of the training pictures (`side` is ""), or of the held-out ones."""

    side: str
    reader: ShardReader
    number: int

    @property
    def count(self) -> int:
        return self.reader.manifest.shards[self.number].count

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.side or 'training'}-{self.number:05d}"


def tasks_of(sides: dict[str, ShardReader]) -> list[Task]:
    """All shards, in order."""
    return [
        Task(side, reader, number) for side, reader in sides.items() for number in range(len(reader.manifest.shards))
    ]


@dataclass(frozen=True)
class Record:
    """What a task came to.

    Attributes:
        shard: its file.
        sums: of latents, for the statistics.
    """

    shard: SectionShard
    sums: Sums


def begin(out: Path, plan: dict[str, Any]) -> None:
    """Writes what is asked for, or compares it with what was.

    Raises:
        UsageError: `out` was begun with something else.
    """
    path = out / WORK / _PLAN
    files.reap(out / WORK)
    if not path.exists():
        files.write_json(path, plan)
        return
    try:
        before = json.loads(files.read_regular(path, most=_LARGEST))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged", hint=f"remove {out}, and start again") from error
    check_same(out, before, plan, what="begun")


def check_same(out: Path, before: dict[str, Any], now: dict[str, Any], *, what: str) -> None:
    """Raises UsageError where an encoded set differs from what is asked for: which words do is told.

    Args:
        what: that was done with it, as a word: begun, made.
    """
    if not isinstance(before, dict):
        before = {}
    told = [name for name in dict.fromkeys([*now, *before]) if now.get(name) != before.get(name)]
    if told:
        raise UsageError(
            f"{out} was {what} from another data set, with another codec or other options ({', '.join(told)} differ)",
            hint=f"remove {out} to make it anew, or choose another folder with --out",
        )


def write_record(out: Path, task: Task, record: Record) -> None:
    """Writes a record whole: a line of JSON, and a line with its SHA-256."""
    told = json.dumps({"shard": asdict(record.shard), "sums": asdict(record.sums)}).encode()
    files.write_bytes(out / WORK / f"{task.name}.json", told + f"\n{files.sha256_of(told)}\n".encode())


def read_record(out: Path, task: Task) -> Record | None:
    """None where the task is not done, or its record is damaged."""
    try:
        data = (out / WORK / f"{task.name}.json").read_bytes()
    except FileNotFoundError:
        return None
    text, _, digest = data.removesuffix(b"\n").rpartition(b"\n")
    if files.sha256_of(text).encode() != digest:
        return None
    told = json.loads(text)
    return Record(SectionShard(**told["shard"]), Sums(**told["sums"]))


def finished(out: Path, task: Task, *, pictures: bool) -> Record | None:
    """The record of a task whose files are what it tells, to the last bit; None where it is to be done."""
    record, folder = read_record(out, task), out / task.side
    if record is None:
        return None
    shard = task.reader.manifest.shards[task.number]
    wanted = {folder / record.shard.name: record.shard.sha256}
    if pictures:
        wanted[folder / shard.name] = shard.sha256
    source = index_path(task.reader.folder, shard)
    wanted[index_path(folder, shard)] = files.sha256(source)
    whole = all(path.is_file() and files.sha256(path) == sha256 for path, sha256 in wanted.items())
    return record if whole else None
