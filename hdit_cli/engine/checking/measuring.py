"""Memory that is told before a step beside what the step took, and how fast a step is."""

import gc
import time
from typing import Any

import torch

from hdit_cli import runtime
from hdit_cli.engine.bench.clock import Product, timed
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.engine.checking.ground import Found, Ground, fresh_accelerate, small_recipes
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.training.clock import Clock
from hdit_cli.recipe import Recipe, load_recipe
from hdit_cli.recipe.recipe import DEFAULT_NETWORK
from hdit_cli.runtime import readable

WITHIN = 0.25  # of what was measured: the estimate promises a fifth on a CPU; an allocator rounds up, and libraries take some
FASTER = 1.5  # times a plain matrix product's rate, of which other work on the machine may have taken some; no step is that fast
CLOCKS = 0.25  # share by which the clock of a run may differ from one that waits for the device
_SECONDS = 3.0  # to time steps for, about
_LEAST, _MOST = 3, 60


def subject_of(ground: Ground, *, images: int) -> Subject:
    """The recipe that this is about on CUDA, a small one elsewhere, with noise for pictures."""
    on_cuda = ground.device.type == "cuda"
    recipe: Recipe = load_recipe("flowers256") if on_cuda else small_recipes()[DEFAULT_NETWORK]
    fresh_accelerate()
    return Subject(changed(recipe, {"train.batch_size": images, "train.accumulate": 1}), data=None)


def check_memory(ground: Ground) -> Found:
    """What the dry run of a recipe says that a step needs, beside the most that tensors held in such a step."""
    ground.tell("memory")
    device = ground.device
    gc.collect()
    others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    subject = subject_of(ground, images=8)
    parts = estimate(subject.recipe, images=8, device=device.type, classes=subject.classes)
    subject.step()  # what is made once and kept: moments, masks
    with Peak(device) as peak:
        subject.step()
    measured = peak.bytes - others if device.type == "cuda" else peak.bytes + subject.stepper.state.held_bytes()
    ratio = parts["total"] / measured
    numbers = {
        "recipe": subject.recipe.name, "images": 8, "traced": parts, "measured_bytes": measured, "traced_over_measured": ratio,
    }  # fmt: skip
    told = f"{readable(parts['total'])} were told for a step of {subject.recipe.name}, {readable(measured)} were taken"
    if abs(ratio - 1) > WITHIN:
        hint = "do not trust --dry-run and --find-batch here; report it with what --json prints"
        return Found(numbers=numbers, wrong=f"memory is told wrong: {told}", hint=hint)
    return Found(told, numbers)


def check_speed(ground: Ground) -> Found:
    """Images/s of a training step, by the run's own clock and by one that waits for the device, beside a matrix product."""
    ground.tell("speed")
    on_cuda = ground.device.type == "cuda"
    subject = subject_of(ground, images=32 if on_cuda else 16)
    subject.compile()
    for _ in range(2):
        seconds = timed(subject.step, ground.device)
    steps = min(max(int(_SECONDS / seconds), _LEAST), _MOST)
    told, waited = _rates(subject, ground.device, steps=steps)
    product = Product(ground.device, subject.precision)
    product()
    flops = product.flops / min(timed(product, ground.device) for _ in range(5))
    images = subject.recipe.train.batch_size
    reached = subject.train_flops / images * waited
    numbers = {
        "recipe": subject.recipe.name, "precision": subject.recipe.train.precision, "batch_size": images, "steps": steps,
        "compiled": subject.compiled, "images_per_second": waited,
        "images_per_second_of_the_run": told, "tflops": reached / 1e12, "product_tflops": flops / 1e12, "mfu": reached / flops,
    }  # fmt: skip
    return _judged(numbers)


def _rates(subject: Subject, device: torch.device, *, steps: int) -> tuple[float, float]:
    """Images/s as a run tells them, and between two moments at which the device had done all it was told."""
    images = subject.recipe.train.batch_size
    clock = Clock(images=images, device=device)
    runtime.wait_for_device(device)
    start = time.perf_counter()
    for _ in range(steps):
        with clock:
            subject.step()
    clock.settle()
    return clock.rate, images * steps / (time.perf_counter() - start)


def _judged(numbers: dict[str, Any]) -> Found:
    told, waited = numbers["images_per_second_of_the_run"], numbers["images_per_second"]
    text = (
        f"{waited:,.4g} images/s in a step of {numbers['recipe']}, batch {numbers['batch_size']}, {numbers['precision']}: "
        f"{numbers['mfu']:.1%} of a matrix product's {numbers['product_tflops']:.3g} TFLOP/s"
    )
    hint = "speeds are not to be trusted here; report it with what --json prints"
    if not numbers["mfu"] <= FASTER:
        return Found(numbers=numbers, wrong=f"the clock cannot be right: {text}", hint=hint)
    if abs(told / waited - 1) > CLOCKS:
        wrong = f"a run would tell {told:,.4g} images/s, and it makes {waited:,.4g}"
        return Found(numbers=numbers, wrong=wrong, hint=hint)
    return Found(text, numbers)
