"""What a run is told before its first step: what it is, how long it will take, and what its user may not have meant."""

import json
import shlex
import time
from functools import cached_property
from pathlib import Path

import torch

from hdit_cli import runtime
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import Model, count
from hdit_cli.engine.run.checkpoint import read_header
from hdit_cli.engine.run.events import Started
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.recipe import Recipe
from hdit_cli.recipe.sections import Optimizer

FOR_CPU, FOR_CPU_SIDE = "flowers64-cpu", 64  # the shipped recipe that a CPU trains in hours
TOO_LONG = 2 * 86400.0  # seconds of training on a CPU that hardly anybody means
UNNOTICED, PATIENCE = 10.0, 60.0  # seconds that the first grids may take: always, and at most
FEWEST = 4  # pictures of a grid made smaller
_TRAINING = 3  # forward and backward pass of an image, in forward passes
_TWICE = ("heun", "dpm-2")  # samplers that ask the network twice in a step


class Outlook:
    """What can be foreseen of a run.

    Args:
        model: the run's, on its device.
        world: number of processes.
        timed: whether the model can be called as it is, to see how long that takes.
    """

    def __init__(self, recipe: Recipe, reader: ShardReader, *, model: Model, world: int, timed: bool = True) -> None:
        self.timed = timed
        self.recipe, self.reader, self.model, self.world = recipe, reader, model, world

    def started(self, *, step: int, local: int, held_out: int) -> Started:
        """The facts of a run that goes on from `step`; `local` images are taken at a time, `held_out` to validate on."""
        section = self.recipe.train
        words = [
            f"{self.world} processes" if self.world > 1 else "",
            str(local),
            f"accumulate {section.accumulate}" if section.accumulate > 1 else "",
        ]
        facts = count(self.recipe, classes=len(self.reader.classes))
        return Started(
            params=facts["params"],
            gmacs=facts["gmacs"],
            images=len(self.reader),
            classes=self.model.network.classes,
            split=f"batch {section.batch_size} = {' x '.join(word for word in words if word)}",
            device=str(self.model.device),
            step=step,
            steps=section.steps,
            class_names=tuple(self.model.classes),
            held_out=held_out,
            buckets=len(self.reader.buckets),
        )

    @cached_property
    def forward(self) -> float | None:
        """Seconds that one image takes through the network here, the same on every process; None on a GPU, which is not slow."""
        slow = self.timed and self.model.device.type == "cpu"
        return None if not slow else max(runtime.gather(_timed(self.model, precision="fp32")))

    @cached_property
    def training_forward(self) -> float | None:
        """As `forward`, in the precision of training: on some CPUs bfloat16 is several times as fast."""
        precision = self.recipe.train.precision
        if self.forward is None or precision != "bf16":
            return self.forward
        return max(runtime.gather(_timed(self.model, precision=precision)))

    def notes(self, step: int) -> list[str]:
        """What the user may not have meant: classes left out, a rate of nothing, a training of days; asked on every process."""
        said = []
        if self.recipe.model.classes == 0 and len(self.reader.classes) > 1 and not self.model.reconstructs:
            said.append(
                f"the data has {len(self.reader.classes)} classes, and this recipe trains without them; "
                "--set model.classes=data in a run of its own (--run DIR) learns them"
            )
        scale, roles = self.recipe.optimizer.mapping_lr_scale, self.model.network.parameter_groups().values()
        if scale != Optimizer().mapping_lr_scale and not any(role.slow for role in roles):
            said.append(
                f"optimizer.mapping_lr_scale is {scale:g}, and acts on nothing: no part of this network learns at a rate of its own"
            )
        codec, asked = self.recipe.codec, self.recipe.codec.model_fields_set
        if (
            codec.sample
            and "sample" in asked
            and isinstance(self.model.latents, Frozen)
            and not self.model.latents.draws
        ):
            said.append(
                f"codec.sample is true, and draws nothing: a codec of the kind {self.model.latents.kind} has no Gaussian"
            )
        section = self.recipe.train
        seconds = (section.steps - step) * self._step_seconds()
        if seconds > TOO_LONG:
            said.append(
                f"the {section.steps - step:,} steps to go would take about {seconds / 86400:,.0f} days on this CPU; "
                f"{self._shorter()}"
            )
        return said

    def _step_seconds(self) -> float:
        """Of training, about; 0 where nobody knows."""
        return _TRAINING * (self.training_forward or 0.0) * self.recipe.train.batch_size / self.world

    def _shorter(self) -> str:
        """What a CPU can do instead."""
        if self.recipe.name == FOR_CPU:
            return "fewer train.steps, or train.stop_after, end it earlier"
        source = str(self.reader.manifest.source.get("name", ""))
        there = shlex.quote(source) if source and Path(source).is_dir() else "YOUR_PICTURES"
        out, wanted = Path("data") / f"{source or 'small'}{FOR_CPU_SIDE}", "data" if self.reader.classes else 0
        data = "" if str(out) == f"data/flowers{FOR_CPU_SIDE}" else f" --data {shlex.quote(str(out))}"
        classes = "" if wanted else " --set model.classes=0"
        first = f"hdit prepare {there} --size {FOR_CPU_SIDE} --out {shlex.quote(str(out))}"
        return f"a CPU can do this: `{first}`, then `hdit train {FOR_CPU}{data}{classes}`"

    def first_grid(self) -> int:
        """Pictures of the grids before the first step: fewer than asked for where all would keep a user waiting for long.

        They may take as long as the steps to the next grids would, but no longer than a minute. Asked on every process.
        """
        section = self.recipe.sample
        each = self.grid_seconds() / section.n
        between = self._step_seconds() * self.recipe.train.sample_every
        limit = max(UNNOTICED, min(PATIENCE, between))
        return section.n if each * section.n <= limit else min(section.n, max(FEWEST, int(limit / each)))

    def grid_seconds(self) -> float:
        """What both grids would take with all their pictures, about; 0 where nobody knows."""
        section = self.recipe.sample
        if self.model.reconstructs:
            return section.n * (self.forward or 0.0)
        evaluations = section.steps * (2 if section.sampler in _TWICE else 1) * (2 if section.cfg != 1 else 1)
        return 2 * section.n * evaluations * (self.forward or 0.0) / self.world


def _timed(model: Model, *, precision: str) -> float:
    """The fastest of three calls with one image, which draw nothing and change nothing."""
    training, taken = model.task.training, []
    model.task.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        x = torch.zeros((1, *model.shape()), device=model.device, dtype=model.dtype)
        for _ in range(3):
            started = time.perf_counter()
            model.task.once(x)
            taken.append(time.perf_counter() - started)
    model.task.train(training)
    return min(taken)


def changed_rate(checkpoint: Path, recipe: Recipe) -> float | None:
    """The learning rate of the recipe in a checkpoint folder, where it is now another one."""
    before = json.loads(read_header(checkpoint / "model.safetensors")["hdit.recipe"])["optimizer"]["lr"]
    return None if before == recipe.optimizer.lr else before
