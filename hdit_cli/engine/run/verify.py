"""Whether what lies on the disk is what was written: a run's checkpoints, a data set's shards. Changes nothing."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hdit_cli import files
from hdit_cli.data import shard_index, shards
from hdit_cli.data.encoded import CODEC_FILE, ENCODED, is_encoded
from hdit_cli.data.prepare.finishing.report import REPORT, read_report
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shard_check import shard_problem
from hdit_cli.data.stored import StoredReader
from hdit_cli.engine.run import checkpoint, header, snapshots
from hdit_cli.engine.run.best import BEST, best_problem
from hdit_cli.errors import CheckpointError, DataError, StorageError
from hdit_cli.models.codecs.latents import file_name
from hdit_cli.recipe.codec import kept


@dataclass(frozen=True)
class Checked:
    """One checkpoint or shard. `problem` is one sentence, "" where it is whole."""

    name: str
    bytes: int
    problem: str = ""


def verify_run(run: Path) -> Iterator[Checked]:
    """Every checkpoint folder of a run, oldest first, `ckpt.safetensors`, the codec, `best.safetensors`, the snapshots of averages.

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
    yield from _verify_codecs(run, public if digest else None)
    best = run / BEST
    if best.is_file():
        yield Checked(best.name, best.stat().st_size, best_problem(best))
    for step in snapshots.list_steps(run):
        yield from _verify_folder(snapshots.folder_of(run, step), prefix=f"{snapshots.FOLDER}/")


def _verify_checkpoint(folder: Path, averages: set[str]) -> Iterator[Checked]:
    """Adds the hash of the average of a whole one to `averages`."""
    for checked in _verify_folder(folder):
        if not checked.problem:
            with contextlib.suppress(FileNotFoundError):  # removed this moment
                manifest = json.loads((folder / checkpoint.MANIFEST).read_bytes())
                written = manifest["files"].items()
                averages.update(facts["sha256"] for name, facts in written if name == "ema.safetensors")
        yield checked


def _verify_codecs(run: Path, public: Path | None) -> Iterator[Checked]:
    """The codecs that lie in a run, and the one that its newest average needs."""
    needed: dict[str, str] = {}  # name of the file => SHA-256
    with contextlib.suppress(CheckpointError):  # told of that file already
        facts = header.read_facts(checkpoint.read_header(public), where=str(public)) if public else None
        if facts is not None and facts.codec:
            needed = {file_name(facts.codec["type"], facts.codec["sha256"]): facts.codec["sha256"]}
    for name in sorted({*needed, *(path.name for path in kept(run))}):
        path = run / name
        if not path.is_file():
            yield Checked(name, 0, "is missing, and without its codec the run makes no pictures; copy it there again")
            continue
        sha256 = files.sha256(path)
        whole = sha256 == needed[name] if name in needed else path.stem.endswith(sha256[:8])
        yield Checked(name, path.stat().st_size, "" if whole else "has other bytes than its name says")


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
    """Every shard of a data set, then of the held-out one inside it, then what stands beside them.

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
    if (data / REPORT).is_file():
        yield Checked(REPORT, (data / REPORT).stat().st_size, _report_problem(data, manifest))


def shards_of(data: Path) -> int:
    """How many files of shards `verify_data` reads.

    Raises:
        DataError: a manifest cannot be read.
    """
    inside = data / shards.HELD_OUT
    folders = [data, inside] if (inside / shards.MANIFEST).is_file() else [data]
    return sum(len(shards.load_manifest(folder).shards) * (2 if is_encoded(folder) else 1) for folder in folders)


def _held_some_out(data: Path, manifest: shards.Manifest) -> bool:
    return bool(manifest.options.get("hold_out")) and read_report(data).held_out > 0


def _verify_shards(data: Path, manifest: shards.Manifest, *, prefix: str = "") -> Iterator[Checked]:
    last_key = -1
    reader, problem = _encoded(data)
    if problem:
        yield Checked(prefix + ENCODED, 0, problem)
        return
    for shard in manifest.shards if reader is None or reader.has_pictures else ():
        path = data / shard.name
        size = path.stat().st_size if path.is_file() else 0
        problem, last_key = shard_problem(data, shard, manifest, after=last_key)
        yield Checked(prefix + shard.name, size, problem)
    if reader is not None:
        yield from _verify_stored(reader, prefix=prefix)
    known = {path for shard in manifest.shards for path in (data / shard.name, shards.index_path(data, shard))}
    for path in sorted({*data.glob("*.tar"), *data.glob("*.idx")} - known):
        if files.left_by_others(path.name):
            continue
        yield Checked(prefix + path.name, path.stat().st_size if path.is_file() else 0, "is not in the manifest")


def _encoded(data: Path) -> tuple[ShardReader | None, str]:
    """The reader of an encoded set, None of another; and what keeps it from being read."""
    if not (data / ENCODED).exists():
        return None, ""
    try:
        return ShardReader(data), ""
    except DataError as error:
        return None, error.message


def _verify_stored(reader: ShardReader, *, prefix: str) -> Iterator[Checked]:
    """The codec of an encoded set, and what it made of each shard; of one without pictures also what is left of the shard."""
    assert reader.encoded is not None, "it is an encoded set"
    facts, data = reader.encoded.codec, reader.folder
    inside = data.name == shards.HELD_OUT and is_encoded(data.parent)
    if not inside:
        yield _verify_codec(data / CODEC_FILE, facts.sha256)
    elif (outer := _outer_codec(data)) != facts.sha256:
        told = (
            "was made with another codec than the training pictures" if outer else "lies in a set that cannot be read"
        )
        yield Checked(prefix + ENCODED, 0, told)
    try:
        stored = StoredReader(reader)
    except DataError as error:
        yield Checked(prefix + ENCODED, 0, error.message)
        return
    for number, (shard, told) in enumerate(zip(reader.manifest.shards, facts.shards, strict=True)):
        yield Checked(prefix + told.name, told.bytes, stored.problem(number))
        if not reader.has_pictures:
            index = shards.index_path(data, shard)
            yield Checked(prefix + index.name, index.stat().st_size)  # read and held against the manifest already


def _verify_codec(path: Path, sha256: str) -> Checked:
    if not path.is_file():
        return Checked(path.name, 0, "is missing, and without it what is stored means nothing; copy it there again")
    whole = files.sha256(path) == sha256
    return Checked(path.name, path.stat().st_size, "" if whole else "is not the codec that the set tells of")


def _outer_codec(held_out: Path) -> str:
    """SHA-256 of the codec that the set around a held-out one tells of; "" where that cannot be read, which is told there."""
    reader, _ = _encoded(held_out.parent)
    return reader.encoded.codec.sha256 if reader is not None and reader.encoded is not None else ""


def _report_problem(data: Path, manifest: shards.Manifest) -> str:
    """Whether the account tells of the same pictures and classes, in the same order, as manifest and indices."""
    try:
        report = read_report(data)
    except DataError as error:
        return error.message
    try:
        labels = np.concatenate(
            [shard_index.read_index(data, shard, buckets=manifest.buckets)["label"] for shard in manifest.shards]
        )
    except DataError:  # told of its shard already
        return ""
    counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes)).tolist()
    same = list(report.classes) == manifest.classes and list(report.classes.values()) == counts
    return (
        "" if same and report.kept == manifest.count else f"tells of other pictures or classes than {shards.MANIFEST}"
    )
