"""Parts of `first_light.sh` that ask how fast it is, and what it takes."""

import collections
import math
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from light import Light, only, refusal
from torch.profiler import ProfilerActivity
from torch.profiler import profile as recorded

from hdit_cli.engine.bench.clock import Product, timed
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.engine.checking.ground import fresh_accelerate
from hdit_cli.engine.checking.steps import Step, compared, fit, precisions
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.training.clock import Clock
from hdit_cli.models.attention.dispatch import neighborhood_attention
from hdit_cli.recipe import Recipe
from hdit_cli.runtime import wait_for_device
from hdit_cli.tasks.sampling import Sampling

LOCAL = ("natten", "fused", "flex", "tiled")  # backends of neighborhood attention that may run on CUDA


def subject_of(light: Light, recipe: Recipe, *, compiled: bool) -> Subject:
    """A recipe with the batch of the data set where there is one, its step compiled as `train` would."""
    fresh_accelerate()
    fits = tuple(recipe.model.size) == (256, 256) and recipe.model.classes == 0
    data = light.data if fits and not light.rehearse else None
    subject = Subject(recipe, data=data)
    if compiled:
        if light.on_cuda:
            light.facts["compiling"] = subject.compile()
        else:  # captured as one graph, without code for it
            subject.stepper.compile(sizes=1, fall_back=False, backend="eager")
    return subject


def speed(subject: Subject, seconds: float) -> dict[str, float]:
    """Of a step that takes so long."""
    images = subject.recipe.train.batch_size
    return {
        "step_ms": 1e3 * seconds,
        "images_per_second": images / seconds,
        "tflops": subject.train_flops / seconds / 1e12,
    }


def product_rate(light: Light, precision: str) -> float:
    """TFLOP/s of a plain matrix product."""
    product = Product(light.device, precision)
    product()
    return product.flops / min(timed(product, light.device) for _ in range(light.count(10, 2))) / 1e12


# flowers256, compiled


def warm(light: Light) -> None:
    """Makes the code that other parts use, so that they find it in the cache of compiled code."""
    subject = subject_of(light, light.recipe("flowers256", train__batch_size=32), compiled=True)
    light.note(first_step_seconds=timed(subject.step, light.device), verdict="compiled")


