"""A whole encoding: what is asked for is held against what is there, the shards are made, and then the set is finished.

After a kill the same command keeps the shards that are whole and makes the others. The set is complete when `manifest.json` is
there, which is written last. Several processes make every n-th shard each; the first one finishes.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hdit_cli import files, runtime
from hdit_cli.data.encoded import CODEC_FILE, CodecFacts, Encoded, file_bytes, save_encoded
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import HELD_OUT, MANIFEST
from hdit_cli.data.stored import misfit
from hdit_cli.engine.encoding.making import Maker
from hdit_cli.engine.encoding.sums import statistics
from hdit_cli.engine.encoding.work import WORK, Record, Task, begin, check_same, finished, read_record, tasks_of
from hdit_cli.engine.load import InFile, find
from hdit_cli.engine.memory.estimate import codec_bytes
from hdit_cli.engine.run.checkpoint import read_announced
from hdit_cli.engine.run.codec_file import codec_section, is_codec, load_codec, write
from hdit_cli.errors import Interrupted, UsageError
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.precision import AUTO, resolved
from hdit_cli.recipe.kl_vae import KLVAE, LEAST_SCALE

BATCH = 8  # pictures that a codec sees at once
_BESIDE = ("report.json", "preview.png")
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        data: the prepared data set.
        codec: a codec's file.
        out: the folder to be made.
        batch_size: pictures that the codec sees at once; the last bits hang on it.
        pictures: whether the pictures come along.
        precision: in which the codec computes; None is what the device takes by itself.
        device: None chooses.
    """

    data: Path
    codec: Path
    out: Path
    batch_size: int = BATCH
    pictures: bool = True
    precision: str | None = None
    device: torch.device | None = None


@dataclass(frozen=True)
class Outcome:
    """An encoded set.

    Attributes:
        encoded: of the training pictures.
        held_out: how many pictures are held out.
        before: it was complete already.
    """

    reader: ShardReader
    encoded: Encoded
    held_out: int
    before: bool


def encode(asked: Asked, *, tell: Tell = lambda done, total: None) -> Outcome:
    """Makes an encoded set; goes on where a killed run left off; does nothing where it is complete.

    Args:
        tell: hears of (pictures done, pictures in all).

    Raises:
        UsageError: `out` holds something else, or was made otherwise; the pictures are of a size that the codec cannot take.
        DataError: the data set is missing, damaged, or without pictures.
        CheckpointError: no codec, or a damaged one.
        NonFiniteError: the codec makes NaN, or more than float16 holds.
        StorageError: the disk is full, or `out` cannot be written.
        Interrupted: stopped by the user; the same call goes on.
    """
    device = asked.device or runtime.device()
    here = runtime.join_processes(device)
    sides = _sides(asked)
    section = codec_section(asked.codec)
    if why := misfit(sides[""], section.factor):
        raise _unfit(asked, sides[""], why)
    plan = _plan(asked, sides, device=device)
    if (asked.out / MANIFEST).exists():
        return _complete(asked, plan)
    codec = load_codec(asked.codec, device=device)
    facts, tasks = _facts(codec, plan), tasks_of(sides)
    if here.is_main:
        _make_work(asked.out)
    with files.lock(asked.out / WORK / "lock", what=f"the encoded set {asked.out}") if here.is_main else nullcontext():
        if here.is_main:
            _begin(asked, plan, tasks, facts=facts)
        runtime.wait_for_all()
        watch = _Watch(sum(task.count for task in tasks), world=here.world, tell=tell)
        try:
            _make(asked, tasks[here.rank :: here.world], codec=codec, facts=facts, watch=watch)
            runtime.wait_for_all()
            if here.is_main:
                _finish(asked, sides, facts=facts, codec=codec)
        except KeyboardInterrupt as error:
            told = f"stopped after about {watch.done} of {watch.total} pictures"
            raise Interrupted(told, hint="the finished shards are kept; the same command goes on") from error
        runtime.wait_for_all()
    return _outcome(asked, before=False)


def _begin(asked: Asked, plan: dict[str, Any], tasks: list[Task], *, facts: CodecFacts) -> None:
    """The plan and the folders, and whether there is room for what is to be made."""
    begin(asked.out, plan)
    for side in {task.side for task in tasks}:
        if side:  # the folder of the set itself may be a link
            files.make_own_folder(asked.out / side)
        files.reap(asked.out / side)
    needed = [task for task in tasks if read_record(asked.out, task) is None]
    space = sum(file_bytes(facts, task.reader.sizes_in(task.number)) for task in needed)
    tars = sum(task.reader.manifest.shards[task.number].bytes for task in needed) if asked.pictures else 0
    files.require_space(asked.out, size=space + tars)


