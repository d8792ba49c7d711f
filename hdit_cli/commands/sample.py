"""`hdit sample CKPT`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli.commands import following
from hdit_cli.commands import sampling as shared
from hdit_cli.commands.numbers import real
from hdit_cli.commands.say import say

if TYPE_CHECKING:
    import torch

    from hdit_cli.engine.model import Model
    from hdit_cli.engine.sampling.collect import Order
    from hdit_cli.engine.sampling.recorded import Recorded

STRENGTH = 0.6  # where a picture is given and nobody says


def sample(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="A checkpoint file or a run folder.", show_default=False)
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            help="Number of images, or frames.",
            parser=shared.read_count,
            show_default="16, 8 a class for all, or 9 frames",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Image i is a function of (seed, i).", parser=shared.read_seed, show_default="0"),
    ] = None,
    steps: shared.Steps = None,
    sampler: shared.Sampler = None,
    schedule: shared.Schedule = None,
    eta: shared.Eta = None,
    rho: shared.Rho = None,
    class_: shared.ClassNames = None,
    cfg: shared.Cfg = None,
    cfg_interval: shared.CfgInterval = None,
    cfg_channels: shared.CfgChannels = None,
    temperature: shared.Temperature = None,
    typical: shared.Typical = None,
    renoise: shared.RenoiseMode = None,
    renoise_steps: shared.RenoiseSteps = None,
    size: shared.Size = None,
    weights: shared.Weights = "ema",
    batch_size: shared.BatchSize = None,
    compile_: shared.Compile = None,
    precision: shared.Precision = None,
    codec: shared.Codec = None,
    init_image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture that every image starts from.", show_default=False)
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far --init-image is left behind: (0, 1], the share of steps run.",
            parser=real("--strength", least=0, most=1, above=True),
            show_default="0.6; 1 with --mask or --outpaint",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of models of tokens: a picture of the size of --init-image; what is white there is made anew. The rest stays "
            "as the codec reconstructs it.",
            show_default=False,
        ),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="L,T,R,B",
            help="Of models of tokens: pixels to make on the left, top, right and bottom of --init-image.",
            show_default=False,
        ),
    ] = None,
    interpolate_seeds: Annotated[
        str | None, typer.Option(metavar="A:B[:C...]", help="Seeds: frames from image 0 of one to that of the next.")
    ] = None,
    interpolate_classes: Annotated[
        str | None, typer.Option(metavar="A:B[:C...]", help="Classes: frames from one to the next, the noise the same.")
    ] = None,
    processes: shared.Processes = 1,
    oversubscribe: shared.Oversubscribe = False,
    device: shared.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the images.", show_default="samples/<name>, then <name>-2, …"),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A samples.json: makes the same images again, on the same kind of device. CKPT, --init-image and --codec say "
            "where a file is now.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier set in --out: its pictures go.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The record on stdout.")] = False,
) -> None:
    """Make images: PNGs, one grid or strip, and a samples.json that reproduces them."""
    import json
    from contextlib import nullcontext

    from hdit_cli import launchers, runtime
    from hdit_cli.commands.progress import bar
    from hdit_cli.engine.launch import relaunch

    launchers.adopt()
    shared.check_weights(weights)
    checkpoint = checkpoint and str(shared.located(Path(checkpoint)))
    options = shared.wanted(
        seed=seed,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        eta=eta,
        rho=rho,
        cfg=cfg,
        cfg_interval=cfg_interval,
        cfg_channels=cfg_channels,
        temperature=temperature,
        typical=typical,
        renoise=renoise,
        renoise_steps=renoise_steps,
        size=size,
        batch_size=batch_size,
        precision=precision,
    )
    wanted = {**options, "strength": strength, "compile": compile_}
    ends = {"seeds": _seeds(interpolate_seeds), "classes": _classes(interpolate_classes)}
    label = shared.classes(class_)
    named = {"n": n, "label": label, "weights": weights, "init_image": init_image and str(init_image), **ends}
    named |= {"mask": mask and str(mask), "outpaint": _margins(outpaint)}
    named["codec"] = codec and str(codec)
    _check_together({**wanted, **named}, redo=from_ is not None)
    folder = _folder(checkpoint, from_, out=out, force=force)
    code = relaunch(processes, oversubscribe=oversubscribe)
    if code is not None:
        raise typer.Exit(code)
    asked = _recorded(checkpoint, from_, named)
    on = _device(device, asked)
    runtime.join_processes(on)
    runtime.keep_freed_memory()

    from hdit_cli.engine.sampling.collect import collect, load_for, prepare
    from hdit_cli.engine.sampling.sample_folder import new_folder
    from hdit_cli.engine.sampling.settings import notes

    model, sha256 = load_for(asked.order, sha256=asked.sha256, device=on)
    order = _again(asked.order, model) if from_ is not None else _sampled(asked.order, model, wanted)
    content = prepare(model, order, init_sha256=asked.init_sha256, mask_sha256=asked.mask_sha256)
    main = runtime.ranks().is_main
    if main:
        shared.tell_origin(weights=model.weights, origin=model.origin)
        shared.tell_notes(notes(model, order.sampling))
    with (
        nullcontext(folder) if out is not None or force else new_folder(folder) as folder,
        bar(total=content.n, unit="image", label="sampling", quiet=not main) as progress,
    ):
        world = runtime.ranks().world
        record = collect(
            model,
            order,
            out=folder,
            sha256=sha256,
            content=content,
            on_images=lambda count: progress.advance(count * world),
        )
    if main:
        say(json.dumps(record) if json_ else _sentence(record, folder))
        following.tell(["eval-fid", order.checkpoint, *(["--codec", order.codec] if order.codec else [])])


def _folder(checkpoint: str | None, from_: Path | None, *, out: Path | None, force: bool) -> Path:
    """Where the images go; without --out and --force, beside the earlier sets if there are any.

    Raises:
        UsageError: nothing names a checkpoint, or an earlier set lies in --out.
    """
    from hdit_cli import files
    from hdit_cli.errors import UsageError
    from hdit_cli.launchers import is_child

    if checkpoint is None and from_ is None:
        raise UsageError("give a checkpoint, or --from a samples.json", hint="hdit sample runs/NAME")
    if out is None:
        name = files.real_path(Path(checkpoint or str(from_)))
        return Path("samples") / (name.parent.name if name.is_file() else name.name)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", hint="--out names the folder for the images")
    if out.exists() and any(out.iterdir()) and not force and not is_child():
        raise UsageError(f"{out} is not empty", hint="--out elsewhere, or --force to overwrite")
    return out


def _device(typed: str | None, asked: "Recorded") -> "torch.device":
    """Where to compute: where it was typed, else as recorded, else as this machine chooses.

    Noise is the same on devices of one kind, so a record of another kind that is not here cannot give the same images:
    that is told.
    """
    from hdit_cli import runtime
    from hdit_cli.errors import UsageError

    try:
        chosen = runtime.device(typed if typed is not None else asked.device or None)
    except UsageError:
        if typed is not None:
            raise
        chosen = runtime.device()
    if asked.device and chosen.type != asked.device and runtime.ranks().is_main:
        say(
            f"warning: the samples were made on {asked.device}, and this is {chosen.type}: its noise, and so the images, "
            "are others",
            err=True,
        )
    return chosen


def _seeds(text: str | None) -> tuple[int, ...]:
    """The numbers of A:B[:C…].

    Raises:
        UsageError: fewer than two, or not whole numbers.
    """
    from hdit_cli.errors import UsageError

    parts = [] if text is None else text.split(":")
    try:
        seeds = tuple(shared.read_seed(part) for part in parts)
    except UsageError:
        seeds = (0,)
    if len(seeds) == 1:
        raise UsageError(f"--interpolate-seeds {text!r} is not A:B", hint="two seeds or more, for example 0:7")
    return seeds


def _margins(text: str | None) -> tuple[int, int, int, int]:
    """The pixels of L,T,R,B.

    Raises:
        UsageError: not four whole numbers, or nothing to make.
    """
    from hdit_cli.errors import UsageError

    if text is None:
        return 0, 0, 0, 0
    words = text.split(",")
    found = tuple(int(word) if re.fullmatch(r"[0-9]{1,5}", word.strip()) else -1 for word in words)
    if len(found) != 4 or min(found) < 0:
        raise UsageError(
            f"--outpaint {text[:40]!r} is not L,T,R,B",
            hint="pixels on the left, top, right and bottom: for example 32,0,32,0",
        )
    if not any(found):
        raise UsageError(f"--outpaint {text[:40]!r} adds nothing", hint="leave it out, or 32,0,32,0")
    return found


def _classes(text: str | None) -> tuple[str, ...]:
    """The names of A:B[:C…].

    Raises:
        UsageError: fewer than two, or an empty one.
    """
    from hdit_cli.errors import UsageError

    names = () if text is None else tuple(part.strip() for part in text.split(":"))
    if len(names) == 1 or not all(names):
        raise UsageError(
            f"--interpolate-classes {text!r} is not A:B",
            hint="two classes or more, for example daisy:rose; a number where a name holds a colon",
        )
    return names


def _check_together(given: dict[str, Any], *, redo: bool) -> None:
    """Raises UsageError for options of which one would do nothing."""
    from hdit_cli.errors import UsageError

    options = {"label": "--class", "n": "-n", "seeds": "--interpolate-seeds", "classes": "--interpolate-classes"}
    if redo:
        plain = {
            "weights": "ema",
            "init_image": given["init_image"],
            "mask": given["mask"],
            "outpaint": (0, 0, 0, 0),
            "codec": given["codec"],
            "seeds": (),
            "classes": (),
        }
        extra = [name for name, value in given.items() if value != plain.get(name)]
        if extra:
            words = ", ".join(options.get(name, f"--{name.replace('_', '-')}") for name in extra)
            raise UsageError("--from makes the same images again, as recorded", hint=f"leave out {words}")
        return
    if given["strength"] is not None and given["init_image"] is None:
        raise UsageError("--strength needs a picture to start from", hint="--init-image FILE")
    for name, unset in (("mask", None), ("outpaint", (0, 0, 0, 0))):
        if given[name] != unset and given["init_image"] is None:
            raise UsageError(f"--{name} needs a picture to start from", hint="--init-image FILE")
    if given["seeds"] and given["seed"] is not None:
        raise UsageError("--interpolate-seeds names the seeds", hint="leave --seed out")


def _recorded(checkpoint: str | None, from_: Path | None, named: dict[str, Any]) -> "Recorded":
    """The order of this command line, or of a record; CKPT and --init-image then only say where its files are now."""
    from dataclasses import replace

    from hdit_cli.engine.sampling.collect import Order
    from hdit_cli.engine.sampling.recorded import Recorded, read_order
    from hdit_cli.errors import UsageError
    from hdit_cli.tasks.sampling import Sampling

    if from_ is None:
        assert checkpoint is not None
        return Recorded(Order(checkpoint, Sampling(), **named), "")
    recorded = read_order(from_)
    order = recorded.order
    if named["init_image"] and not order.init_image:
        raise UsageError(f"the samples of {from_} were started from no picture", hint="leave --init-image out")
    if named["mask"] and not order.mask:
        raise UsageError(f"the samples of {from_} were made under no mask", hint="leave --mask out")
    moved = {"checkpoint": checkpoint or order.checkpoint, "init_image": named["init_image"] or order.init_image}
    moved["mask"] = named["mask"] or order.mask
    moved["codec"] = named["codec"] or _still_there(order.codec)
    return replace(recorded, order=replace(order, **moved))


def _still_there(codec: str | None) -> str | None:
    """A recorded codec's file; None where it is gone: then it is looked for beside the checkpoint, by its SHA-256."""
    return codec if codec and Path(codec).is_file() else None


