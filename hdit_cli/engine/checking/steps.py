"""One real training step of each kind of network and task on a device, beside the same step in float32 on the CPU."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdit_cli import catalog, runtime
from hdit_cli.data.loader import Batch
from hdit_cli.engine.checking.ground import Found, Ground, fresh_accelerate, small_recipes
from hdit_cli.engine.checking.shades import Shades
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.model import DTYPES, Model, build_network, build_task
from hdit_cli.engine.training.setup import new_accelerator
from hdit_cli.engine.training.step import Stepper
from hdit_cli.errors import UsageError
from hdit_cli.precision import has_tf32
from hdit_cli.recipe import Recipe, load_recipe
from hdit_cli.recipe.recipe import DEFAULT_NETWORK
from hdit_cli.recipe.task import Denoise
from hdit_cli.tasks.task import Drawn

IMAGES, CLASSES = 4, 4

# Errors as shares of the judge's loss, whole gradient, and gradient of each tensor. A number passes tens of roundings, forward and
# back, which fall to either side: together about five times one (the whole) to ten (tensors far from the loss, such as the scale
# of a cosine similarity, which is a difference of large terms). bf16 rounds by 2^-8 = 0.4 %: 2 % and 10 % are allowed, 0.6 %
# and 2.5 % were measured on a CPU. TF32 rounds by 2^-11; float32 by 2^-24 on both sides, in sums of thousands of terms.
# The loss is a mean of thousands of numbers, whose errors fall to either side too.
ALLOWED = {
    "bf16": {"loss": 0.01, "gradient": 0.02, "tensor": 0.1},
    "tf32": {"loss": 1.25e-3, "gradient": 2.5e-3, "tensor": 1.25e-2},
    "fp32": {"loss": 2e-5, "gradient": 1e-4, "tensor": 1e-3},
}
SMALL = 1e-4  # a tensor whose gradient is a smaller share of the whole is judged as if it were this share
# AdamW in float32 beside its formula in float64, of the largest change that a weight can make: a few roundings, and
# that of adding the change to the weight, which is taken off apart
UPDATE = 1e-5


@dataclass(frozen=True)
class Taken:
    """What a step did: loss, gradients by name, and how far the update is from AdamW's formula."""

    loss: float
    gradients: dict[str, Tensor]
    update_error: float


def check(ground: Ground) -> Found:
    """In every precision that a recipe can ask for on the device, beside float32 on the CPU."""
    rows = []
    for name, recipe in variants():
        wanted = precisions(ground.device)
        if (
            recipe.model.told == "nothing"
        ):  # the gradient of L1 is signs, which change wholly where rounding moves a number past 0
            wanted = [precision for precision in wanted if precision == "fp32"]
        if not wanted:
            continue
        ground.tell(f"training step: {name}")
        judge = Step(recipe, precision="fp32", device=None)
        drawn = judge.draw()
        right = judge.take(drawn)
        for precision in wanted:
            found = Step(recipe, precision=precision, device=ground.device).take(drawn)
            rows.append({"step": name, "precision": precision, **compared(found, right, precision)})
    return _told(rows, device=ground.device.type)


def variants() -> Iterator[tuple[str, Recipe]]:
    """Each network of the catalog with each task that it can learn, small: ("hdit, denoise", recipe)."""
    for kind, recipe in small_recipes().items():
        for task in catalog.names("task"):
            with suppress(UsageError):  # this network does not learn so
                yield f"{kind}, {task}", fit(changed(recipe, {"task": {"type": task}, "sample": {}}))
    # of a tokenizer the nearest code may be another one after any rounding; a critic's balance is a ratio of two small norms
    small = {"model.size": [32, 32], "model.widths": [16, 32], "train.steps": 100, "task": {"type": "autoencode"}}
    yield "kl-vae, autoencode", fit(changed(load_recipe("flowers64-kl"), small))


def usual() -> tuple[str, Recipe]:
    """The one of them that a recipe means where it says neither network nor task."""
    return next(each for each in variants() if each[0] == f"{DEFAULT_NETWORK}, {Denoise().type}")


def fit(recipe: Recipe) -> Recipe:
    """A batch of four, no clipping, no warm-up: a step that can be followed by its formula."""
    return changed(
        recipe,
        {"train.batch_size": IMAGES, "train.accumulate": 1, "train.grad_clip": 0.0, "train.compile": False}
        | {"optimizer.warmup": 0, "optimizer.schedule": "constant", "optimizer.final_lr": 0.0, "ema.stds": []},
    )  # fmt: skip


def precisions(device: torch.device) -> list[str]:
    """Of training; on the CPU float32 is the judge itself."""
    tf32 = ["tf32"] if has_tf32(device) else []
    return ["bf16"] if device.type == "cpu" else ["bf16", *tf32, "fp32"]


class Alone:
    """Stands for accelerate where a step is to be taken without it: the CPU, one process, float32."""

    device, process_index, num_processes = torch.device("cpu"), 0, 1
    is_main_process = True

    @staticmethod
    def prepare_model(module: torch.nn.Module, **_: Any) -> torch.nn.Module:
        return module