def default_out(data: Path, codec: Path) -> Path:
    """`DATA-<kind of codec>`, beside the data set."""
    place = data if data.name not in ("", "..") else Path(os.path.abspath(data))
    return place.with_name(f"{place.name}-{codec_section(codec).type}")


def _sides(asked: Asked) -> dict[str, ShardReader]:
    """The readers of the training pictures and of the held-out ones."""
    sides = {"": ShardReader(asked.data)}
    if (asked.data / HELD_OUT / MANIFEST).is_file():
        sides[HELD_OUT] = ShardReader(asked.data / HELD_OUT)
    for reader in sides.values():
        reader.require_pictures("`hdit encode`")
    data, out = files.real_path(asked.data), files.real_path(asked.out)
    if data == out or data.is_relative_to(out) or out.is_relative_to(data):
        raise UsageError(
            f"the output {asked.out} and the data set {asked.data} lie in each other",
            hint="choose a folder beside it with --out",
        )
    return sides


def _unfit(asked: Asked, reader: ShardReader, why: str) -> UsageError:
    """With the nearest sizes that fit."""
    factor = codec_section(asked.codec).factor
    height, width = (max(factor, round(side / factor) * factor) for side in reader.image_size)
    if reader.buckets:
        hint = f"`hdit prepare SRC --buckets --bucket-step {factor}` makes sides that are"
    else:
        hint = f"`hdit prepare SRC --size {height}x{width}` makes pictures of the nearest size that fits"
    return UsageError(f"{asked.data} cannot be encoded with {asked.codec}: {why}", hint=hint)


def _plan(asked: Asked, sides: dict[str, ShardReader], *, device: torch.device) -> dict[str, Any]:
    """What the bytes are a function of."""
    tokens = bool(codec_section(asked.codec).vocabulary)
    if tokens and asked.precision not in (None, AUTO, "fp32"):
        raise UsageError(
            f"{asked.codec} makes tokens, which are computed in fp32 and not in {asked.precision}: rounding chooses others",
            hint="leave --precision out",
        )
    return {
        "data": sides[""].fingerprint,
        "held_out": sides[HELD_OUT].fingerprint if HELD_OUT in sides else "",
        "codec": files.sha256(asked.codec),
        "pictures": asked.pictures,
        "batch_size": asked.batch_size,
        "precision": "fp32" if tokens else resolved(asked.precision or AUTO, dtype=torch.float32, device=device),
        "device": device.type,
    }


def _make_work(out: Path) -> None:
    taken = os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))
    if taken and not (out / WORK).is_dir():
        raise UsageError(
            f"{out} exists and is not an encoded set", hint="choose another folder with --out, or move it away"
        )
    files.make_own_folder(out / WORK)


def _facts(codec: Frozen, plan: dict[str, Any]) -> CodecFacts:
    """Of the section, before its shards and statistics are known."""
    vocabulary = codec.vocabulary
    kinds = {1 << 8: "uint8", 1 << 16: "uint16", 1 << 31: "int32"}
    return CodecFacts(
        kind=codec.kind,
        sha256=plan["codec"],
        of=plan["codec"],
        config={},
        factor=codec.factor,
        planes=1 if vocabulary else 2 * codec.channels,
        channels=codec.channels,
        vocabulary=vocabulary,
        dtype=next(name for most, name in kinds.items() if vocabulary <= most) if vocabulary else "float16",
        **{name: plan[name] for name in ("batch_size", "precision", "device")},
    )


class _Watch:
    """Counts the pictures that this process has done, as those of all: each has about as many shards."""

    def __init__(self, total: int, *, world: int, tell: Tell) -> None:
        self.done, self.total, self._world, self._tell = 0, total, world, tell

    def add(self, count: int) -> None:
        self.done = min(self.done + count * self._world, self.total)
        self._tell(self.done, self.total)


def _make(asked: Asked, tasks: list[Task], *, codec: Frozen, facts: CodecFacts, watch: _Watch) -> None:
    """This process's shards; those that are whole are kept."""
    threads = _threads(asked, [task.reader for task in tasks], device=codec.device)
    how: dict[str, Any] = {"pictures": asked.pictures, "threads": threads, "tell": watch.add}
    with Maker(asked.out, codec=codec, facts=facts, **how) as maker:
        for task in tasks:
            if finished(asked.out, task, pictures=asked.pictures) is None:
                maker.make(task)
            else:
                watch.add(task.count)