def first_loss(light: Light, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """A step of four pictures in each precision beside float32 on the CPU, weights random, dropout the same."""
    small = fit(recipe)
    judge = Step(small, precision="fp32", device=None)
    drawn = judge.draw()
    right = judge.take(drawn)
    for precision in precisions(light.device):
        found = Step(small, precision=precision, device=light.device).take(drawn)
        yield {"precision": precision, "right_loss": right.loss, **compared(found, right, precision)}


def flowers(light: Light) -> None:
    """60 compiled steps at batch 32: the first loss, copies that wait, three clocks, memory beside what was told."""
    recipe = light.recipe("flowers256", train__batch_size=32)
    rows = list(first_loss(light, recipe))
    light.note(first_loss=rows)
    subject = subject_of(light, recipe, compiled=True)
    light.note(first_step_seconds=timed(subject.step, light.device))
    light.note(compiled=subject.compiled, notes=subject.stepper.notes())
    for _ in range(light.count(4, 1)):
        subject.step()
    losses = [_loss(subject)]
    light.note(waits=count_waits(light, subject, steps=light.count(5, 1)))
    light.note(**clocks(light, subject, steps=light.count(50, 3)))
    losses.append(_loss(subject))
    light.note(mean_losses=losses, memory=memory(light, subject), product_tflops=product_rate(light, subject.precision))
    wrong = [f"{row['precision']} {row['wrong']}" for row in rows if row["wrong"]]
    wrong += [] if all(map(math.isfinite, losses)) else ["a loss is not finite"]
    rate = light.facts["waited"]["images_per_second"]
    light.note(verdict=f"{rate:.5g} images/s; {'wrong: ' + ', '.join(wrong) if wrong else 'losses right'}")
    if wrong:
        raise SystemExit(f"flowers: {wrong}")


def _loss(subject: Subject) -> float:
    """Mean loss of the steps so far."""
    window = subject.stepper.state.window
    return float(window.loss) / window.steps


def count_waits(light: Light, subject: Subject, *, steps: int) -> dict[str, Any]:
    """Places in a step at which the host waits for the device, as torch warns of them."""
    if not light.on_cuda:
        for _ in range(steps):
            subject.step()
        return {"skipped": "torch warns of them on CUDA alone"}
    wait_for_device(light.device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                subject.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = collections.Counter(f"{each.filename}:{each.lineno}" for each in told if "synchroniz" in str(each.message))
    return {"in_steps": steps, "count": sum(found.values()), "places": found.most_common(12)}


def clocks(light: Light, subject: Subject, *, steps: int) -> dict[str, Any]:
    """The same steps by the device's events, by the clock of a run, and from the device idle to idle."""
    clock = Clock(images=subject.recipe.train.batch_size, device=light.device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)] if light.on_cuda else []
    wait_for_device(light.device)
    start = time.perf_counter()
    for number in range(steps):
        if events:
            events[number].record()
        with clock:
            subject.step()
    if events:
        events[-1].record()
    clock.settle()
    wait_for_device(light.device)
    whole = (time.perf_counter() - start) / steps
    found: dict[str, Any] = {"waited": speed(subject, whole), "of_the_run": {"images_per_second": clock.rate}}
    if events:
        between = sorted(a.elapsed_time(b) for a, b in pairwise(events))
        found["events"] = {"median_ms": between[len(between) // 2], "least_ms": between[0], "most_ms": between[-1]}
    return found


def memory(light: Light, subject: Subject) -> dict[str, Any]:
    """Bytes at the fullest moment of a step, beside what was told before."""
    recipe = subject.recipe
    told = estimate(recipe, images=recipe.train.batch_size, device=light.device.type, classes=subject.classes)
    with Peak(light.device) as peak:
        subject.step()
    measured = peak.bytes if light.on_cuda else peak.bytes + subject.stepper.state.held_bytes()
    return {"told_bytes": told["total"], "measured_bytes": measured, "told_over_measured": told["total"] / measured}


# Attention


def eager(light: Light) -> None:
    """Steps of flowers256 without a compiler by each backend of attention, memory beside what was told."""
    for name in LOCAL:
        reason = refusal(name, light.device, dtype=torch.bfloat16, width=64, kernel=7)
        if reason:
            light.note(**{name: {"skipped": reason}})
            continue
        with light.finding(name) as facts, only(name):
            subject = subject_of(light, light.recipe("flowers256", train__batch_size=32), compiled=False)
            for _ in range(light.count(3, 1)):
                subject.step()
            facts |= light.times(subject.step, runs=light.count(8, 2), warmup=0)
            facts |= speed(subject, facts["median_ms"] / 1e3) | {"memory": memory(light, subject)}
            del subject
    tried = {name: light.facts[name].get("images_per_second") for name in LOCAL}
    light.note(verdict=", ".join(f"{name} {rate:.4g} images/s" for name, rate in tried.items() if rate) or "none ran")


def attention(light: Light) -> None:
    """The two local levels of flowers256 at batch 32 in bf16, by backend: forward, and forward with backward."""
    shapes = {"64x64": (32, 64, 64, 2, 64), "32x32": (32, 32, 32, 4, 64)}
    for level, shape in {"16x16": (1, 16, 16, 1, 32)}.items() if light.rehearse else shapes.items():
        q, k, v, gradient = (torch.randn(shape, device=light.device, dtype=torch.bfloat16) for _ in range(4))
        q, k = (torch.nn.functional.normalize(t, dim=-1) * 10**0.5 for t in (q, k))
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        for name in LOCAL:
            if reason := refusal(name, light.device, dtype=q.dtype, width=shape[-1], kernel=7):
                light.note(**{f"{level} {name}": {"skipped": reason}})
                continue
            with light.finding(f"{level} {name}") as facts:
                facts |= _attention_times(light, name, leaves, gradient)
    ran = {name: facts for name, facts in light.facts.items() if isinstance(facts, dict) and "both" in facts}
    light.note(verdict=", ".join(f"{name} {facts['both']['median_ms']:.3g} ms" for name, facts in ran.items()))


def _attention_times(light: Light, name: str, leaves: list[torch.Tensor], gradient: torch.Tensor) -> dict[str, Any]:
    """Milliseconds and bytes of a backend."""

    def forward() -> None:
        with torch.no_grad():
            neighborhood_attention(*leaves, kernel=7, backend=name)

    def both() -> None:
        out = neighborhood_attention(*leaves, kernel=7, backend=name)
        torch.autograd.grad(out, leaves, gradient)

    runs = light.count(30, 2)
    times = {"forward": light.times(forward, runs=runs, warmup=3), "both": light.times(both, runs=runs, warmup=3)}
    return times | {"bytes": light.peak_of(both)}


def profile(light: Light) -> None:
    """Where five compiled steps of flowers256 at batch 32 spend their time, by kernel."""
    subject = subject_of(light, light.recipe("flowers256", train__batch_size=32), compiled=True)
    for _ in range(light.count(4, 2)):
        subject.step()
    steps = light.count(5, 1)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if light.on_cuda else [])]
    wait_for_device(light.device)
    with recorded(activities=kinds) as found:
        for _ in range(steps):
            subject.step()
        wait_for_device(light.device)
    key = "self_device_time_total" if light.on_cuda else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, key))
    rows = [row for row in rows if not light.on_cuda or str(row.device_type).endswith("CUDA")]
    whole = sum(getattr(row, key) for row in rows) or 1
    top = [
        {
            "kernel": row.key[:140],
            "calls": row.count / steps,
            "us": getattr(row, key) / steps,
            "share": getattr(row, key) / whole,
        }
        for row in rows[:40]
    ]
    light.note(
        compiled=subject.compiled,
        top=top,
        busy_us_per_step=whole / steps,
        kernels_per_step=sum(row.count for row in rows) / steps,
    )
    light.note(verdict=f"{whole / steps / 1e3:.3g} ms busy a step, {top[0]['share']:.0%} in {top[0]['kernel'][:50]}")


