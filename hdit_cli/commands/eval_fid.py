"""`hdit eval-fid CKPT_OR_DIR`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli import catalog
from hdit_cli.commands import completion
from hdit_cli.commands import sampling as shared
from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.engine.model import Model
    from hdit_cli.engine.scoring.evaluate import Evaluation
    from hdit_cli.engine.scoring.request import Request
    from hdit_cli.engine.scoring.scores import Score
    from hdit_cli.engine.scoring.sweep import Axis


def eval_fid(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT_OR_DIR",
            help="A checkpoint file, a run folder, a folder of pictures, a prepared data set, or an .npz of samples (arr_0).",
        ),
    ],
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            help="Number of pictures.",
            parser=shared.read_count,
            show_default="eval.n of the recipe; all of a folder",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"{', '.join(catalog.names('metric'))}; fd and kd are of any net, the last two need none.",
            autocompletion=completion.listed_names("metric"),
            show_default="the recipe's: fid,kid",
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inception weights; another net than the published one is marked as such. A TorchScript file is a "
            "program: name only files you trust.",
            show_default="the cache, else downloaded",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Feature net: inception, pytorch-fid, adm (as guided-diffusion scores; for sfid), dinov2:FOLDER, clip:FOLDER, "
            "or a .pt2 file of torch.export; several with commas, of the same pictures. A .pt2 file is a program, and a folder "
            "steers a large library: both can run code, so name only what you trust. One that a received checkpoint names is "
            "not opened.",
            show_default="the recipe's: inception",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Data set, folder, or .npz of moments or samples to compare with.",
            show_default="the data the checkpoint names",
        ),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Patch for patch-grid, or one number for both sides.",
            show_default="the patch of the model",
        ),
    ] = None,
    allow_small: Annotated[
        bool, typer.Option("--allow-small", help="FID of fewer than 2,048 pictures; it is biased upwards.")
    ] = False,
    seed: shared.Seed = 0,
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
    processes: shared.Processes = 1,
    oversubscribe: shared.Oversubscribe = False,
    device: shared.Device = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the generated pictures in this folder, as PNG.", show_default=False),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="memorisation: PNG of the closest samples beside their nearest training pictures.",
            show_default="memorisation.png in the run",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Of cfg, steps, sampler, seed, weights: a score for each value, e.g. cfg=1:3:0.25 or "
            "steps=10,20; repeat it for a grid. Finished points are kept.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="--sweep: folder for the table and the plot.",
            show_default="sweeps/… in the run, else here",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="The scores and all they depend on, on stdout.")] = False,
) -> None:
    """Score samples, or a folder of pictures: FID, KID, IS, precision and recall, sliced Wasserstein distance, and more."""
    from dataclasses import replace

    from hdit_cli import launchers, runtime
    from hdit_cli.commands import sweep as sweeping
    from hdit_cli.engine.launch import relaunch
    from hdit_cli.engine.scoring.request import Request
    from hdit_cli.errors import UsageError

    launchers.adopt()
    shared.check_weights(weights)
    request = Request(
        shared.located(source),
        n,
        _names(metrics),
        _features(features, inception),
        reference,
        allow_small,
        shared.classes(class_),
        weights,
        shared.wanted(
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
        | ({} if compile_ is None else {"compile": compile_}),
        save,
        shared.parse_size(patch, option="--patch"),
        grid,
    )
    axes = sweeping.parse(sweep or [])
    if out is not None and not axes:
        raise UsageError("--out is where a --sweep puts its table", hint="--save DIR keeps the generated pictures")
    code = relaunch(processes, oversubscribe=oversubscribe)
    if code is not None:
        raise typer.Exit(code)
    request = replace(request, device=runtime.device(device), codec=codec)
    runtime.join_processes(request.device)
    runtime.keep_freed_memory()
    if axes:
        _sweep(request, axes, out=out, as_json=json_)
    else:
        _score(request, as_json=json_)


def _score(request: "Request", *, as_json: bool) -> None:
    """One evaluation, printed."""

    from hdit_cli import runtime
    from hdit_cli.commands.progress import Bars
    from hdit_cli.engine.scoring.evaluate import evaluate

    with Bars(quiet=not runtime.ranks().is_main) as bars:
        told: dict[str, Any] = {"on_download": bars.download, "on_model": _tell_model, "on_note": _tell_note}
        evaluation = evaluate(request, on_progress=bars.pictures, **told)
    if evaluation is not None:
        if as_json:
            say_json(evaluation.record())
        else:
            say(*_page(evaluation))


def _sweep(request: "Request", axes: "tuple[Axis, ...]", *, out: Path | None, as_json: bool) -> None:
    """An evaluation for each point, and the table."""

    from hdit_cli import runtime
    from hdit_cli.commands import sweep as sweeping
    from hdit_cli.commands.progress import Bars
    from hdit_cli.engine.scoring.request import Session
    from hdit_cli.engine.scoring.sweep import Sweep, sweep

    names = [axis.name for axis in axes]
    with Bars(quiet=not runtime.ranks().is_main) as bars:

        def tell(entry: dict[str, Any]) -> None:
            bars.clear()
            say(sweeping.point_line(entry, names), err=True)

        table = sweep(
            Sweep(request, axes, out),
            Session(),
            on_progress=bars.pictures,
            on_download=bars.download,
            on_model=_tell_model,
            on_note=_tell_note,
            on_point=tell,
        )
    if table is not None:
        if as_json:
            say_json(table)
        else:
            say(*sweeping.page(table))


def _tell_note(note: str) -> None:
    """What should be known before the work begins."""
    from hdit_cli import runtime

    if runtime.ranks().is_main:
        say(f"note: {note}", err=True)


def _tell_model(model: "Model") -> None:
    """Where the weights come from, before anything slow begins."""
    from hdit_cli import runtime

    if runtime.ranks().is_main:
        shared.tell_origin(weights=model.weights, origin=model.origin)


def _names(metrics: str | None) -> tuple[str, ...] | None:
    """The metrics of a list with commas.

    Raises:
        UsageError: an unknown one, or none.
    """
    from hdit_cli import catalog
    from hdit_cli.errors import UsageError

    if metrics is None:
        return None
    names = tuple(name.strip().lower() for name in metrics.split(",") if name.strip())
    known = ",".join(catalog.names("metric"))
    if not names or not set(names) <= set(catalog.names("metric")):
        raise UsageError(f"--metrics {metrics!r} names an unknown metric, or none", hint=f"of {known}, with commas")
    return names


def _features(named: str | None, inception: "Path | None") -> str | None:
    """The feature nets of two options that say the same; None where neither is given.

    Raises:
        UsageError: both are given, or no such net.
    """
    from hdit_cli.errors import UsageError
    from hdit_cli.metrics.feature_net import split

    if inception is not None:
        if named is not None:
            raise UsageError("--inception and --features both name a net", hint=f"--features inception:{inception}")
        return f"inception:{inception}"
    if named is not None:
        split(named)
    return named


def _page(evaluation: "Evaluation") -> list[str]:
    """The scores, each with its numbers of pictures, then what they depend on."""
    facts = evaluation.facts
    lines = [_line(score) for score in evaluation.scores]
    lines = [*lines, *_tables(evaluation)]
    reference, features = facts["reference"], facts["features"]
    lines.append(f"pictures   {facts['source']}, {_size(facts)}{_how(facts)}")
    fingerprint = reference["fingerprint"][:12]
    lines.append(f"reference  {reference['path']}, {_size(reference)}, {fingerprint}")
    for net in _listed(features):
        mark = "" if net["published"] else ", not the published file"
        lines.append(f"features   {_net(net)}{mark}")
    lines += [f"closest    {place}" for place in _listed(facts.get("nearest"))]
    return lines + [f"note: {note}" for note in evaluation.notes]


def _size(told: dict[str, Any]) -> str:
    """Height x width of the pictures of a set; how many sizes they have, where that is more than one."""
    if told["size"] is None:
        return "moments"
    sizes = ["{}x{}".format(*size) for size in told.get("sizes", [told["size"]])]
    return sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"


def _listed(told: Any) -> list[Any]:
    """What is told once, or of each of several nets."""
    return told if isinstance(told, list) else [told] if told else []


def _net(told: dict[str, Any]) -> str:
    return f"{told['net']}, {told['resize']}, sha256 {told['sha256'][:12]}"


def _line(score: "Score") -> str:
    details = dict(score.details)
    levels = details.pop("levels", {})
    deviation = details.pop("standard_deviation", None)
    value = f"{score.value:.4g}" if deviation is None else f"{score.value:.4g} ± {deviation:.2g}"
    extra = [f"{name} {value:.4g}" for name, value in levels.items()]
    extra += [f"{name.replace('_', ' ')} {_number(v)}" for name, v in details.items() if isinstance(v, int | float)]
    told = f"   ({', '.join(extra)})" if extra else ""
    against = "" if score.n_reference is None else f" against {score.n_reference:,}"
    of = "" if score.features is None else f"   of {_net(score.features)}"
    return f"{score.metric.upper():<4} {value}   n = {score.n:,}{against}{told}{of}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _tables(evaluation: "Evaluation") -> list[str]:
    """What does not fit a line: a class each, or a quantile of distances each."""
    lines, names = [], evaluation.facts.get("classes", [])
    for score in evaluation.scores:
        of = "" if score.features is None else f"   of {_net(score.features)}"
        for k, row in score.details.get("classes", {}).items():
            lines.append(f"  {names[k]:<20} {row['fid']:.4g}   n = {row['n']:,} against {row['n_reference']:,}{of}")
        held_out = score.details.get("held_out", {})
        for q, distance in score.details.get("quantiles", {}).items():
            beside = f", held-out pictures {held_out['quantiles'][q]:.4g}" if held_out else ""
            lines.append(f"  {float(q):.0%} of samples are within {distance:.4g} of a training picture{beside}{of}")
    return lines


def _how(facts: dict[str, Any]) -> str:
    """How the pictures were sampled; nothing where they were there already."""
    if "sampling" not in facts:
        return ""
    from hdit_cli.tasks.sampling import in_words

    how, model = facts["sampling"], facts["model"]
    words = [f"step {model['step']:,}", f"{model['weights']} weights", f"{how['sampler']} {how['steps']} steps"]
    words += [f"cfg {in_words(how['cfg'])}", f"seed {how['seed']}", how["precision"]]
    if how.get("cfg_interval"):
        words.append(f"cfg within sigma {how['cfg_interval'][0]:g}:{how['cfg_interval'][1]:g}")
    if how.get("cfg_channels") and how["cfg"] != 1:
        words.append(f"cfg on the first {how['cfg_channels']} channels")
    if how["label"] is not None:
        words.append(shared.classes_told(how["label"]))
    return "; " + ", ".join(words)
