"""One optimizer step of one process: draw, forward, backward, update. Knows steps; the maths is the task's.

Every random number of step s is a function of the seed and of the image's place in the run, s * batch_size + slot: a run
that goes on, or is shared by more processes, draws what an unbroken one would have.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hdit_cli import counter, runtime
from hdit_cli.data.augment import augment
from hdit_cli.data.loader import Batch, flip, to_x0
from hdit_cli.diffusion.bins import sums_by_sigma
from hdit_cli.engine.model import DTYPES, Model, build_network
from hdit_cli.engine.sampling.compiled import Compiled, told, wants_compiled
from hdit_cli.engine.training import arithmetic
from hdit_cli.engine.training.beside import Besides
from hdit_cli.engine.training.ema import EMA, PowerAverages, ema_decay
from hdit_cli.engine.training.exchange import alone, exchanging, place
from hdit_cli.engine.training.guard import FiniteGuard
from hdit_cli.engine.training.learning_rate import learning_rate
from hdit_cli.engine.training.noise_scale import NoiseScale
from hdit_cli.engine.training.shard import Shards
from hdit_cli.engine.training.state import TrainState, Window, build_optimizer
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.conditions import augment as augmentation
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.task import Drawn, Losses, Normal, Place

SWITCH = "--set train.compile=false"


class Stepper:
    """Takes steps and owns what they change.

    Args:
        recipe: validated and resolved.
        model: new, on the CPU; moved to the accelerator's device.
    """

    def __init__(self, recipe: Recipe, *, model: Model, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.device = accelerator.device
        self.rank, self.world = place()
        self.dtype = DTYPES[recipe.train.precision]
        if isinstance(model.latents, Frozen):
            model.latents.to(self.device)
        window = Window.empty(device=self.device)
        self.losses_of, self.shards = self._shared(model)
        held = self.shards.held if self.shards else model.network
        averages = PowerAverages(held, stds=recipe.ema.stds)
        self.state = TrainState(model, EMA(held), build_optimizer(held, recipe), window, averages, shards=self.shards)
        self.state.besides = Besides.of(model.task)
        self.state.arithmetic = arithmetic.of_new_run(self.device, weights=self.dtype)
        self.state.base_lrs = [group["lr"] for group in self.state.optimizer.param_groups]
        self.lr_factor = learning_rate(recipe)
        self.compiled: list[Compiled] = []
        self.normals: Callable[[Tensor, int], Tensor] = counter.normals  # may be replaced by the same compiled
        self.noise_scale = NoiseScale(
            self.losses_of,
            batch=recipe.train.batch_size,
            accumulate=recipe.train.accumulate,
            world=self.world,
            like=window.loss,
            shards=self.shards,
            apart=self.state.besides.parameters,
        )
        cap = recipe.train.nonfinite_cap if recipe.train.nonfinite == "skip" else 1
        self.guard = FiniteGuard(cap=cap, device=self.device)
        if self.world > 2 and self.shards is None:
            self._settle()

    def _shared(self, model: Model) -> tuple[nn.Module, Shards | None]:
        """What is called forward, on the device, with autocast; with several processes also with what they exchange."""
        divided = self.recipe.train.shard and self.world > 1
        if not divided:
            model.task.to(self.device)
        losses_of = LossesOf(model.task).train()
        losses_of = self.accelerator.prepare_model(losses_of, device_placement=not divided, evaluation_mode=True)
        if not divided:
            return exchanging(losses_of, device=self.device) if self.world > 1 else losses_of, None

        def outline() -> nn.Module:
            with torch.device("meta"):
                return build_network(self.recipe, classes=model.network.classes).to(self.dtype)

        return losses_of, Shards(losses_of, network=model.network, outline=outline, device=self.device)

    def _settle(self) -> None:
        """A backward pass whose gradients are thrown away.

        After its first one DistributedDataParallel packs the gradients anew, and where three or more are added up, the order
        of the sum hangs on the place in the pack: a run that goes on must not begin with other places than an unbroken one.
        """
        self.losses_of(self.blank(1)).loss.mean().backward()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.besides.clear()
        self.state.model.task.after(
            torch.zeros((), device=self.device)
        )  # it has seen grey, of which nothing is to stay

    def compile(self, *, sizes: int, fall_back: bool, **options: Any) -> None:
        """From now on forward and backward run as one graph for each size of pictures.

        Validation and sampling call the model and not this graph, so they neither use it nor change it.

        Args:
            sizes: of pictures that will come.
            fall_back: go on in eager mode where compiling fails.
            options: of `torch.compile`.
        """
        if self.world > 1 and self.recipe.model.recomputes:
            runtime.whole_graphs()
        graphs = 2 * sizes  # with and without the exchange of gradients
        task = self.state.model.task
        how: dict[str, Any] = {"switch": SWITCH, "fall_back": fall_back, **options}
        task.losses = Compiled(task.losses, graphs=graphs, **how)
        self.normals = Compiled(counter.normals_apart, graphs=sizes, **how)
        self.compiled = [task.losses, self.normals]

    def notes(self) -> list[str]:
        """What compiling has to say that was not said yet."""
        found = list(dict.fromkeys(each.note for each in self.compiled if each.note))
        for each in self.compiled:
            each.note = ""
        return found

    def own(self) -> dict[str, Any]:
        """The numbers of the logs that each process has its own of."""
        window = self.state.window
        return {
            "loss": float(window.loss),
            "by_sigma": window.by_sigma.tolist(),
            "small_norm": float(self.noise_scale.small),
            "extra": {name: pair.tolist() for name, pair in window.extra.items()},
        }

    def blank(self, images: int) -> Drawn:
        """A micro-batch of zeros of the recipe's size, on the device."""
        like = torch.zeros((), device=self.device, dtype=self.dtype)
        told = {"augment": like.new_zeros(images, augmentation.INPUTS)} if self.recipe.data.augment else {}
        return self.state.model.task.blank(images, self.recipe.model.size, like=like, told=told)

    def draw(self, batch: Batch, *, first: int) -> Drawn:
        """One micro-batch with all its random numbers, on the device.

        Args:
            first: place in the run of the step's first image.
        """
        place = Place(
            self.recipe.train.seed, batch.index, first=first, batch=self.recipe.train.batch_size, normal=self.normal
        )
        x0, told = (
            (self.from_stored(batch.stored, place), {}) if batch.stored is not None else self.encoded(batch, place)
        )
        return self.state.model.task.draw(x0, batch.label, place, told=told)

    def encoded(self, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        """What the network sees of a batch of pictures, flipped and augmented before; and what it is told of that."""
        assert batch.pixels is not None, "a batch has pixels, or what was made of them"
        seed, index, told = place.seed, batch.index, {}
        pixels = to_x0(batch.pixels.to(self.device, non_blocking=True)).to(self.dtype)
        if self.recipe.data.flip:
            pixels = flip(pixels, index=index, seed=seed)
        if self.recipe.data.augment:
            pixels, told["augment"] = augment(pixels, index=index, seed=seed, probability=self.recipe.data.augment)
        return self.state.model.codec.encode(pixels, self.latent_noise(place, pixels)), told

    def from_stored(self, stored: Tensor, place: Place) -> Tensor:
        """What `encoded` gives, of what the codec made of the pictures before: with the same draws."""
        latents: Any = self.state.model.latents
        stored = stored.to(self.device, non_blocking=True)
        if not stored.is_floating_point():  # tokens
            return latents.latent(stored, None)
        stored = stored.to(torch.promote_types(self.dtype, torch.float32))
        like = stored.new_zeros((), dtype=self.dtype)
        noise = self.latent_noise(place, like, size=(stored.shape[2], stored.shape[3]))
        return latents.latent(stored, noise).to(self.dtype)

    def latent_noise(self, place: Place, pixels: Tensor, size: tuple[int, int] | None = None) -> Tensor | None:
        """What draws the latents of pixels (N, 3, H, W) from the codec's Gaussian, by (seed, image); None for their mean.

        Args:
            size: (h, w) of the latents; None is that of the pixels'.
        """
        codec = self.state.model.latents
        if not isinstance(codec, Frozen) or not codec.draws or not self.recipe.codec.sample:
            return None
        shape = (codec.channels, *(size or (side // codec.factor for side in pixels.shape[2:])))
        return place.normal(place.seed, "codec", place.index, shape, like=pixels)

    @property
    def normal(self) -> Normal:
        """What draws noise."""
        if self.state.arithmetic == arithmetic.FIRST:
            return runtime.normal
        return partial(counter.normal, make=self.normals)

    def step(self, batches: list[Batch]) -> None:
        """Forward and backward of every micro-batch, one update of the weights and of their average."""
        state, section = self.state, self.recipe.train
        first = state.step * section.batch_size
        state.optimizer.zero_grad(set_to_none=True)
        state.besides.clear()
        total, by_sigma = torch.zeros_like(state.window.loss), torch.zeros_like(state.window.by_sigma)
        extra: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            self.noise_scale.first_pass = i == 0
            with told(SWITCH), nullcontext() if last else alone(self.losses_of):
                each = self.losses_of(self.draw(batch, first=first))
                loss = each.loss.mean() / len(batches)
                # 1, or NaN where the loss is not finite: then every process finds its gradient not finite
                loss.backward(1 + 0 * loss.detach())
            total += loss.detach()
            extra = {name: extra.get(name, 0) + value / len(batches) for name, value in each.told.items()}
            by_sigma += sums_by_sigma(each.sigma, each.loss.detach(), dtype=by_sigma.dtype)
            if i == 0 and not last and self.shards is None:
                self.noise_scale.see_first(state.parameters)
        if self.shards:
            self.shards.take_gradients()
        gradients = [parameter.grad for parameter in state.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norm = self.shards.norm(norm) if self.shards else norm
        beside = state.besides.norm()
        refused = self.guard.judge(norm if beside is None else norm + beside.to(norm.dtype))
        self.update(refused, norm=norm)
        state.window.add(total, norm, by_sigma=by_sigma, refused=refused, extra=extra)
        self.noise_scale.add(norm, refused=refused)
        state.step += 1

    def update(self, refused: Tensor, *, norm: Tensor) -> None:
        """AdamW of the clipped gradients, and the averages, masked on the device where `refused` is 1.

        Args:
            norm: of the whole gradient.
        """
        state, factor = self.state, self.lr_factor(self.state.step)
        one_pass = state.arithmetic == arithmetic.FEWER_PASSES
        for group, lr in zip(state.optimizer.param_groups, state.base_lrs, strict=True):
            group["lr"] = lr * factor
        scale = self.clip(norm, one_pass=one_pass)
        state.optimizer.grad_scale, state.optimizer.found_inf = scale, refused  # type: ignore[attr-defined]
        state.optimizer.step()
        state.besides.update(refused, factor=factor, max_norm=self.recipe.train.grad_clip)
        state.model.task.after(1 - refused)
        decay = ema_decay(state.step, power=self.recipe.ema.power, max_value=self.recipe.ema.max_decay)
        keep = (1 - refused).to(self.dtype)
        state.ema.update(state.parameters, decay=decay, keep=keep, one_pass=one_pass)
        state.averages.update(state.parameters, keep=keep, one_pass=one_pass)

    def clip(self, norm: Tensor, *, one_pass: bool) -> Tensor | None:
        """Bounds the gradient's norm, now or by what AdamW is to divide it by: a 0-d float32, or None."""
        max_norm = self.recipe.train.grad_clip
        if max_norm and one_pass:
            return ((norm + 1e-6) / max_norm).clamp(min=1.0).float()
        if max_norm:
            nn.utils.clip_grads_with_norm_(self.state.parameters, max_norm, norm)
        return None


class LossesOf(nn.Module):
    """A task's way into training, as a module of its own: what is hooked into it stays off the task, which also samples."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, drawn: Drawn) -> Losses:
        return self.task(drawn)


def compile_step(stepper: Stepper, *, sizes: int) -> list[str]:
    """Compiles the step where `train.compile` says so.

    Args:
        sizes: of the pictures of the data set.

    Returns:
        what the user should know of it.

    Raises:
        UsageError: it is asked for and cannot be.
    """
    section = stepper.recipe.train
    wanted, note = wants_compiled(section.compile, device=stepper.device, deterministic=section.deterministic)
    if wanted and stepper.shards:
        return ["the training step is not compiled: train.shard puts weights together piece by piece, in eager mode"]
    if section.shard and not stepper.shards:
        note = f"train.shard divides the weights among processes, and this is the only one; {note}".rstrip("; ")
    if wanted:
        if stepper.device.type == "cpu":  # else code for several threads adds up the rows of a table in any order
            runtime.set_deterministic(True)
        stepper.compile(sizes=sizes, fall_back=section.compile == "auto")
    return [note] if note else []
