"""The training loop, as a generator of events: where a run goes on, when it logs, draws, saves and stops."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from hdit_cli import files, runtime
from hdit_cli.data.loader import Batch, Loader
from hdit_cli.data.order import split
from hdit_cli.engine import checkpoint, snapshots
from hdit_cli.engine.beginning import begin
from hdit_cli.engine.clock import Clock, peak_bytes
from hdit_cli.engine.draw import draw_grids
from hdit_cli.engine.evaluator import Evaluator
from hdit_cli.engine.events import (
    Begun,
    Drawn,
    Event,
    Finished,
    Kept,
    Logged,
    Noted,
    Saved,
    Started,
    Stepped,
    Validated,
    Warned,
)
from hdit_cli.engine.out_of_memory import check_room, in_training, told
from hdit_cli.engine.outlook import changed_rate, notes, started
from hdit_cli.engine.run import RunFolder
from hdit_cli.engine.saver import Proceed, Saver
from hdit_cli.engine.setup import at_largest, centred, new_accelerator, new_model, open_data, random_cut
from hdit_cli.engine.state import Window
from hdit_cli.engine.step import Stepper, compile_step
from hdit_cli.engine.stop import StopRequest
from hdit_cli.engine.trackers import Trackers, check_trackers
from hdit_cli.engine.validate import Validator, open_held_out
from hdit_cli.errors import NonFiniteError, UsageError
from hdit_cli.recipe import Recipe


class Trainer:
    """One process's part of a run. `events` trains; everything else serves it.

    Args:
        folder: the run folder, locked by the caller.
        recipe: validated and resolved.
        data: path of the prepared data set.
        init: checkpoint whose weights a new run starts from.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, *, data: Path, init: Path | None = None) -> None:
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
        self.compiling = compile_step(self.stepper, sizes=len(self.reader.sizes))
        self.saver = Saver()
        self.rate_before: float | None = None  # where it was changed and no line of the log says so yet
        held_out = open_held_out(recipe, self.reader)
        self.validator: Validator | None = None
        if held_out is not None:
            self.validator = Validator(
                recipe,
                training=centred(recipe, self.reader),
                held_out=held_out,
                batch_size=4 * len(self.slots[0]),  # a pass without gradients keeps far less than a training step
                accelerator=self.accelerator,
            )

        self.evaluator: Evaluator | None = None
        if recipe.eval.every:
            reader = centred(recipe, self.reader)
            self.evaluator = Evaluator(recipe, model=self.state.model, reader=reader, folder=folder.path)

    # What is written down

    def check_finite(self) -> None:
        """Asks the device whether the run must stop because of steps that were refused.

        Raises:
            NonFiniteError: it must; the weights on the disk are from before.
        """
        if self.guard.stopped:
            times = f"{self.guard.cap} times in a row, " if self.guard.cap > 1 else ""
            raise NonFiniteError(
                f"the loss or a gradient became NaN or infinite, {times}at or before step {self.state.step}",
                hint="weights and average were not updated since; train.nonfinite=skip passes over single steps from the "
                "newest checkpoint on; a lower optimizer.lr, more optimizer.warmup or train.precision=fp32 need --fresh",
            )

    def log(self) -> Logged:
        """Ends the window: one line of metrics.jsonl, the mean over processes and steps."""
        state = self.state
        window = state.window
        parts = runtime.gather(self.own())
        losses = [part["loss"] for part in parts]
        skipped = int(window.skipped)
        counted = window.steps - skipped
        loss = sum(losses) / self.world / counted if counted else math.nan
        norm = float(window.grad_norm) / counted if counted else math.nan
        lr = state.optimizer.param_groups[0]["lr"]
        images = state.step * self.recipe.train.batch_size
        values: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            values = {"step": state.step, "images": images, "loss": loss, "lr": lr, "grad_norm": norm}
            if self.rate_before is not None:
                values["lr_before"] = self.rate_before
            values["gradient_noise_scale"] = self.stepper.noise_scale.value([part["small_norm"] for part in parts])
            values = {name: None if value != value else value for name, value in values.items()}  # JSON has no NaN
            if self.recipe.train.nonfinite == "skip":
                values["skipped"] = skipped
            values["loss_by_sigma"] = Window.loss_by_sigma([part["by_sigma"] for part in parts])
            self.folder.log_metrics(values)
        state.window, self.rate_before = Window.empty(device=self.device), None
        return Logged(state.step, loss, norm, values, peak_bytes(self.device))

    def own(self) -> dict[str, Any]:
        """The numbers of the logs that each process has its own of."""
        window = self.state.window
        return {
            "loss": float(window.loss),
            "by_sigma": window.by_sigma.tolist(),
            "small_norm": float(self.stepper.noise_scale.small),
        }

    def validate(self, validator: Validator) -> Validated:
        """One line of validation.jsonl for each weights and split."""
        state, models = self.state, {"raw": self.state.model, "ema": self.state.ema_model()}
        images = state.step * self.recipe.train.batch_size
        lines = [{"step": state.step, "images": images, **line} for line in validator.lines(models)]
        if self.accelerator.is_main_process:
            for line in lines:
                self.folder.log_validation(line)
        return Validated(state.step, lines)

    def evaluate(self, evaluator: Evaluator, stop: StopRequest) -> list[Event]:
        """Lines of metrics.jsonl with scores; none where it was broken off by `stop`."""
        self.check_finite()
        self.mark()
        evaluated = evaluator.evaluate(self.state.models(), step=self.state.step, stop=stop)
        for line in evaluated.lines if evaluated else ():
            self.folder.log_metrics(line)
        return [evaluated] if evaluated else []

    def mark(self) -> None:
        """Tells the model how far it is trained."""
        self.state.model.step = self.state.step
        self.state.model.images_seen = self.state.step * self.recipe.train.batch_size

    def save(self) -> list[Event]:
        """Copies the state to the host and has it written in a thread, by the main process.

        Returns:
            what was saved before, if it was still under way.
        """
        self.check_finite()
        state, window = self.state, self.state.window
        parts = runtime.gather(self.own())
        if not self.accelerator.is_main_process:
            return []
        ended = self.saver.wait()
        self.mark()
        facts: dict[str, Any] = {
            "step": state.step,
            "images_seen": state.model.images_seen,
            "window": {
                "loss": [part["loss"] for part in parts],
                "by_sigma": [part["by_sigma"] for part in parts],
                "grad_norm": float(window.grad_norm),
                "skipped": int(window.skipped),
                "steps": window.steps,
            },
            "nonfinite_in_row": int(self.guard.in_row),
            "noise_scale": self.stepper.noise_scale.told([part["small_norm"] for part in parts]),
            "log_bytes": self.folder.log_sizes(),
            "data": self.reader.fingerprint,
            "environment": runtime.environment(),
        }
        if self.rate_before is not None:
            facts["lr_before"] = self.rate_before
        if self.evaluator:
            facts["evaluation"] = self.evaluator.told()
        self.saver.start(partial(self._write, state.snapshot(facts)))
        return ended

    def keep_averages(self) -> list[Event]:
        """Copies the power-function averages to the host and has a snapshot written in a thread, by the main process.

        Returns:
            as `save`.
        """
        self.check_finite()
        state = self.state
        if not self.accelerator.is_main_process:
            return []
        ended = self.saver.wait()
        self.mark()
        self.saver.start(partial(self._write_averages, state.copied_averages(), state.step))
        return ended

    def _write_averages(self, averages: checkpoint.Averages, step: int, proceed: Proceed) -> Kept:
        """In the thread."""
        return Kept(step, snapshots.write(self.folder.path, averages, step=step, proceed=proceed))

    def _write(self, snapshot: checkpoint.Snapshot, proceed: Proceed) -> Saved:
        """In the thread: the logs made durable, a checkpoint folder, `ckpt.safetensors`, then rotation."""
        self.folder.sync_logs()
        path = checkpoint.save_snapshot(self.folder.path, snapshot, proceed=proceed)
        checkpoint.rotate(self.folder.path, keep=self.recipe.train.keep)
        return Saved(snapshot.state["step"], path)

    def draw(self) -> list[Drawn]:
        """One grid with the raw weights and one with the average."""
        models = {"raw": self.state.model, "ema": self.state.ema_model()}
        return draw_grids(models, self.recipe, folder=self.folder.samples, step=self.state.step)

    # The run

    def resume(self) -> Iterator[Event]:
        """Takes over the newest checkpoint that verifies, if there is one."""
        warnings: list[str] = []
        found: list[str] = [""]
        if self.accelerator.is_main_process:
            newest = checkpoint.newest_verified(self.folder.path, warn=warnings.append)
            found = [str(newest) if newest else ""]
        name = runtime.gather(found[0])[0]
        yield from (Warned(text) for text in warnings)
        if name:
            snapshot = checkpoint.load_snapshot(Path(name))
            self.check_data(snapshot)
            self.state.restore(snapshot, rank=self.rank, world=self.world)
            self.guard.in_row += snapshot.state.get("nonfinite_in_row", 0)
            self.stepper.noise_scale.restore(snapshot.state.get("noise_scale"), rank=self.rank, world=self.world)
            if (before := changed_rate(Path(name), self.recipe)) is not None:
                yield Noted(f"the learning rate is {self.recipe.optimizer.lr:g} from here on; it was {before:g}")
            self.rate_before = snapshot.state.get("lr_before", before)
            if self.evaluator:
                self.evaluator.restore(snapshot.state.get("evaluation"), step=self.state.step)
            if self.accelerator.is_main_process:
                checkpoint.mend(self.folder.path, Path(name), keep=self.recipe.train.keep)
                # runs of one log know its size by this name
                before = {"metrics.jsonl": snapshot.state.get("metrics_bytes", 0)}
                self.folder.cut_logs(snapshot.state.get("log_bytes", before))
        elif self.accelerator.is_main_process:
            self.folder.cut_logs({})
        if self.accelerator.is_main_process:
            snapshots.cut(self.folder.path, after=self.state.step)

    def check_data(self, snapshot: checkpoint.Snapshot) -> None:
        """Raises UsageError where the data is not what the run was started with, wherever it lies now."""
        if snapshot.state["data"] != self.reader.fingerprint:
            raise UsageError(
                f"the data set is not the one {self.folder.path} was started with",
                hint="give that one with --data, choose another --run, or start over with --fresh (the old run is kept)",
            )

    def started(self) -> Started:
        return started(
            self.recipe,
            self.reader,
            model=self.state.model,
            step=self.state.step,
            local=len(self.slots[0]),
            world=self.world,
            held_out=len(self.validator.splits[0].chosen) if self.validator else 0,
        )

    def events(self) -> Generator[Event]:
        """Trains from where the folder stands to the recipe's last step, or until it is asked to stop."""
        section = self.recipe.train
        yield from self.resume()
        yield self.started()
        yield from (*map(Warned, self.compiling), *map(Noted, notes(self.recipe, self.reader)))
        if self.beginning and self.beginning.lines:
            yield Begun(self.beginning.lines)
        if self.evaluator and not self.state.step:
            yield from (Warned(note) for note in self.evaluator.notes)
        if self.state.step >= section.steps and not (self.evaluator and self.evaluator.due(self.state.step)):
            yield Finished(self.state.step)
            return
        if self.validator and self.state.step == 0:
            yield self.validate(self.validator)
        if section.sample_every and self.state.step == 0:
            yield from self.draw()
        stop = StopRequest(seconds=section.stop_after_seconds)
        with stop:  # before the workers start: a signal that comes meanwhile is heard
            loader = Loader(
                self.reader,
                batch_size=section.batch_size,
                seed=section.seed,
                position=self.state.step * section.batch_size,
                steps=section.steps - self.state.step,
                slots=self.slots,
                workers=self.recipe.data.workers,
                pin_memory=self.device.type == "cuda",
                cut=random_cut(self.recipe),
            )
            with loader, self.saver:
                yield from self._loop(iter(loader), stop)

    def _loop(self, batches: Iterator[list[Batch]], stop: StopRequest) -> Iterator[Event]:
        section, state = self.recipe.train, self.state
        clock = Clock(images=section.batch_size)
        reason = ""
        if self.evaluator and self.evaluator.due(state.step):  # broken off when the checkpoint was written
            yield from self.evaluate(self.evaluator, stop)
            reason = stop.agreed()
        while state.step < section.steps and not reason:
            with clock:
                self.stepper.step(next(batches))
            yield Stepped(state.step, clock.rate)
            yield from (*self.saver.finished(), *map(Warned, self.stepper.notes()))
            due = partial(_due, state.step, last=section.steps)
            if due(section.log_every):
                self.check_finite()
                yield self.log()
                if self.accelerator.is_main_process:
                    self.folder.log_timing(clock.line(state.step, self.device))
            if self.validator and due(self.recipe.validation.every):
                yield self.validate(self.validator)
            if self.evaluator and self.evaluator.due(state.step):
                yield from self.evaluate(self.evaluator, stop)
            reason = stop.agreed()
            if section.sample_every and due(section.sample_every):
                yield from self.draw()
            if self.recipe.ema.snapshot_every and due(self.recipe.ema.snapshot_every):
                yield from self.keep_averages()
            if reason or due(section.save_every):
                yield from self.save()
        yield from self.saver.wait()
        runtime.wait_for_all()  # the others stay until what the main process writes is on the disk
        yield Finished(state.step, stopped_by=reason)


def _due(step: int, every: int, *, last: int) -> bool:
    return step % every == 0 or step == last


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
    run.check_recipe(recipe)
    check_trackers(recipe)
    trainer = Trainer(run, recipe, data=data, init=init)  # fails on bad input before the folder exists
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
