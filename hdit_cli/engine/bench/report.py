"""The whole of `hdit bench`: every measurement of a recipe as plain facts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from hdit_cli import catalog, runtime
from hdit_cli.engine.bench.clock import Product, Spread, ratio, rounds, timed
from hdit_cli.engine.bench.parts import time_parts
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.generate import check
from hdit_cli.engine.sampling.pace import MANY, paced
from hdit_cli.errors import UsageError
from hdit_cli.models.attention.dispatch import choose, choose_compiled, explain, neighborhood_attention
from hdit_cli.models.attention.request import Request
from hdit_cli.recipe import Recipe

Watch = Callable[[str], None]
_TOGETHER = 4  # steps told to a GPU before it is waited for, as a run tells them one after the other


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        runs: rounds of each comparison.
        steps: of the sampler.
        compiled: whether the compiled step is timed beside the eager one, whatever the recipe says.
        sizes: image sides of the curve over resolution; empty for none.
        batches: batch sizes of the curve over the batch; empty for none.
        precision: of sampling; None takes the device's own.
    """

    runs: int = 5
    steps: int = 10
    compiled: bool = False
    sizes: Sequence[int] = ()
    batches: Sequence[int] = ()
    precision: str | None = None


def bench(recipe: Recipe, *, data: Path | None, wanted: Wanted, watch: Watch = lambda text: None) -> dict[str, Any]:
    """Measures a recipe on this process's device.

    Args:
        data: a prepared data set; None takes noise for pictures, and reading is not measured.
        watch: told what is measured next.

    Returns:
        facts for JSON. Spreads are [median, least, most].

    Raises:
        UsageError: recipe and data do not fit, a curve asks for sizes that the network cannot be given, or this machine
            cannot compile or has no such precision, which is asked for.
    """
    curves = [("sizes", value, _size(value)) for value in wanted.sizes]
    curves += [("batches", value, _batch(value)) for value in wanted.batches]
    points = [
        (name, value, changed(recipe, keys)) for name, value, keys in curves
    ]  # refused, if at all, before minutes
    subject = Subject(recipe, data=data)
    if wanted.compiled and (why := runtime.why_not_compiled(subject.device)):
        raise UsageError(f"cannot compile: {why}", hint="leave --compile out")
    check(subject.model, sampling_of(subject.model, precision=wanted.precision))
    facts: dict[str, Any] = {
        "recipe": recipe.name,
        "date": date.today().isoformat(),
        "environment": runtime.environment() | {"threads": str(torch.get_num_threads())},
        "precision": recipe.train.precision,
        "batch_size": recipe.train.batch_size,
        "runs": wanted.runs,
        "gmacs": subject.gmacs,
    }
    watch("training step, beside a matrix product")
    facts["train"] = _train(subject, wanted)
    watch("parts of a step")
    with subject.eager():  # what is compiled has no borders between its parts
        facts["parts"] = time_parts(subject, runs=min(3, wanted.runs))
    if subject.reader:
        watch("reading the data")
        facts["data"] = _data(subject, wanted)
    watch("sampling")
    facts["sampling"] = _sampling(subject, wanted)
    watch("attention backends")
    facts["attention"] = _attention(subject, wanted)
    if wanted.compiled:
        watch("compiling")
        facts["compiled"] = _compiled(subject, wanted)
    for name, value, at in points:
        watch(f"{name}: {value}")
        facts.setdefault(name, []).append(_point(at, value, wanted))
    return facts


def _size(value: int) -> dict[str, Any]:
    return {"model.size": [value, value]}


def _batch(value: int) -> dict[str, Any]:
    return {"train.batch_size": value, "train.accumulate": 1}


def _speed(
    seconds: list[float], *, images: int, flops: float, product: Product, products: list[float]
) -> dict[str, Any]:
    """Images/s, TFLOP/s, and the share of the matrix product of the same rounds."""
    spread = Spread.of(seconds)
    best = product.flops / Spread.of(products).median
    return {
        "seconds": spread.told(),
        "images_per_second": images / spread.median,
        "tflops": flops / spread.median / 1e12,
        "product": product.precision,
        "product_tflops": best / 1e12,
        "mfu": flops / spread.median / best,
    }


