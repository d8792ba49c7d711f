"""The training loop, as a generator of events: where a run goes on, when it logs, draws, saves and stops."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hdit_cli import files, runtime
from hdit_cli.data.loader import Batch
from hdit_cli.data.order import split
from hdit_cli.engine.memory.out_of_memory import check_room, in_training, told
from hdit_cli.engine.run import checkpoint, rotation, snapshots
from hdit_cli.engine.run.codec_file import keep_beside
from hdit_cli.engine.run.events import (
    Begun,
    Event,
    Finished,
    Kept,
    Logged,
    Noted,
    Saved,
    Stepped,
    Validated,
    Warned,
    Working,
)
from hdit_cli.engine.run.folder import GRIDS, VALIDATION, RunFolder
from hdit_cli.engine.run.rows import read_rows
from hdit_cli.engine.run.saver import Proceed, Saver
from hdit_cli.engine.run.stop import StopRequest
from hdit_cli.engine.sampling.watched import BrokenOff
from hdit_cli.engine.training.beginning import begin
from hdit_cli.engine.training.clock import Clock, is_due, peak_bytes
from hdit_cli.engine.training.draw import Tell, draw_grids
from hdit_cli.engine.training.evaluator import Evaluator
from hdit_cli.engine.training.outlook import Outlook, changed_rate
from hdit_cli.engine.training.reconstruct import draw_reconstructions
from hdit_cli.engine.training.setup import (
    at_largest,
    centred,
    check_same_codec,
    check_same_data,
    new_accelerator,
    new_model,
    open_data,
    open_loader,
    told_of_latents,
    with_own_codec,
)
from hdit_cli.engine.training.state import Window
from hdit_cli.engine.training.step import Stepper, compile_step
from hdit_cli.engine.training.trackers import Trackers, check_trackers
from hdit_cli.engine.training.watch import Watcher, open_watcher
from hdit_cli.errors import UsageError
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.recipe import Recipe


class Trainer:
    """One process's part of a run. `events` trains; everything else serves it.

    Args:
        folder: the run folder, locked by the caller.
        recipe: validated and resolved.
        data: path of the prepared data set.
        init: checkpoint whose weights a new run starts from.
        tell: hears how far a grid, a validation or an evaluation is.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        *,
        data: Path,
        init: Path | None = None,
        tell: Tell = lambda working: None,
    ) -> None:
        self.tell = tell
        self.folder, self.recipe = folder, recipe
        self.reader = open_data(recipe, data)
        runtime.set_deterministic(recipe.train.deterministic)
        runtime.fast_matmul()
        self.accelerator = new_accelerator(recipe)
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.slots = split(
            recipe.train.batch_size, world=self.world, rank=self.rank, accumulate=recipe.train.accumulate
        )
        check_room(at_largest(recipe, self.reader), classes=len(self.reader.classes), processes=self.world)
        model = new_model(recipe, self.reader, path=str(data))
        self.beginning = begin(model, folder.path, init)
        self.stepper = Stepper(recipe, model=model, accelerator=self.accelerator)
        self.state, self.guard = self.stepper.state, self.stepper.guard
        self.outlook = Outlook(
            recipe, self.reader, model=self.state.model, world=self.world, timed=self.state.shards is None
        )
        self.compiling = compile_step(self.stepper, sizes=len(self.reader.sizes))
        self.saver = Saver()
        self.resumed = False  # from a checkpoint
        self.owed: list[str] = []  # of what belongs to this step, what is still to be done
        self.rate_before: float | None = None  # where it was changed and no line of the log says so yet
        # a pass without gradients keeps far less than a training step
        self.validator = open_watcher(
            recipe, self.reader, batch_size=4 * len(self.slots[0]), accelerator=self.accelerator
        )
        self.evaluator: Evaluator | None = None
        if recipe.eval.every:
            reader = centred(recipe, self.reader)
            self.evaluator = Evaluator(recipe, model=self.state.model, reader=reader, folder=folder.path)

    # What is written down

    def log(self) -> Logged:
        """Ends the window: one line of metrics.jsonl, the mean over processes and steps."""
        state = self.state
        window = state.window
        parts = runtime.gather(self.stepper.own())
        loss, norm = window.means(parts)
        status = state.model.task.status()
        images = state.step * self.recipe.train.batch_size
        values: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            values = {"step": state.step, "images": images, "loss": loss}
            values |= {"lr": state.optimizer.param_groups[0]["lr"], "grad_norm": norm}
            if self.rate_before is not None:
                values["lr_before"] = self.rate_before
            values["gradient_noise_scale"] = self.stepper.noise_scale.value([part["small_norm"] for part in parts])
            values = {name: None if value != value else value for name, value in values.items()}  # JSON has no NaN
            if self.recipe.train.nonfinite == "skip":
                values["skipped"] = int(window.skipped)
            values["loss_by_sigma"] = Window.loss_by_sigma([part["by_sigma"] for part in parts])
            values |= {name: None if value != value else value for name, value in window.means_besides(parts).items()}
            values |= status
            self.folder.log_metrics(values)
        state.window, self.rate_before = Window.empty(device=self.device), None
        return Logged(state.step, loss, norm, values, peak_bytes(self.device))

    def validate(self, validator: Watcher, stop: StopRequest) -> Validated:
        """One line of validation.jsonl for each weights and split."""
        state = self.state
        images = state.step * self.recipe.train.batch_size

        def tell(done: int, total: int) -> None:
            self.tell(Working("validating", done, total, "image"))

        found: list[dict[str, Any]] = []
        with state.models() as models:
            # together, so that each picture is read once; of divided weights one at a time
            for names in [("raw", "ema")] if state.shards is None else [("raw",), ("ema",)]:
                found += validator.lines({name: models[name] for name in names}, stop=stop, tell=tell)
        lines = [{"step": state.step, "images": images, **line} for line in found]
        if self.accelerator.is_main_process:
            for line in lines:
                self.folder.log_validation(line)
        return Validated(state.step, lines)

    def evaluate(self, evaluator: Evaluator, stop: StopRequest) -> list[Event]:
        """Lines of metrics.jsonl with scores; none where it was broken off by `stop`."""
        self.guard.check(self.state.step)
        self.state.mark(self.recipe.train.batch_size)
        with self.state.models() as models:
            evaluated = evaluator.evaluate(models, step=self.state.step, stop=stop, tell=self.tell)
        for line in evaluated.lines if evaluated else ():
            self.folder.log_metrics(line)
        return [evaluated] if evaluated else []

    def save(self) -> list[Event]:
        """Copies the state to the host and has it written in a thread, by the main process.

        Returns:
            what was saved before, if it was still under way.
        """
        self.guard.check(self.state.step)
        state, parts = self.state, runtime.gather(self.stepper.own())
        main = self.accelerator.is_main_process
        if not main and state.shards is None:
            return []
        ended = self.saver.wait()
        self.state.mark(self.recipe.train.batch_size)
        snapshot = state.snapshot(self._facts(parts) if main else {})
        if main:
            self.saver.start(partial(self._write, snapshot))
        return ended

    def _facts(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """For `state.json`."""
        state = self.state
        facts: dict[str, Any] = {
            "step": state.step,
            "images_seen": state.model.images_seen,
            "window": state.window.told(parts),
            "nonfinite_in_row": int(self.guard.in_row),
            "noise_scale": self.stepper.noise_scale.told([part["small_norm"] for part in parts]),
            "log_bytes": self.folder.log_sizes(),
            "data": self.reader.fingerprint,
            "environment": runtime.environment(),
        }
        if (perceptual := self._perceptual()) is not None:
            facts["perceptual"] = perceptual
        if self.owed:
            facts["owed"] = list(self.owed)
        if self.rate_before is not None:
            facts["lr_before"] = self.rate_before
        if self.evaluator:
            facts["evaluation"] = self.evaluator.told()
        return facts

    def _perceptual(self) -> str | None:
        """SHA-256 of the weights of a perceptual loss, where there is one."""
        found = getattr(self.state.model.task, "perceptual", None)
        return None if found is None else str(found.sha256)

    def keep_averages(self) -> list[Event]:
        """Copies the power-function averages to the host and has a snapshot written in a thread, by the main process.

        Returns:
            as `save`.
        """
        self.guard.check(self.state.step)
        state, main = self.state, self.accelerator.is_main_process
        if not main and state.shards is None:
            return []
        ended = self.saver.wait()
        self.state.mark(self.recipe.train.batch_size)
        averages = state.copied_averages()
        if main:
            self.saver.start(partial(self._write_averages, averages, state.step))
        return ended

    def _write_averages(self, averages: checkpoint.Averages, step: int, proceed: Proceed) -> Kept:
        """In the thread."""
        return Kept(step, snapshots.write(self.folder.path, averages, step=step, proceed=proceed))

    def _write(self, snapshot: checkpoint.Snapshot, proceed: Proceed) -> Saved:
        """In the thread: the logs made durable, a checkpoint folder, `ckpt.safetensors`, then rotation."""
        self.folder.sync_logs()
        path = checkpoint.save_snapshot(self.folder.path, snapshot, proceed=proceed)
        rotation.rotate(self.folder.path, keep=self.recipe.train.keep)
        return Saved(snapshot.state["step"], path)

    def draw(self, stop: StopRequest) -> Iterator[Event]:
        """One grid with the raw weights and one with the average; before the first step perhaps smaller ones."""
        n = self.recipe.sample.n if self.state.step else self.outlook.first_grid()
        if n < self.recipe.sample.n:
            whole = f"all {self.recipe.sample.n} would take about {self.outlook.grid_seconds() / 60:,.0f} minutes here"
            yield Noted(f"the first grids have {n} pictures: {whole}; later grids have them all")
        how: dict[str, Any] = {"step": self.state.step, "stop": stop, "tell": self.tell}
        if self.state.model.reconstructs:  # what no training saw, where there is such
            seen = self.validator.splits[0].reader if self.validator else centred(self.recipe, self.reader)
            draw = partial(draw_reconstructions, reader=seen, n=n)
        else:
            draw = partial(draw_grids, n=n)
        with self.state.models() as models:
            for name in ("raw", "ema"):
                yield from draw({name: models[name]}, self.recipe, folder=self.folder.samples, **how)

    def catch_up(self, stop: StopRequest) -> Iterator[Event]:
        """What this step still owes. What `stop` breaks off stays owed, and is done when the run goes on."""
        with suppress(BrokenOff):
            if VALIDATION in self.owed and self.validator:
                yield self.validate(self.validator, stop)
                self.owed.remove(VALIDATION)
            if GRIDS in self.owed:
                yield from self.draw(stop)
                self.owed.remove(GRIDS)

    # The run

    def resume(self) -> Iterator[Event]:
        """Takes over the newest checkpoint that verifies, if there is one."""
        warnings: list[str] = []
        found: list[str] = [""]
        if self.accelerator.is_main_process:
            found = [str(checkpoint.newest_verified(self.folder.path, warn=warnings.append) or "")]
        name = runtime.gather(found[0])[0]
        yield from (Warned(text) for text in warnings)
        if name:
            shards = self.state.shards
            snapshot = checkpoint.load_snapshot(
                Path(name), **({"read": partial(read_rows, rows=shards.rows)} if shards else {})
            )
            check_same_data(snapshot, self.reader, run=self.folder.path)
            check_same_codec(Path(name), self.state.model, run=self.folder.path)
            if snapshot.state.get("perceptual") != self._perceptual():
                raise UsageError(
                    f"task.perceptual is another file than {self.folder.path} was started with", hint="give that one"
                )
            self.resumed, owed = True, snapshot.state.get("owed", [])
            self.owed = runtime.gather(self.folder.still_owed(owed, step=snapshot.state["step"]))[0]
            self.state.restore(snapshot, rank=self.rank, world=self.world)
            self.guard.in_row += snapshot.state.get("nonfinite_in_row", 0)
            self.stepper.noise_scale.restore(snapshot.state.get("noise_scale"), rank=self.rank, world=self.world)
            if (before := changed_rate(Path(name), self.recipe)) is not None:
                yield Noted(f"the learning rate is {self.recipe.optimizer.lr:g} from here on; it was {before:g}")
            self.rate_before = snapshot.state.get("lr_before", before)
            if self.evaluator:
                self.evaluator.restore(snapshot.state.get("evaluation"), step=self.state.step)
            if self.accelerator.is_main_process:
                rotation.mend(self.folder.path, Path(name), keep=self.recipe.train.keep)
                # runs of one log know its size by this name
                before = {"metrics.jsonl": snapshot.state.get("metrics_bytes", 0)}
                keep = self.folder.validation_file.name if VALIDATION in set(owed) - set(self.owed) else ""
                self.folder.cut_logs(snapshot.state.get("log_bytes", before), keep=keep)
        else:
            self.owed = [
                *([VALIDATION] if self.validator else []),
                *([GRIDS] if self.recipe.train.sample_every else []),
            ]
            if self.accelerator.is_main_process:
                self.folder.cut_logs({})
        if self.accelerator.is_main_process:
            snapshots.cut(self.folder.path, after=self.state.step)
            if isinstance(latents := self.state.model.latents, Frozen):  # by now known to be the run's
                keep_beside(latents, self.folder.path)

    def events(self) -> Generator[Event]:
        """Trains from where the folder stands to the recipe's last step, or until it is asked to stop."""
        section = self.recipe.train
        yield from self.resume()
        held_out = len(self.validator.splits[0].chosen) if self.validator else 0
        yield self.outlook.started(step=self.state.step, local=len(self.slots[0]), held_out=held_out)
        notes = [*told_of_latents(self.recipe, self.reader), *self.outlook.notes(self.state.step)]
        yield from (*map(Warned, self.compiling), *map(Noted, notes))
        if self.beginning and self.beginning.lines:
            yield Begun(self.beginning.lines)
        if self.evaluator and not self.state.step:
            yield from (Warned(note) for note in self.evaluator.notes)
        due = self.owed or (self.evaluator and self.evaluator.due(self.state.step))
        if self.state.step >= section.steps and not due:
            yield Finished(self.state.step)
            return
        stop = StopRequest(seconds=section.stop_after_seconds)
        with stop:  # before anything that takes long: a signal that comes meanwhile is heard
            yield from self.catch_up(stop)
            loader = open_loader(self.recipe, self.reader, step=self.state.step, slots=self.slots, device=self.device)
            with loader, self.saver:
                yield from self._loop(iter(loader), stop)

    def _loop(self, batches: Iterator[list[Batch]], stop: StopRequest) -> Iterator[Event]:
        section, state = self.recipe.train, self.state
        clock = Clock(images=section.batch_size, device=self.device)
        if self.evaluator and self.evaluator.due(state.step):  # broken off when the checkpoint was written
            yield from self.evaluate(self.evaluator, stop)
        reason = stop.agreed()
        if reason == "time" and state.step < section.steps:
            reason = ""  # however little time it is given, a run gets on by a step
        if reason and not self.resumed:
            yield from self.save()
        while state.step < section.steps and not reason:
            with clock:
                self.stepper.step(next(batches))
            due = partial(is_due, state.step, last=section.steps)
            validates = self.recipe.validation.every if self.validator else 0
            self.owed = [w for w, every in ((VALIDATION, validates), (GRIDS, section.sample_every)) if due(every)]
            others = any(map(due, (section.log_every, section.save_every, self.recipe.ema.snapshot_every)))
            if others or self.owed or (self.evaluator and self.evaluator.due(state.step)):
                clock.settle()
            yield Stepped(state.step, clock.rate)
            yield from (*self.saver.finished(), *map(Warned, self.stepper.notes()))
            if due(section.log_every):
                self.guard.check(self.state.step)
                yield self.log()
                if self.accelerator.is_main_process:
                    self.folder.log_timing(clock.line(state.step))
            yield from self.catch_up(stop)
            if self.evaluator and self.evaluator.due(state.step):
                yield from self.evaluate(self.evaluator, stop)
            reason = stop.agreed()
            if due(self.recipe.ema.snapshot_every):
                yield from self.keep_averages()
            if reason or due(section.save_every):
                yield from self.save()
        yield from self.saver.wait()
        runtime.wait_for_all()  # the others stay until what the main process writes is on the disk
        yield Finished(state.step, stopped_by=reason)


Watch = Callable[[Event], None]


def train(folder: Path, recipe: Recipe, *, data: Path, watch: Watch, init: Path | None = None) -> Finished:
    """Runs a recipe in a folder, telling `watch` of every event; goes on where the folder stands.

    Args:
        folder: the run folder; created where it is missing, locked while this runs.
        data: a prepared data set.
        init: checkpoint whose weights a new run starts from; a run that goes on does not need it.

    Raises:
        UsageError: recipe and data, recipe and `init`, or recipe and run, do not fit; the folder is in use.
        DataError: the data cannot be read.
        CheckpointError: every checkpoint is damaged.
        NonFiniteError: loss, gradient or weights became NaN or infinite.
        StorageError: a checkpoint could not be written; the newest one before is untouched.
    """
    here = runtime.join_processes()
    runtime.keep_freed_memory()
    run = RunFolder(folder)
    run.refuse_links()
    recipe = with_own_codec(recipe, folder, tell=lambda text: watch(Noted(text)))
    run.check_recipe(recipe)
    check_trackers(recipe)
    trainer = Trainer(run, recipe, data=data, init=init, tell=watch)  # fails on bad input before the folder exists
    if here.is_main:
        files.make_folder(folder)
    with files.lock(folder / ".lock", what=f"run {folder}") if here.is_main else nullcontext():
        if here.is_main:
            run.start(recipe)
            if trainer.beginning and trainer.beginning.lines:
                trainer.beginning.write(folder)
        runtime.wait_for_all()
        finished = Finished(0)
        tracking = Trackers(folder, recipe) if here.is_main else nullcontext(lambda event: [])
        # closed under the lock, whatever happens
        with told(lambda: in_training(recipe)), tracking as track, closing(trainer.events()) as stream:
            for event in stream:
                watch(event)
                for warning in track(event):
                    watch(warning)
                if isinstance(event, Finished):
                    finished = event
    return finished
