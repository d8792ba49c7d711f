"""`hdit train RECIPE`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli.commands import completion, following
from hdit_cli.commands import sampling as shared
from hdit_cli.commands.recipe import complete_recipe, tell_stand_in
from hdit_cli.commands.say import say

if TYPE_CHECKING:
    from hdit_cli.engine.run.events import Event, Started, Working
    from hdit_cli.recipe import Recipe


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe file, or the name of a shipped recipe (`hdit recipe`).", autocompletion=complete_recipe
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="DIR", help="The prepared data set; overrides data.path of the recipe.")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the recipe, e.g. train.steps=1000; repeatable.",
            autocompletion=completion.settings,
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder.", show_default="runs/<recipe name>")
    ] = None,
    processes: shared.Processes = 1,
    oversubscribe: shared.Oversubscribe = False,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="CKPT",
            help="Start a new run from the weights of this checkpoint: a run folder (its EMA weights), or a file (as it is). "
            "Classes are matched by name, layers by their place in the network; what fits nowhere is new.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old run is moved to <run>.old-N.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, take a few real steps, say what a run costs; write nothing."),
    ] = False,
    find_batch: Annotated[
        bool, typer.Option("--find-batch", help="Try batches and name the accumulation that is fastest; write nothing.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="--find-batch: memory to stay within, e.g. 8G.", show_default="what is free"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Facts as JSON on stdout.")] = False,
) -> None:
    """Train a recipe; goes on by itself where the run folder holds a checkpoint."""
    from hdit_cli import files, launchers
    from hdit_cli.engine.launch import relaunch
    from hdit_cli.errors import UsageError
    from hdit_cli.recipe import load_recipe

    launchers.adopt()
    tell_stand_in(recipe)
    loaded = load_recipe(recipe, [*(set_ or ()), *([f"data.path={_quoted(data)}"] if data else [])])
    if not loaded.data.path:
        from hdit_cli.engine.training.setup import missing_data

        raise missing_data(loaded, None)
    folder = run or Path("runs") / loaded.name
    if dry_run or find_batch or memory:
        from hdit_cli.commands import cost

        cost.check(dry_run=dry_run, find_batch=find_batch, memory=memory)
        if init is not None:
            say(f"would start from {init}:", *_checked(loaded, init=init), err=True)
        show = partial(cost.find, memory=cost.parse_memory(memory)) if find_batch else cost.show
        show(loaded, processes=processes, as_json=json_)
        return
    if fresh:
        if init is not None and files.real_path(init).is_relative_to(files.real_path(folder)):
            raise UsageError(f"--fresh would move {init} away", hint="choose another --run, which may start from it")
        _checked(loaded, init=init)  # what cannot start must not cost the old run its place
        _set_aside(folder)
    code = relaunch(processes, oversubscribe=oversubscribe, drop=("--fresh",))
    if code is not None:
        raise typer.Exit(code)
    _train_here(folder, loaded, init=init, as_json=json_)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def _set_aside(folder: Path) -> None:
    """Moves an old run away, once, before any process looks for it."""
    from hdit_cli.engine.run.folder import set_aside
    from hdit_cli.launchers import is_child

    moved = None
    if not is_child():
        moved = set_aside(folder)
    else:  # torchrun's or srun's: the launcher keeps the flag from its own
        from hdit_cli import runtime

        if runtime.join_processes().is_main:
            moved = set_aside(folder)
        runtime.wait_for_all()
    if moved:
        say(f"the old run is now {moved}", err=True)


def _checked(recipe: "Recipe", *, init: Path | None) -> list[str]:
    """Lines on what a run would load from `init`.

    Raises:
        HditError: recipe, data and `init` do not fit.
    """
    from hdit_cli.engine.training.init import match, read_source
    from hdit_cli.engine.training.setup import open_data

    reader = open_data(recipe, Path(recipe.data.path))
    if init is None:
        return []
    return match(read_source(init), recipe, classes=reader.classes if recipe.model.classes else []).lines()


def _train_here(folder: Path, recipe: "Recipe", *, init: Path | None, as_json: bool) -> None:
    import json

    from hdit_cli import runtime
    from hdit_cli.engine.training.loop import train as run_training
    from hdit_cli.errors import Interrupted

    with Watcher(quiet=not runtime.ranks().is_main) as watcher:
        finished = run_training(folder, recipe, data=Path(recipe.data.path), watch=watcher, init=init)
    if not runtime.ranks().is_main:
        if finished.stopped_by.startswith("SIG"):
            raise typer.Exit(Interrupted.exit_code)
        return
    facts = {"run": str(folder), "step": finished.step, "stopped_by": finished.stopped_by, "loss": watcher.loss}
    if finished.stopped_by.startswith("SIG"):
        raise Interrupted(
            f"stopped by {finished.stopped_by} at step {finished.step}, saved in {folder}",
            hint="the same command goes on from there",
        )
    if as_json:
        say(json.dumps(facts))
    elif finished.stopped_by:
        say(f"stopped after the time allowed, at step {finished.step}, saved; the same command goes on")
    else:
        say(f"done: step {finished.step}, {folder / 'ckpt.safetensors'}")
    if not finished.stopped_by:
        following.tell(following.after_train(recipe, folder))


class Watcher:
    """Draws progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.beside: Any = None  # the bar of a grid, a validation or an evaluation
        self.loss: float | None = None

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._done_working()
        if self.bar is not None:
            self.bar.close()

    def __call__(self, event: "Event") -> None:
        from hdit_cli.engine.run import events

        if self.quiet:
            return
        if not isinstance(event, events.Working):
            self._done_working()
        match event:
            case events.Working():
                self._work(event)
            case events.Started():
                self._start(event)
            case events.Begun(lines=lines):
                self._say(*lines)
            case events.Stepped(step=step, images_per_second=rate):
                self.bar.images_per_second = rate
                self.bar.update(step - self.bar.n)
            case events.Logged(loss=loss, values=values, peak_bytes=peak):
                self.loss = loss
                words = [f"{self.bar.images_per_second:.1f} images/s", f"loss {loss:.4f}", f"lr {values['lr']:.2g}"]
                self.bar.set_postfix_str(
                    ", ".join([*words, *([f"{peak / 1e9:.1f} GB"] if peak else [])]), refresh=False
                )
            case events.Validated(step=step, lines=lines):
                self._say(_validation(step, lines))
            case events.Evaluated(step=step, lines=lines):
                for line in lines:
                    self._say(_evaluation(step, line["eval"]))
            case events.Saved(step=step, path=path):
                self._say(f"saved step {step}: {path}")
            case events.Kept(step=step, path=path):
                self._say(f"kept averages of step {step}: {path}")
            case events.Drawn(path=path):
                self._say(f"drew {path}")
            case events.Warned(text=text):
                self._say(f"warning: {text}")
            case events.Noted(text=text):
                self._say(f"note: {text}")

    def _work(self, working: "Working") -> None:
        from hdit_cli.commands.progress import bar

        if self.beside is not None and self.beside.label != working.what:
            self._done_working()
        if self.beside is None:
            self.beside = bar(total=working.total, unit=working.unit, label=working.what, passing=True)
        self.beside.update(working.done - self.beside.n)

    def _done_working(self) -> None:
        if self.beside is not None:
            self.beside.close()
            self.beside = None
            if self.bar is not None:
                self.bar.unpause()  # the time left is that of training alone

    def _start(self, started: "Started") -> None:
        from hdit_cli.commands.progress import bar

        classes = f"{started.classes} classes" if started.classes else "unconditional"
        names = list(started.class_names[:8]) + (["…"] if len(started.class_names) > 8 else [])
        classes += f" ({', '.join(names)})" if names else ""
        held_out = f", validated on {started.held_out:,} held out" if started.held_out else ", no validation"
        sizes = f" of {started.buckets} sizes" if started.buckets else ""
        self._say(
            f"{started.params:,} parameters, {started.gmacs:.3f} GMAC an image; "
            f"{started.images:,} images{sizes}, {classes}{held_out}; "
            f"{started.split}; {started.device}"
        )
        if started.step:
            self._say(f"goes on from step {started.step}")
        self.bar = bar(total=started.steps, initial=started.step, unit="step")
        self.bar.images_per_second = 0.0

    def _say(self, *lines: str) -> None:
        for line in lines:
            if self.bar is not None:
                self.bar.write_line(line)
            else:
                say(line, err=True)


def _evaluation(step: int, told: "dict[str, Any]") -> str:
    """`evaluation step 1000: kid 0.0123, swd 34.5 ema, n = 1,000, the best so far`."""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in told["scores"].items())
    best = ", the best so far" if told["best"] else ""
    return f"evaluation step {step}: {scores} {told['weights']}, n = {told['n']:,}{best}"


def _validation(step: int, lines: "list[dict[str, Any]]") -> str:
    """`validation step 1000: held-out 0.0312 raw 0.0298 ema, training 0.0290 raw 0.0281 ema`."""
    splits: dict[str, list[str]] = {}
    for line in lines:
        mean = "not finite" if line["mean"] is None else f"{line['mean']:.4f}"
        if line.get("psnr") is not None:  # of an autoencoder
            mean = f"{line['psnr']:.2f} dB"
        splits.setdefault(line["split"], []).append(f"{mean} {line['weights']}")
    return f"validation step {step}: " + ", ".join(f"{name} {' '.join(told)}" for name, told in splits.items())