def _threads(asked: Asked, readers: list[ShardReader], *, device: torch.device) -> int:
    """How many batches are computed at once: on a CPU as many as there are threads, and as half of the free memory takes."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or not readers:
        return 1
    factor = codec_section(asked.codec).factor
    height, width = max((size for reader in readers for size in reader.sizes), key=lambda size: size[0] * size[1])
    size = (height // factor, width // factor)
    _, each = codec_bytes(str(asked.codec), size, images=asked.batch_size, device=device.type)
    room = runtime.free_memory(device) // (2 * runtime.ranks().world)
    return max(1, min(threads, room // max(1, each)))


def _finish(asked: Asked, sides: dict[str, ShardReader], *, facts: CodecFacts, codec: Frozen) -> None:
    """The codec's file, then what tells of all; the manifest of the training pictures last."""
    records: dict[str, list[Record]] = {side: [] for side in sides}
    for task in tasks_of(sides):
        record = read_record(asked.out, task)
        assert record is not None, "all shards are made"
        records[task.side].append(record)
    if not facts.vocabulary:
        told = statistics([record.sums for record in records[""]], pictures=len(sides[""]))
        facts = replace(facts, statistics=told)
    facts = _with_codec(asked, facts, codec=codec)
    for side, reader in reversed(sides.items()):
        folder = asked.out / side
        for name in _BESIDE:
            if (reader.folder / name).is_file():
                files.write_bytes(folder / name, (reader.folder / name).read_bytes())
        shards = [record.shard for record in records[side]]
        save_encoded(folder, Encoded(reader.fingerprint, asked.pictures, replace(facts, shards=shards)))
        files.write_bytes(folder / MANIFEST, (reader.folder / MANIFEST).read_bytes())
    files.remove_folder(asked.out / WORK)


def _with_codec(asked: Asked, facts: CodecFacts, *, codec: Frozen) -> CodecFacts:
    """Writes the codec's own file: the one that was given, or one with the measured statistics where that had none.

    Of a codec that was trained here, whose file is a checkpoint, it is always a file of its own.
    """
    section, place = codec_section(asked.codec), asked.out / CODEC_FILE
    measures = isinstance(section, KLVAE) and not any(section.shift) and set(section.scale) == {1.0}
    if measures:
        scale = tuple(1 / max(std, LEAST_SCALE) for std in facts.statistics["std"])
        section = section.model_copy(update={"shift": tuple(facts.statistics["mean"]), "scale": scale})
    if measures or not is_codec(read_announced(asked.codec)[1]):
        write(place, {name: tensor.cpu() for name, tensor in codec.network.state_dict().items()}, section)
    else:
        files.write_bytes(place, asked.codec.read_bytes())
    return replace(facts, sha256=files.sha256(place), config=section.model_dump(mode="json"))


def codec_file_of(path: Path) -> Path:
    """The file that a CKPT argument means: a codec's, a checkpoint, or the newest average of a run.

    Raises:
        CheckpointError: the run has none.
    """
    if not path.is_dir():
        return path
    found = find(path, weights="ema")
    assert isinstance(found, InFile), "an average that training keeps lies in a file"
    return found.file


def _complete(asked: Asked, plan: dict[str, Any]) -> Outcome:
    """The set that is there already, if it is the one asked for."""
    found = _outcome(asked, before=True)
    facts = found.encoded.codec
    before = {"data": found.encoded.data, "codec": facts.of, "pictures": found.encoded.pictures}
    before |= {"held_out": _fingerprint(asked.out / HELD_OUT), "batch_size": facts.batch_size}
    if asked.precision is not None:
        before["precision"] = facts.precision
    check_same(asked.out, before, {name: plan[name] for name in before}, what="made")
    if runtime.ranks().is_main:  # killed after the manifest
        if (asked.out / WORK).is_dir():
            with suppress(UsageError), files.lock(asked.out / WORK / "lock", what=str(asked.out)):
                files.remove_folder(asked.out / WORK)
        files.reap(asked.out)
    return found


def _fingerprint(folder: Path) -> str:
    return ShardReader(folder).fingerprint if (folder / MANIFEST).is_file() else ""


def _outcome(asked: Asked, *, before: bool) -> Outcome:
    reader, inside = ShardReader(asked.out), asked.out / HELD_OUT
    if reader.encoded is None:
        raise UsageError(
            f"{asked.out} is a data set, and not one that was encoded", hint="choose another folder with --out"
        )
    held_out = len(ShardReader(inside)) if (inside / MANIFEST).is_file() else 0
    return Outcome(reader, reader.encoded, held_out, before)
