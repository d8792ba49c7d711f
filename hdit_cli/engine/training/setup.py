"""What a run is made of: a recipe held against its data, a new model, the accelerator."""

import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hdit_cli import runtime
from hdit_cli.data.loader import Loader
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import MANIFEST, Bucket, load_manifest
from hdit_cli.data.stored import StoredReader, stored_of
from hdit_cli.data.stored_loader import StoredLoader
from hdit_cli.engine.model import DTYPES, Model, build_network, build_task, class_count
from hdit_cli.engine.run.checkpoint import Snapshot, read_header
from hdit_cli.engine.run.codec_file import codec_section, codec_sha256, is_codec, load_codec
from hdit_cli.engine.run.header import read_facts
from hdit_cli.engine.run.lpips_file import how_to_make, load_lpips
from hdit_cli.errors import DataError, UsageError
from hdit_cli.models.codecs.pixels import Pixels
from hdit_cli.models.lpips import LPIPS
from hdit_cli.recipe import Recipe
from hdit_cli.recipe.codec import kept as kept_codecs
from hdit_cli.recipe.codec import made
from hdit_cli.recipe.kl_vae import KLVAE


def check_fit(recipe: Recipe, reader: ShardReader) -> None:
    """Raises UsageError where the recipe and the data cannot go together."""
    if recipe.codec.path:
        _check_codec(recipe)
    elif why := Pixels(recipe.model.channels, getattr(recipe.model, "vocabulary", 0)).pictures():
        raise UsageError(
            f"{reader.folder} holds pictures, and this network cannot learn from them: {why}",
            hint="--set codec.path=FILE names it (`hdit convert` makes one); a recipe for pixels has model.channels = 3",
        )
    stored_latents(recipe, reader)
    check_sizes(recipe, reader)
    if recipe.model.channels != 3 and not recipe.codec.path:
        raise UsageError(f"model.channels is {recipe.model.channels}, pictures have 3", hint="--set model.channels=3")
    for what, hint in recipe.model.beyond_data():
        raise UsageError(what, hint=hint)
    classes, names = recipe.model.classes, reader.classes
    if classes == "data" and not names:
        raise UsageError("the recipe takes its classes from the data, which has none", hint="--set model.classes=0")
    if classes not in (0, "data", len(names)):
        raise UsageError(
            f"model.classes is {classes}, the data has {len(names)}",
            hint=f"--set model.classes={len(names) or 0}" if not names else "--set model.classes=data",
        )