class Step:
    """A recipe's step with weights that are not zero anywhere, so that a gradient reaches all of them.

    Args:
        precision: bf16, tf32 or fp32.
        device: None takes the CPU, without accelerate.
    """

    def __init__(self, recipe: Recipe, *, precision: str, device: torch.device | None) -> None:
        self.recipe = changed(recipe, {"train.precision": "bf16" if precision == "bf16" else "fp32"})
        self.matmul = "highest" if precision == "fp32" else "high"
        fresh_accelerate()
        accelerator: Any = Alone() if device is None else new_accelerator(self.recipe)
        self.stepper = Stepper(self.recipe, model=_model(self.recipe), accelerator=accelerator)

    def draw(self) -> Drawn:
        """A batch with its random numbers."""
        return self.stepper.draw(_batch(self.recipe), first=0)

    def take(self, drawn: Drawn) -> Taken:
        """A step on numbers that were drawn elsewhere: devices draw their own."""
        stepper, state = self.stepper, self.stepper.state
        self.draw()  # makes the network's dropout ready
        here = _moved(drawn, stepper.device)
        before = {name: p.detach().clone() for name, p in state.model.network.named_parameters()}
        stepper.draw = lambda batch, *, first: here  # type: ignore[method-assign]
        was = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul)
        try:
            stepper.step([_batch(self.recipe)])
        finally:
            torch.set_float32_matmul_precision(was)
            del stepper.draw
        gradients = {
            name: p.grad.detach().cpu().double()
            for name, p in state.model.network.named_parameters()
            if p.grad is not None
        }
        return Taken(float(state.window.loss), gradients, _update_error(stepper, before))


def _moved(drawn: Drawn, device: torch.device) -> Drawn:
    conditions = {name: value.to(device) for name, value in drawn.conditions.items()}
    there = {name: value.to(device) for name, value in drawn._asdict().items() if isinstance(value, Tensor)}
    return drawn._replace(**{**there, "conditions": conditions})


def _model(recipe: Recipe) -> Model:
    """On the CPU, the same each time."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(runtime.key(recipe.train.seed, "init") % 2**63)
    wanted = recipe.model.classes
    network = build_network(recipe, classes=CLASSES if wanted == "data" else int(wanted))
    network.to(DTYPES[recipe.train.precision])
    for parameter in network.parameters():  # gates and the last layer begin at zero
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 64
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3 / fan_in**0.5
    names = [str(i) for i in range(network.classes)]
    codec: Any = Shades(network.vocabulary) if recipe.model.told == "share" else None
    return Model(build_task(network, recipe), recipe.to_dict(), names, weights="raw", latents=codec)


def _batch(recipe: Recipe) -> Batch:
    """Pictures that are smooth, as pictures are: a wave each."""
    (height, width), n = recipe.model.size, recipe.train.batch_size
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    phase = torch.arange(3 * n).view(n, 3, 1, 1)
    pixels = (127.5 + 120 * torch.sin(y + x * (1 + phase) + phase)).to(torch.uint8)
    return Batch(pixels, torch.arange(n) % CLASSES, np.arange(n, dtype=np.int64))


def _update_error(stepper: Stepper, before: dict[str, Tensor]) -> float:
    """The largest distance of a weight from AdamW's first step, computed in float64, over the group's learning rate."""
    optimizer, worst = stepper.state.optimizer, 0.0
    names = {parameter: name for name, parameter in stepper.state.model.network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            old, gradient = before[names[parameter]].double(), parameter.grad.double()
            # the first averages, with their bias taken off, are the gradient and its square
            wanted = old * (1 - group["lr"] * group["weight_decay"])
            wanted -= group["lr"] * gradient / (gradient.abs() + group["eps"])
            error = (parameter.detach().double() - wanted).abs() - 2**-23 * old.abs()
            worst = max(worst, float(error.max()) / group["lr"]) if error.isfinite().all() else float("inf")
    return worst


def compared(found: Taken, right: Taken, precision: str) -> dict[str, Any]:
    """Errors of a step as shares of the judge's, and whether they are allowed."""
    whole = float(torch.cat([gradient.flatten() for gradient in right.gradients.values()]).norm())
    far = {name: float((found.gradients[name] - gradient).norm()) for name, gradient in right.gradients.items()}
    shares = {name: far[name] / max(float(right.gradients[name].norm()), SMALL * whole) for name in far}
    worst = max(shares, key=lambda name: _worst_first(shares[name]))
    errors = {
        "loss": abs(found.loss - right.loss) / abs(right.loss),
        "gradient": sum(distance**2 for distance in far.values()) ** 0.5 / whole,
        "tensor": shares[worst],
        "update": found.update_error,
    }
    allowed = {**ALLOWED[precision], "update": UPDATE}
    wrong = [name for name, error in errors.items() if not error <= allowed[name]]
    return {"loss": found.loss, "errors": errors, "allowed": allowed, "worst_tensor": worst, "wrong": wrong}


def _worst_first(share: float) -> float:
    return share if share == share else float("inf")


def _told(rows: list[dict[str, Any]], *, device: str) -> Found:
    for row in rows:
        for part in row["wrong"]:
            named = f"gradient of {row['worst_tensor']}" if part == "tensor" else part
            return Found(
                numbers={"steps": rows},
                wrong=f"a step of {row['step']} in {row['precision']} is wrong on this {device}: its {named} is off by "
                f"{row['errors'][part]:.3g} of the right one, {row['allowed'][part]:g} is allowed",
                hint="do not train here before it is mended: try train.precision=fp32, or another version of torch",
            )
    worst = {key: max(row["errors"][key] for row in rows if row["precision"] == "bf16") for key in ("loss", "gradient")}
    text = (
        f"{len(rows)} steps equal float32 on the CPU; bf16 is off by at most {worst['loss']:.2g} of the loss "
        f"and {worst['gradient']:.2g} of the gradient"
    )
    return Found(text, {"steps": rows})