def _train(subject: Subject, wanted: Wanted) -> dict[str, Any]:
    """The step as `train` takes it, compiled where it compiles it; how long that took is told apart."""
    notes, device = subject.compile(), subject.device
    first = timed(subject.step, device)
    notes += subject.stepper.notes()
    together = _TOGETHER if runtime.runs_behind(device) else 1

    def steps() -> None:
        for _ in range(together):
            subject.step()

    product = Product(device, subject.precision)
    found = rounds({"step": steps, "product": product}, runs=wanted.runs, device=device, warmup=2)
    facts = _speed(
        [seconds / together for seconds in found["step"]],
        images=subject.recipe.train.batch_size,
        flops=subject.train_flops,
        product=product,
        products=found["product"],
    )
    with Peak(device) as peak:
        subject.step()
    return {
        "compiled": subject.compiled,
        **_compiling(first, facts["seconds"][0], compiled=subject.compiled),
        **facts,
        "peak_bytes": peak.bytes + (0 if device.type == "cuda" else subject.stepper.state.held_bytes()),
        "notes": notes,
    }


def _compiling(first: float, usual: float, *, compiled: bool) -> dict[str, Any]:
    """How long the first call took, and what of that was the compiler's; None where there was none."""
    return {"first_seconds": first, "compile_seconds": max(0.0, first - usual) if compiled else None}


def _data(subject: Subject, wanted: Wanted) -> dict[str, Any]:
    """Batches as the loader gives them when nothing else runs."""
    steps = wanted.runs + 1
    with subject.loader(steps=steps) as loader:
        batches = iter(loader)
        next(batches)  # workers start, shards are opened
        seconds = [timed(lambda: next(batches), torch.device("cpu")) for _ in range(wanted.runs)]
    spread = Spread.of(seconds)
    return {"seconds": spread.told(), "images_per_second": subject.recipe.train.batch_size / spread.median}


def _sampling(subject: Subject, wanted: Wanted) -> dict[str, Any]:
    """A batch of images as `sample` makes many: by the recipe's sampler, the same batch size, compilation and precision.

    The share of the time that is not the denoiser's is that of further batches, in which each call is waited for.
    """
    model, device = subject.model, subject.device
    model.task.eval()
    sampling = sampling_of(model, steps=wanted.steps, precision=wanted.precision)
    sampling = paced(model, sampling, images=MANY, batch_size=None, compile=None)
    first = timed(lambda: subject.sample(sampling), device)
    product, inside = Product(device, sampling.precision), NetworkTime(subject)
    shares: list[float] = []

    def watched() -> None:
        with inside:
            whole = timed(lambda: subject.sample(sampling), device)
        shares.append(1 - inside.seconds / whole)

    calls = {"sample": lambda: subject.sample(sampling), "watched": watched, "product": product}
    found = rounds(calls, runs=wanted.runs, device=device)
    facts = _speed(
        found["sample"],
        images=sampling.batch_size,
        flops=2e9 * subject.gmacs * inside.images,
        product=product,
        products=found["product"],
    )
    return {
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "batch_size": sampling.batch_size,
        "cfg": sampling.cfg,
        "precision": sampling.precision,
        "compiled": sampling.compile,
        **_compiling(first, facts["seconds"][0], compiled=sampling.compile),
        "outside_the_network": Spread.of(shares[1:]).told(),
        **facts,
    }


