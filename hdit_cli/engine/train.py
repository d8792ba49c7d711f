"""The training loop, as a generator of events. Knows steps; the maths is the denoiser's, the pictures the loader's.

Every random number of step s is a function of the seed and of the image's place in the run, s * batch_size + slot: a run
that goes on, or is shared by more processes, draws what an unbroken one would have.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hdit_cli import files, runtime
from hdit_cli.data.augment import augment
from hdit_cli.data.loader import Batch, Loader, flip, to_x0
from hdit_cli.data.order import split
from hdit_cli.data.reader import ShardReader
from hdit_cli.diffusion.denoiser import LossOf
from hdit_cli.diffusion.densities import noise_density
from hdit_cli.engine import checkpoint
from hdit_cli.engine.clock import Clock
from hdit_cli.engine.collect import class_name
from hdit_cli.engine.ema import EMA, ema_decay
from hdit_cli.engine.events import Drawn, Event, Finished, Logged, Saved, Started, Stepped, Warned
from hdit_cli.engine.generate import Sampling, choose_labels, stream
from hdit_cli.engine.grid import grid_png
from hdit_cli.engine.guard import FiniteGuard
from hdit_cli.engine.model import count
from hdit_cli.engine.run import RunFolder
from hdit_cli.engine.saver import Proceed, Saver
from hdit_cli.engine.setup import DTYPES, check_fit, new_model, out_of_memory
from hdit_cli.engine.state import TrainState, Window, build_optimizer
from hdit_cli.engine.stop import StopRequest
from hdit_cli.errors import NonFiniteError, UsageError, is_out_of_memory
from hdit_cli.recipe import Recipe


class Trainer:
    """One process's part of a run. `events` trains; everything else serves it.

    Args:
        folder: the run folder, locked by the caller.
        recipe: validated and resolved.
        data: path of the prepared data set.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, *, data: Path) -> None:
        self.folder, self.recipe = folder, recipe
        self.reader = ShardReader(data)
        check_fit(recipe, self.reader)
        runtime.set_deterministic(recipe.train.deterministic)
        runtime.fast_matmul()
        precision = "bf16" if recipe.train.precision == "bf16" else "no"
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available() and not _has_mps(), mixed_precision=precision)
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.slots = split(
            recipe.train.batch_size, world=self.world, rank=self.rank, accumulate=recipe.train.accumulate
        )
        self.dtype = DTYPES[recipe.train.precision]
        density = recipe.diffusion.density
        self.density = noise_density(density.type, **density.options())
        model = new_model(recipe, self.reader, path=str(data))
        model.denoiser.to(self.device)
        window = Window.empty(device=self.device)
        self.state = TrainState(model, EMA(model.network), build_optimizer(model, recipe), window)
        self.state.base_lrs = [group["lr"] for group in self.state.optimizer.param_groups]
        self.loss_of = self.accelerator.prepare_model(LossOf(model.denoiser).train())
        cap = recipe.train.nonfinite_cap if recipe.train.nonfinite == "skip" else 1
        self.guard = FiniteGuard(cap=cap, device=self.device)
        self.saver = Saver()

    # One optimizer step

    def draw(self, batch: Batch, *, first: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """x0, noise, sigma, label and augmentation condition of one micro-batch, on the device.

        Args:
            first: place in the run of the step's first image.
        """
        seed, index = self.recipe.train.seed, batch.index
        x0 = to_x0(batch.pixels.to(self.device, non_blocking=True)).to(self.dtype)
        if self.recipe.data.flip:
            x0 = flip(x0, index=index, seed=seed)
        condition = None
        if self.recipe.data.augment:
            x0, condition = augment(x0, index=index, seed=seed, probability=self.recipe.data.augment)
        noise = runtime.normal(seed, "noise", index, x0.shape[1:], like=x0)
        # stratified: slot j of the global batch draws from [j, j + 1) / batch_size
        u = (
            torch.from_numpy(index - first) + runtime.uniform(seed, "sigma", index)[:, 0]
        ) / self.recipe.train.batch_size
        sigma = self.density(u).to(x0.dtype).to(x0.device)  # dtype first: MPS has no float64
        label = None
        if classes := self.state.model.network.classes:
            dropped = runtime.uniform(seed, "class-dropout", index)[:, 0] < self.recipe.diffusion.class_dropout
            label = torch.where(dropped, classes, batch.label).to(self.device, non_blocking=True)
        return x0, noise, sigma, label, condition

    def step(self, batches: list[Batch]) -> None:
        """Forward and backward of every micro-batch, one update of the weights and of their average."""
        state, section = self.state, self.recipe.train
        first = state.step * section.batch_size
        torch.manual_seed(runtime.key(section.seed, f"dropout/{state.step}/{self.rank}") % 2**63)
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros_like(state.window.loss)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.loss_of):
                loss = self.loss_of(*self.draw(batch, first=first)).mean() / len(batches)
                # 1, or NaN where the loss is not finite: then every process finds its gradient not finite
                loss.backward(1 + 0 * loss.detach())
            total += loss.detach()
        max_norm = section.grad_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(state.parameters, max_norm)
        refused = self.guard.judge(norm)
        self.update(refused)
        state.window.add(total, norm, refused=refused)
        state.step += 1

    def update(self, refused: Tensor) -> None:
        """AdamW and EMA, masked on the device where `refused` is 1."""
        state, section = self.state, self.recipe.optimizer
        warm = min(1.0, (state.step + 1) / section.warmup) if section.warmup else 1.0
        for group, lr in zip(state.optimizer.param_groups, state.base_lrs, strict=True):
            group["lr"] = lr * warm
        state.optimizer.grad_scale, state.optimizer.found_inf = None, refused  # type: ignore[attr-defined]
        state.optimizer.step()
        decay = ema_decay(state.step, power=self.recipe.ema.power, max_value=self.recipe.ema.max_decay)
        state.ema.update(state.parameters, decay=decay, keep=(1 - refused).to(self.dtype))

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
        losses = [float(v) for v in runtime.gather(float(window.loss))]
        skipped = int(window.skipped)
        counted = window.steps - skipped
        loss = sum(losses) / self.world / counted if counted else math.nan
        norm = float(window.grad_norm) / counted if counted else math.nan
        lr = state.optimizer.param_groups[0]["lr"]
        images = state.step * self.recipe.train.batch_size
        if self.accelerator.is_main_process:
            values = {"step": state.step, "images": images, "loss": loss, "lr": lr, "grad_norm": norm}
            values = {name: None if value != value else value for name, value in values.items()}  # JSON has no NaN
            if self.recipe.train.nonfinite == "skip":
                values["skipped"] = skipped
            self.folder.log_metrics(values)
        state.window = Window.empty(device=self.device)
        return Logged(state.step, loss, norm)

    def save(self) -> list[Event]:
        """Copies the state to the host and has it written in a thread, by the main process.

        Returns:
            what was saved before, if it was still under way.
        """
        self.check_finite()
        state, window = self.state, self.state.window
        losses = runtime.gather(float(window.loss))
        if not self.accelerator.is_main_process:
            return []
        ended = self.saver.wait()
        state.model.step = state.step
        state.model.images_seen = state.step * self.recipe.train.batch_size
        facts = {
            "step": state.step,
            "images_seen": state.model.images_seen,
            "window": {
                "loss": losses,
                "grad_norm": float(window.grad_norm),
                "skipped": int(window.skipped),
                "steps": window.steps,
            },
            "nonfinite_in_row": int(self.guard.in_row),
            "metrics_bytes": self.folder.metrics_size(),
            "data": self.reader.fingerprint,
            "environment": runtime.environment(),
        }
        self.saver.start(partial(self._write, state.snapshot(facts)))
        return ended

    def _write(self, snapshot: checkpoint.Snapshot, proceed: Proceed) -> Saved:
        """In the thread: the log made durable, a checkpoint folder, `ckpt.safetensors`, then rotation."""
        self.folder.sync_metrics()
        path = checkpoint.save_snapshot(self.folder.path, snapshot, proceed=proceed)
        checkpoint.rotate(self.folder.path, keep=self.recipe.train.keep)
        return Saved(snapshot.state["step"], path)

    def draw_grids(self) -> list[Drawn]:
        """One grid with the raw weights and one with the average: the same noise and classes at every step of the run."""
        section = self.recipe.sample
        sampling = Sampling(
            seed=self.recipe.train.seed,
            batch_size=section.batch_size,
            **{name: getattr(section, name) for name in ("steps", "sampler", "schedule", "eta", "rho", "cfg")},
        )
        drawn = []
        for name, model in (("raw", self.state.model), ("ema", self.state.ema_model())):
            training = model.denoiser.training
            model.denoiser.eval()
            wanted = "all" if model.network.classes else None
            labels = choose_labels(model, n=section.n, wanted=wanted, seed=sampling.seed)
            mine = range(self.rank, section.n, self.world)
            parts = {
                i: image
                for batch, images in stream(model, indices=mine, labels=labels, sampling=sampling)
                for i, image in zip(batch, images.numpy(), strict=True)
            }
            model.denoiser.train(training)
            found = {i: image for part in runtime.gather(parts) for i, image in part.items()}
            path = self.folder.samples / f"{checkpoint.step_name(self.state.step)}-{name}.png"
            if self.accelerator.is_main_process:
                images = np.stack([found[i] for i in range(section.n)])
                names = None if labels is None else [class_name(model, int(label)) for label in labels]
                files.write_bytes(path, grid_png(images, labels=names, caption=f"step {self.state.step} · {name}"))
            drawn.append(Drawn(path))
        return drawn

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
            if self.accelerator.is_main_process:
                checkpoint.mend(self.folder.path, Path(name), keep=self.recipe.train.keep)
                self.folder.cut_metrics(snapshot.state["metrics_bytes"])
        elif self.accelerator.is_main_process:
            self.folder.cut_metrics(0)

    def check_data(self, snapshot: checkpoint.Snapshot) -> None:
        """Raises UsageError where the data is not what the run was started with, wherever it lies now."""
        if snapshot.state["data"] != self.reader.fingerprint:
            raise UsageError(
                f"the data set is not the one {self.folder.path} was started with",
                hint="give that one with --data, choose another --run, or start over with --fresh (the old run is kept)",
            )

    def started(self) -> Started:
        section = self.recipe.train
        local = len(self.slots[0])
        words = [
            f"{self.world} processes" if self.world > 1 else "",
            str(local),
            f"accumulate {section.accumulate}" if section.accumulate > 1 else "",
        ]
        held = sum(p.numel() * p.element_size() for p in self.state.parameters)
        facts = count(self.recipe, classes=len(self.reader.classes))
        return Started(
            params=facts["params"],
            gmacs=facts["gmacs"],
            images=len(self.reader),
            classes=self.state.model.network.classes,
            split=f"batch {section.batch_size} = {' x '.join(word for word in words if word)}",
            device=str(self.device),
            step=self.state.step,
            steps=section.steps,
            bytes_held=held * 5,  # weights, gradients, two moments, average
        )

    def events(self) -> Generator[Event]:
        """Trains from where the folder stands to the recipe's last step, or until it is asked to stop."""
        section = self.recipe.train
        yield from self.resume()
        yield self.started()
        if self.state.step >= section.steps:
            yield Finished(self.state.step)
            return
        if section.sample_every and self.state.step == 0:
            yield from self.draw_grids()
        stop = StopRequest(seconds=section.stop_after_seconds)
        loader = Loader(
            self.reader,
            batch_size=section.batch_size,
            seed=section.seed,
            position=self.state.step * section.batch_size,
            steps=section.steps - self.state.step,
            slots=self.slots,
            workers=self.recipe.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        with stop, loader, self.saver:
            yield from self._loop(iter(loader), stop)

    def _loop(self, batches: Iterator[list[Batch]], stop: StopRequest) -> Iterator[Event]:
        section, state = self.recipe.train, self.state
        clock = Clock(images=section.batch_size)
        reason = ""
        while state.step < section.steps and not reason:
            with clock:
                self.step(next(batches))
            yield Stepped(state.step, clock.rate)
            yield from self.saver.finished()
            due = partial(_due, state.step, last=section.steps)
            if due(section.log_every):
                self.check_finite()
                yield self.log()
                if self.accelerator.is_main_process:
                    self.folder.log_timing(clock.line(state.step, self.device))
            reason = stop.agreed()
            if section.sample_every and due(section.sample_every):
                yield from self.draw_grids()
            if reason or due(section.save_every):
                yield from self.save()
        yield from self.saver.wait()
        runtime.wait_for_all()  # the others stay until what the main process writes is on the disk
        yield Finished(state.step, stopped_by=reason)


def _due(step: int, every: int, *, last: int) -> bool:
    return step % every == 0 or step == last


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


Watch = Callable[[Event], None]


def train(folder: Path, recipe: Recipe, *, data: Path, watch: Watch) -> Finished:
    """Runs a recipe in a folder, telling `watch` of every event; goes on where the folder stands.

    Args:
        folder: the run folder; created where it is missing, locked while this runs.
        data: a prepared data set.

    Raises:
        UsageError: recipe and data, or recipe and run, do not fit; the folder is in use.
        DataError: the data cannot be read.
        CheckpointError: every checkpoint is damaged.
        NonFiniteError: loss, gradient or weights became NaN or infinite.
        StorageError: a checkpoint could not be written; the newest one before is untouched.
    """
    here = runtime.join_processes()
    run = RunFolder(folder)
    run.check_recipe(recipe)
    trainer = Trainer(run, recipe, data=data)  # fails on bad input before the folder exists
    if here.is_main:
        files.make_folder(folder)
    with files.lock(folder / ".lock", what=f"run {folder}") if here.is_main else nullcontext():
        if here.is_main:
            run.start(recipe)
        runtime.wait_for_all()
        finished = Finished(0)
        try:
            with closing(trainer.events()) as stream:  # closed under the lock, whatever happens
                for event in stream:
                    watch(event)
                    if isinstance(event, Finished):
                        finished = event
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(recipe) from error
    return finished