def _again(order: "Order", model: "Model") -> "Order":
    """A recorded order as this machine can run it."""
    from dataclasses import replace

    from hdit_cli import runtime
    from hdit_cli.engine.sampling.pace import as_recorded

    sampling, note = as_recorded(model, order.sampling)
    if note and runtime.ranks().is_main:
        say(f"warning: {note}", err=True)
    return replace(order, sampling=sampling)


def _sampled(order: "Order", model: "Model", wanted: dict[str, Any]) -> "Order":
    """The order with its sampling: what was asked for, over the recipe's defaults."""
    from dataclasses import replace

    from hdit_cli.engine.sampling.collect import image_count, sampling_of
    from hdit_cli.engine.sampling.pace import PACE, paced
    from hdit_cli.engine.sampling.painting import canvas_size, check_paint
    from hdit_cli.engine.sampling.settings import check_asked

    check_paint(model, mask=order.mask is not None, margins=order.outpaint)
    if order.init_image and wanted["strength"] is None and not (order.mask or any(order.outpaint)):
        wanted = {**wanted, "strength": STRENGTH}
    if any(order.outpaint):
        wanted = {**wanted, "size": canvas_size(wanted["size"] or model.image_size, order.outpaint)}
    fast = {name: wanted[name] for name in PACE}
    sampling = sampling_of(model, **wanted)
    check_asked([sampling], wanted)
    return replace(order, sampling=paced(model, sampling, images=image_count(model, order), **fast))


def _sentence(record: dict[str, Any], folder: Path) -> str:
    """What was made, of what, and where."""
    ends = record["interpolate"]
    if ends:
        seeds, classes = ":".join(map(str, ends["seeds"])), ":".join(ends["classes"])
        words = [f"{record['n']} frames", *([f"seeds {seeds}"] if seeds else []), *([classes] if classes else [])]
    else:
        words = [f"{record['n']} images"]
    if record["label"] is not None:
        words.append(shared.classes_told(record["label"]))
    if record["init_image"]:
        words.append(f"from {record['init_image']['path']} at strength {record['sampling']['strength']:g}")
    if record.get("mask"):
        words.append(f"painted where {record['mask']['path']} is white")
    if record.get("outpaint"):
        words.append(
            "painted around by {} on the left, {} above, {} on the right, {} below".format(*record["outpaint"])
        )
    return f"{', '.join(words)}; {record['overview']} and samples.json in {folder}"