def check_sizes(recipe: Recipe, reader: ShardReader) -> None:
    """Raises UsageError where the network cannot be given the pictures of a data set."""
    wanted, found = picture_size(recipe), reader.image_size
    if recipe.data.crop != "none":
        reader.check_cut(wanted)
        return
    if wanted != found:
        larger = not reader.buckets and all(there >= here for here, there in zip(wanted, found, strict=True))
        cut = "; --set data.crop=random (or center) cuts larger pictures while it trains" if larger else ""
        again = f"--size {size_word(wanted)}{' --buckets' if reader.buckets else ''}"
        of = tuple(-(-side // factor(recipe)) for side in found)
        raise UsageError(
            f"the recipe trains {wanted[0]}x{wanted[1]} images, the data set holds {found[0]}x{found[1]}",
            hint=f"`hdit prepare SRC {again}`, or --set model.size=[{of[0]},{of[1]}]{cut}",
        )
    for bucket in sorted(reader.buckets, key=lambda each: min(each.size)):  # the narrowest asks for the smallest kernel
        _check_bucket(recipe, reader, bucket)


def _check_bucket(recipe: Recipe, reader: ShardReader, bucket: Bucket) -> None:
    times = factor(recipe)
    if beside := [side for side in bucket.size if side % times]:
        raise UsageError(
            f"{reader.folder} has {bucket.count} pictures of {bucket.size[0]}x{bucket.size[1]}, and {beside[0]} is no multiple of "
            f"{times}, the codec's factor",
            hint=f"`hdit prepare SRC --buckets --bucket-step {times * math.lcm(*recipe.model.unit)}`",
        )
    sizes = [(height // times, width // times) for height, width in reader.sizes]
    seen = (bucket.size[0] // times, bucket.size[1] // times)
    problem = recipe.model.misfit_of(seen, among=sizes, pixels=times)
    if problem is not None:
        what, hint = problem
        told = f"{reader.folder} has {bucket.count} pictures of {bucket.size[0]}x{bucket.size[1]}, and "
        told += f"of their latents, {seen[0]}x{seen[1]}, " if times > 1 else ""
        raise UsageError(told + what, hint=hint)


def _check_codec(recipe: Recipe) -> None:
    path = Path(recipe.codec.path)
    section = codec_section(path)
    if isinstance(section, KLVAE) and not is_codec(read_header(path)):
        raise UsageError(
            f"{path} is an autoencoder as it was trained: nobody has measured its latents yet, which a network must see normalised",
            hint=f"`hdit encode DATA --codec {shlex.quote(str(path))}` measures them, and writes a codec.safetensors to name here",
        )
    wanted = getattr(recipe.model, "vocabulary", 0)
    if section.vocabulary != wanted:
        raise UsageError(
            f"a network of type {recipe.model.type} sees {made(recipe.model.channels, wanted)}, and the codec "
            f"{recipe.codec.path} makes {made(section.channels, section.vocabulary)}",
            hint="another codec, or a recipe for this one",
        )
    if section.channels != recipe.model.channels:
        raise UsageError(
            f"model.channels is {recipe.model.channels}, and the codec {recipe.codec.path} makes latents of {section.channels}",
            hint=f"--set model.channels={section.channels}, or another codec",
        )


def factor(recipe: Recipe) -> int:
    """How much smaller what the network sees is than a picture: 1 without a codec."""
    return codec_section(Path(recipe.codec.path)).factor if recipe.codec.path else 1


def picture_size(recipe: Recipe) -> tuple[int, int]:
    """(H, W) of the pictures that a recipe trains on."""
    height, width = recipe.model.size
    return height * factor(recipe), width * factor(recipe)


def open_data(recipe: Recipe, data: Path) -> ShardReader:
    """The data set that a recipe trains on, held against it.

    Raises:
        UsageError: they cannot go together.
        DataError: the data cannot be read.
    """
    if not (data / MANIFEST).is_file():
        raise missing_data(recipe, data)
    reader = ShardReader(data)
    check_fit(recipe, reader)
    return centred(recipe, reader) if recipe.data.crop == "center" else reader


def missing_data(recipe: Recipe, data: Path | None) -> DataError:
    """No data set there, or none named; the hint names sets of the right size that there are, or how to make one."""
    size = picture_size(recipe)
    if data is None:
        what, out = "no data set: the recipe names none", ""
    else:
        what = f"{data} is no data set: it has no {MANIFEST}" if data.is_dir() else f"no data set at {data}"
        out = f" --out {shlex.quote(str(data))}"
    if there := _sets_of(size):
        return DataError(what, hint=f"--data {shlex.quote(str(there[0]))} has pictures of the size this recipe trains")
    made_as = size_word(size)
    named = Path(data.name.removesuffix(made_as)) if data else Path()
    source = shlex.quote(str(named)) if named != Path() and named.is_dir() else "YOUR_PICTURES"
    then = "" if data else ", and name it with --data"
    return DataError(what, hint=f"`hdit prepare {source} --size {made_as}{out}` makes it{then}")


def _sets_of(size: tuple[int, int]) -> list[Path]:
    """Data sets under `data/` whose pictures have this (H, W), the newest first."""
    found = []
    for manifest in Path("data").glob(f"*/{MANIFEST}"):
        with suppress(DataError, OSError):
            if tuple(load_manifest(manifest.parent).image_size) == size:
                found.append((-manifest.stat().st_mtime, manifest.parent))
    return [path for _, path in sorted(found)]


def size_word(size: tuple[int, int]) -> str:
    """(H, W) as `hdit prepare --size` takes it: one number for a square."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def check_same_data(snapshot: Snapshot, reader: ShardReader, *, run: Path) -> None:
    """Raises UsageError where the data is not what a run was started with, wherever it lies now."""
    if snapshot.state["data"] != reader.fingerprint:
        raise UsageError(
            f"the data set is not the one {run} was started with",
            hint="give that one with --data, choose another --run, or start over with --fresh (the old run is kept)",
        )


def with_own_codec(recipe: Recipe, run: Path, *, tell: Callable[[str], None]) -> Recipe:
    """The recipe on the copy of its codec that a run keeps, where the file that it names is gone; else the recipe itself."""
    kept = kept_codecs(run)
    if not recipe.codec.path or Path(recipe.codec.path).exists() or len(kept) != 1:
        return recipe
    tell(f"no codec {recipe.codec.path}: the run's copy of its own is taken, {kept[0]}")
    return recipe.with_codec(str(kept[0]))


def check_same_codec(checkpoint: Path, model: Model, *, run: Path) -> None:
    """Raises UsageError where the codec is not the one that the run of a checkpoint folder was started with."""
    place = checkpoint / "model.safetensors"
    known = read_facts(read_header(place), where=str(place)).codec
    before = known["sha256"] if known else ""
    now = model.latents.fingerprint() if model.latents is not None else ""
    if before != now:
        raise UsageError(
            f"the codec is not the one {run} was started with",
            hint="give that one: a copy lies in the run; or start over with --fresh (the old run is kept)",
        )


def open_loader(
    recipe: Recipe, reader: ShardReader, *, step: int, slots: Sequence[np.ndarray], device: torch.device
) -> Loader | StoredLoader:
    """The batches of a run that goes on from `step`; `slots` are this process's places in each."""
    return batches_of(
        recipe,
        reader,
        position=step * recipe.train.batch_size,
        steps=recipe.train.steps - step,
        slots=slots,
        workers=recipe.data.workers,
        device=device,
    )


def batches_of(
    recipe: Recipe,
    reader: ShardReader,
    *,
    position: int,
    steps: int,
    slots: Sequence[np.ndarray],
    workers: int,
    device: torch.device,
) -> Loader | StoredLoader:
    """The batches that a recipe trains on: pictures, or what its codec made of them where the data set holds that."""
    section, pinned = recipe.train, device.type == "cuda"
    how: dict[str, Any] = {"batch_size": section.batch_size, "seed": section.seed, "position": position}
    how |= {"steps": steps, "slots": slots, "pin_memory": pinned}
    stored = stored_latents(recipe, reader)
    if stored is not None:
        return StoredLoader(stored, ahead=workers > 0, flip=recipe.data.flip, **how)
    return Loader(reader, workers=workers, cut=random_cut(recipe), **how)


def stored_latents(recipe: Recipe, reader: ShardReader) -> StoredReader | None:
    """What the recipe's codec made of the pictures of a data set, where the set holds it; None where it holds nothing.

    Raises:
        UsageError: the set was encoded with another codec, or the recipe changes pictures before they are encoded.
        DataError: it is damaged, or it lacks what the recipe needs.
    """
    if not recipe.codec.path:
        reader.require_pictures("a recipe without [codec]")
        return None
    stored = stored_of(reader, sha256=codec_sha256(Path(recipe.codec.path)), codec=recipe.codec.path)
    if stored is None:
        return None
    facts, section = stored.facts, codec_section(Path(recipe.codec.path))
    if (facts.channels, facts.factor, facts.vocabulary) != (section.channels, section.factor, section.vocabulary):
        raise DataError(
            f"{reader.folder} tells of {made(facts.channels, facts.vocabulary)} at 1/{facts.factor} of the size, and its codec "
            f"makes {made(section.channels, section.vocabulary)} at 1/{section.factor}",
            hint="get the set again, or make it again with `hdit encode`",
        )
    for key, value, off in (("crop", recipe.data.crop, "none"), ("augment", recipe.data.augment, 0)):
        if value != off:
            raise UsageError(
                f"data.{key} is {value}: it acts on pictures, and {reader.folder} holds what a codec made of whole ones",
                hint=f"--set data.{key}={off}, or the data set that it was made from: its pictures are encoded as they come",
            )
    return stored


def told_of_latents(recipe: Recipe, reader: ShardReader) -> list[str]:
    """Where a run's latents come from, a sentence for its start; none without a codec."""
    if not recipe.codec.path:
        return []
    stored = stored_latents(recipe, reader)
    if stored is None:
        return ["pictures are encoded as they come; `hdit encode` does it once and for all"]
    what = "tokens" if stored.facts.vocabulary else "latents"
    return [f"{what} are read from {reader.folder}, where `hdit encode` put them"]


def random_cut(recipe: Recipe) -> tuple[int, int] | None:
    """(H, W) that training cuts pictures to at random places, None where it does not."""
    return picture_size(recipe) if recipe.data.crop == "random" else None


def centred(recipe: Recipe, reader: ShardReader) -> ShardReader:
    """The data set as validation and scores see it: where the recipe cuts larger pictures, their centres.

    Raises:
        UsageError: they cannot be cut to the recipe's size.
    """
    return reader if recipe.data.crop == "none" else reader.centred(picture_size(recipe))


def at_largest(recipe: Recipe, reader: ShardReader) -> Recipe:
    """The recipe at the size of the largest pictures it will train on: what memory is estimated for."""
    if not reader.buckets:
        return recipe
    largest = max(reader.sizes, key=lambda size: size[0] * size[1])
    largest = (largest[0] // factor(recipe), largest[1] // factor(recipe))
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"size": largest})})


def new_model(recipe: Recipe, reader: ShardReader, *, path: str) -> Model:
    """A new model on the CPU; its weights are a function of the seed."""
    torch.manual_seed(runtime.key(recipe.train.seed, "init") % 2**63)
    classes = reader.classes if recipe.model.classes else []
    network = build_network(recipe, classes=class_count(recipe, classes=classes))
    network.to(DTYPES[recipe.train.precision])
    data: dict[str, Any] = {"path": path, "fingerprint": reader.fingerprint}
    if classes:
        data["class_counts"] = np.bincount(reader.labels[reader.labels >= 0], minlength=len(classes)).tolist()
    latents = load_codec(recipe.codec.path) if recipe.codec.path else None
    task = build_task(network, recipe)
    if weight := getattr(recipe.task, "perceptual_weight", 0.0):
        task.perceptual = _perceptual(recipe, weight=weight).to(DTYPES[recipe.train.precision])
    return Model(task, recipe.to_dict(), classes, weights="raw", data=data, latents=latents)


def _perceptual(recipe: Recipe, *, weight: float) -> LPIPS:
    """The perceptual loss of a recipe that has one."""
    path = getattr(recipe.task, "perceptual", "")
    if not path:
        raise UsageError(
            f"task.perceptual_weight is {weight:g}, and task.perceptual names no file of LPIPS",
            hint=f"--set task.perceptual=FILE names it: {how_to_make('lpips.safetensors')}",
        )
    return load_lpips(path)


def new_accelerator(recipe: Recipe) -> Accelerator:
    """Device placement, autocast and the exchange of gradients, as `train.precision` and the machine ask for."""
    precision = "bf16" if recipe.train.precision == "bf16" else "no"
    cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    return Accelerator(cpu=cpu, mixed_precision=precision)