class NetworkTime:
    """Seconds inside the denoiser, and images that went through it, since the context was opened."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.seconds, self.images = subject, 0.0, 0

    def __enter__(self) -> "NetworkTime":
        self.seconds, self.images, self.before = 0.0, 0, self.subject.through
        self.subject.through = self._through
        return self

    def _through(self, call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            result: list[torch.Tensor] = []
            self.seconds += timed(lambda: result.append(call(x, *args, **kwargs)), self.subject.device)
            self.images += len(x)
            return result[0]

        return watched

    def __exit__(self, *_: object) -> None:
        self.subject.through = self.before


def _attention(subject: Subject, wanted: Wanted) -> list[dict[str, Any]]:
    """Every backend on the shape of every local attention of the network, forward and backward."""
    found = []
    device, images = subject.device, len(subject.batches[0].index)
    dtype = torch.bfloat16 if subject.recipe.train.precision == "bf16" else subject.model.dtype
    for place, shape, kernel in subject.model.network.neighbourhoods(*subject.model.shape()[1:]):
        request = Request(device.type, dtype, shape[-1], kernel, deterministic=subject.recipe.train.deterministic)
        rows = _backends((images, *shape), request, runs=wanted.runs, device=device)
        inside = choose_compiled(request) if subject.compiled else None
        facts = {"level": place, "shape": [images, *shape], "kernel": kernel, "in_compiled_step": inside}
        found.append({**facts, "backends": rows})
    return found


def _backends(
    shape: tuple[int, ...], request: Request, *, runs: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Seconds of each backend that can run, ratios to the one that is chosen, and why the others cannot."""
    generator = torch.Generator(device).manual_seed(0)
    tensors = [torch.randn(shape, device=device, generator=generator).to(request.dtype) for _ in range(4)]
    leaves, gradient = [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]

    def forward(name: str) -> None:
        with torch.no_grad():
            neighborhood_attention(*leaves, kernel=request.kernel, backend=name)

    def both(name: str) -> None:
        out = neighborhood_attention(*leaves, kernel=request.kernel, backend=name)
        torch.autograd.grad(out, leaves, gradient)

    reasons, chosen = explain(request), choose(request)
    usable = [name for name in catalog.names("attention") if not reasons[name] or name == "reference"]
    table: dict[str, dict[str, Any]] = {}
    for what, call in (("forward", forward), ("both", both)):
        seconds = rounds({name: lambda name=name, call=call: call(name) for name in usable}, runs=runs, device=device)
        for name in usable:
            row = table.setdefault(name, {"chosen": name == chosen, "why_not": reasons[name]})
            row[f"{what}_seconds"] = Spread.of(seconds[name]).told()
            row[f"{what}_to_chosen"] = ratio(seconds[name], seconds[chosen]).told()
    return table | {name: {"chosen": False, "why_not": reasons[name]} for name in reasons if name not in usable}


def _compiled(subject: Subject, wanted: Wanted) -> dict[str, Any]:
    """The training step compiled as `train` compiles it, beside the eager one, in turns."""
    if not subject.compiled:
        subject.stepper.compile(sizes=1, fall_back=False)
    first = timed(subject.step, subject.device)

    def eager() -> None:
        with subject.eager():
            subject.step()

    found = rounds({"eager": eager, "compiled": subject.step}, runs=wanted.runs, device=subject.device)
    return {
        "first_step_seconds": first,
        "eager_seconds": Spread.of(found["eager"]).told(),
        "compiled_seconds": Spread.of(found["compiled"]).told(),
        "times_faster": ratio(found["eager"], found["compiled"]).told(),
    }


def _point(recipe: Recipe, value: int, wanted: Wanted) -> dict[str, Any]:
    """One point of a curve: a new model of a changed recipe, on noise."""
    subject = Subject(recipe, data=None)
    subject.compile()
    if subject.compiled:
        torch.compiler.reset()  # only so many graphs are kept of one function, and those of other points are not needed
    found = rounds({"step": subject.step}, runs=wanted.runs, device=subject.device)["step"]
    with Peak(subject.device) as peak:
        subject.step()
    spread, images = Spread.of(found), recipe.train.batch_size
    pixels = images * recipe.model.size[0] * recipe.model.size[1]
    return {
        "value": value,
        "seconds": spread.told(),
        "images_per_second": images / spread.median,
        "nanoseconds_per_pixel": 1e9 * spread.median / pixels,
        "peak_bytes": peak.bytes,
        "bytes_per_pixel": peak.bytes / pixels,
        "tflops": subject.train_flops / spread.median / 1e12,
    }
