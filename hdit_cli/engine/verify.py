"""Whether what lies on the disk is what was written: a run's checkpoints, a data set's shards. Changes nothing."""

import contextlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hdit_cli import files
from hdit_cli.data import shards
from hdit_cli.data.prepare.report import read_report
from hdit_cli.engine import checkpoint, snapshots
from hdit_cli.errors import DataError, StorageError


@dataclass(frozen=True)
class Checked:
    """One checkpoint or shard. `problem` is one sentence, "" where it is whole."""

    name: str
    bytes: int
    problem: str = ""


def verify_run(run: Path) -> Iterator[Checked]:
    """Every checkpoint folder of a run, oldest first, then `ckpt.safetensors`, then the snapshots of averages.

    The run may train meanwhile: what rotation removes is left out, what is saved is looked at too. What was set aside as
    `.bad` is no longer part of the run, and not looked at.
    """
    averages: set[str] = set()
    seen: set[int] = set()
    public = run / "ckpt.safetensors"
    while True:
        for step in checkpoint.list_steps(run):
            if step not in seen:
                seen.add(step)
                yield from _verify_checkpoint(run / "checkpoints" / checkpoint.step_name(step), averages)
        digest = files.sha256(public) if public.is_file() else ""
        if digest in averages or not set(checkpoint.list_steps(run)) - seen:
            break
    if digest:
        problem = (
            "is not the average of any whole checkpoint" if averages else "has no whole checkpoint to compare it with"
        )
        yield Checked(public.name, public.stat().st_size, "" if digest in averages else problem)
    elif averages:
        yield Checked(public.name, 0, "is missing; the next `hdit train` writes it again")
    for step in snapshots.list_steps(run):
        yield from _verify_folder(snapshots.folder_of(run, step), prefix=f"{snapshots.FOLDER}/")


def _verify_checkpoint(folder: Path, averages: set[str]) -> Iterator[Checked]:
    """Adds the hash of the average of a whole one to `averages`."""
    for checked in _verify_folder(folder):
        if not checked.problem:
            with contextlib.suppress(FileNotFoundError):  # removed this moment
                manifest = json.loads((folder / checkpoint.MANIFEST).read_bytes())
                averages.add(manifest["files"]["ema.safetensors"]["sha256"])
        yield checked


def _verify_folder(folder: Path, *, prefix: str = "") -> Iterator[Checked]:
    """Nothing where the folder is gone by the end."""
    try:
        problem = checkpoint.verify(folder)
    except StorageError as error:
        problem = error.message
    with contextlib.suppress(FileNotFoundError):
        yield Checked(f"{prefix}{folder.name}", _size(folder), problem)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def verify_data(data: Path) -> Iterator[Checked]:
    """Every shard of a data set, then of the held-out one inside it: tar against SHA-256, index against pictures.

    Raises:
        DataError: the manifest cannot be read.
    """
    manifest = shards.load_manifest(data)
    yield from _verify_shards(data, manifest)
    inside = data / shards.HELD_OUT
    if (inside / shards.MANIFEST).is_file():
        yield from _verify_shards(inside, shards.load_manifest(inside), prefix=f"{shards.HELD_OUT}/")
    elif inside.exists() or _held_some_out(data, manifest):
        yield Checked(shards.HELD_OUT, 0, f"lacks its {shards.MANIFEST}: training would go on without validation")


def _held_some_out(data: Path, manifest: shards.Manifest) -> bool:
    return bool(manifest.options.get("hold_out")) and read_report(data).held_out > 0


def _verify_shards(data: Path, manifest: shards.Manifest, *, prefix: str = "") -> Iterator[Checked]:
    for shard in manifest.shards:
        path = data / shard.name
        size = path.stat().st_size if path.is_file() else 0
        yield Checked(prefix + shard.name, size, _shard_problem(data, shard, manifest))


def _shard_problem(data: Path, shard: shards.ShardInfo, manifest: shards.Manifest) -> str:
    try:
        if files.sha256(data / shard.name) != shard.sha256:
            return "has changed since it was written"
        index = shards.read_index(data, shard, buckets=manifest.buckets)
        with open(data / shard.name, "rb") as handle:
            for number, record in enumerate(index):
                handle.seek(int(record["offset"]))
                if zlib.crc32(handle.read(int(record["size"]))) != record["crc32"]:
                    return f"record {number} of its index does not fit its picture"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except DataError as error:
        return error.message
    return ""