# Larger, and sampling


def imagenet(light: Light) -> None:
    """imagenet256-557m in micro-batches of 8 and 32, eager, then compiled."""
    for compiled, images in ((False, 8), (False, 32), (True, 32)):
        with light.finding(f"{'compiled' if compiled else 'eager'} {images}") as facts:
            recipe = changed(light.recipe("imagenet256-557m", train__batch_size=images), {"train.accumulate": 1})
            subject = subject_of(light, recipe, compiled=compiled)
            facts |= {"first_step_seconds": timed(subject.step, light.device), "compiled": subject.compiled}
            facts |= light.times(subject.step, runs=light.count(5, 1), warmup=1)
            facts |= speed(subject, facts["median_ms"] / 1e3) | {"memory": memory(light, subject)}
            del subject
    ran = {
        name: facts for name, facts in light.facts.items() if isinstance(facts, dict) and "images_per_second" in facts
    }
    light.note(verdict=", ".join(f"{name}: {facts['images_per_second']:.4g} images/s" for name, facts in ran.items()))


def sampling(light: Light) -> None:
    """64 pictures of flowers256 in 20 steps: IEEE float32, TF32 and bf16, eager and compiled."""
    n, steps = light.count(64, 2), light.count(20, 2)
    subject = subject_of(light, light.recipe("flowers256"), compiled=False)
    for word in ("fp32", "tf32", "bf16"):
        for compiled in (False, True):
            name = f"{word} {'compiled' if compiled else 'eager'}"
            if not light.on_cuda and (word == "tf32" or compiled):
                light.note(**{name: {"skipped": "of CUDA alone"}})
                continue
            with light.finding(name) as facts:
                wanted = Sampling(steps=steps, batch_size=n, compile=compiled, precision=word)
                facts["first_seconds"] = timed(lambda: subject.sample(wanted), light.device)  # noqa: B023
                again = min(timed(lambda: subject.sample(wanted), light.device) for _ in range(2))  # noqa: B023
                facts |= {"seconds": again, "images_per_second": n / again, "ms_per_call": 1e3 * again / steps}
                facts["bytes"] = light.peak_of(lambda: subject.sample(wanted))  # noqa: B023
    ran = {
        name: facts for name, facts in light.facts.items() if isinstance(facts, dict) and "images_per_second" in facts
    }
    light.note(verdict=", ".join(f"{name}: {facts['images_per_second']:.4g} images/s" for name, facts in ran.items()))
