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
from hdit_cli.models.attention.dispatch import choose, explain, neighborhood_attention
from hdit_cli.models.attention.request import Request
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.sampling import Sampling

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        runs: rounds of each comparison.
        steps: of the sampler.
        compiled: whether the compiled network is timed beside the eager one.
        sizes: image sides of the curve over resolution; empty for none.
        batches: batch sizes of the curve over the batch; empty for none.
    """

    runs: int = 5
    steps: int = 10
    compiled: bool = False
    sizes: Sequence[int] = ()
    batches: Sequence[int] = ()


def bench(recipe: Recipe, *, data: Path | None, wanted: Wanted, watch: Watch = lambda text: None) -> dict[str, Any]:
    """Measures a recipe on this process's device.

    Args:
        data: a prepared data set; None takes noise for pictures, and reading is not measured.
        watch: told what is measured next.

    Returns:
        facts for JSON. Spreads are [median, least, most].

    Raises:
        UsageError: recipe and data do not fit, or a curve asks for sizes that the network cannot be given.
    """
    subject = Subject(recipe, data=data)
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
    for name, values, keys in (("sizes", wanted.sizes, _size), ("batches", wanted.batches, _batch)):
        if values:
            facts[name] = []
        for value in values:
            watch(f"{name}: {value}")
            facts[name].append(_point(changed(recipe, keys(value)), value, wanted))
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
        "product_tflops": best / 1e12,
        "mfu": flops / spread.median / best,
    }


def _train(subject: Subject, wanted: Wanted) -> dict[str, Any]:
    product = Product(subject.device, subject.product_dtype)
    found = rounds({"step": subject.step, "product": product}, runs=wanted.runs, device=subject.device, warmup=2)
    facts = _speed(
        found["step"],
        images=subject.recipe.train.batch_size,
        flops=subject.train_flops,
        product=product,
        products=found["product"],
    )
    with Peak(subject.device) as peak:
        subject.step()
    return facts | {"peak_bytes": peak.bytes + (0 if subject.device.type == "cuda" else _held(subject))}


def _held(subject: Subject) -> int:
    """Bytes of weights, averages and moments, which were there before a peak off CUDA was looked for."""
    state = subject.stepper.state
    networks = [state.model.network, state.ema.network, *(ema.network for ema in state.averages.by_std.values())]
    weights = sum(tensor.nbytes for network in networks for tensor in network.parameters())
    return weights + sum(tensor.nbytes for tensor in state.optimizer_tensors().values())


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
    """A batch of images by the recipe's sampler, and the share of the time that is not the network's."""
    section = subject.recipe.sample
    sampling = Sampling(
        steps=wanted.steps,
        sampler=section.sampler,
        cfg=section.cfg if subject.classes else 1.0,
        batch_size=section.batch_size,
    )
    product = Product(subject.device, subject.model.dtype)
    inside, images = NetworkTime(subject), [0]
    shares: list[float] = []

    def run() -> None:
        inside.seconds = 0.0
        inside.images = 0
        whole = timed(lambda: subject.sample(sampling), subject.device)
        shares.append(1 - inside.seconds / whole)
        images[0] = inside.images

    with inside:
        found = rounds({"sample": run, "product": product}, runs=wanted.runs, device=subject.device)
    facts = _speed(
        found["sample"],
        images=sampling.batch_size,
        flops=2e9 * subject.gmacs * images[0],
        product=product,
        products=found["product"],
    )
    return {
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "batch_size": sampling.batch_size,
        "cfg": sampling.cfg,
        "outside_the_network": Spread.of(shares[1:]).told(),
        **facts,
    }


class NetworkTime:
    """Seconds inside the network, and images that went through it, while the context is open."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.seconds, self.images = subject, 0.0, 0

    def __enter__(self) -> "NetworkTime":
        network: Any = self.subject.model.network
        call = network.forward

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            result: list[torch.Tensor] = []
            self.seconds += timed(lambda: result.append(call(x, *args, **kwargs)), self.subject.device)
            self.images += len(x)
            return result[0]

        network.forward = forward
        return self

    def __exit__(self, *_: object) -> None:
        del self.subject.model.network.forward


def _attention(subject: Subject, wanted: Wanted) -> list[dict[str, Any]]:
    """Every backend on the shape of every local attention of the network, forward and backward."""
    found = []
    device, images = subject.device, len(subject.batches[0].index)
    dtype = torch.bfloat16 if subject.recipe.train.precision == "bf16" else subject.model.dtype
    for place, shape, kernel in subject.model.network.neighbourhoods(*subject.model.image_size):
        request = Request(device.type, dtype, shape[-1], kernel)
        rows = _backends((images, *shape), request, runs=wanted.runs, device=device)
        found.append({"level": place, "shape": [images, *shape], "kernel": kernel, "backends": rows})
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
    """The training step with the network compiled, beside the eager one, in turns."""
    network: Any = subject.model.network
    network.compile()
    forward, network._compiled_call_impl = network._compiled_call_impl, None

    def compiled() -> None:
        with subject.compiled(forward):
            subject.step()

    first = timed(compiled, subject.device)
    found = rounds({"eager": subject.step, "compiled": compiled}, runs=wanted.runs, device=subject.device)
    return {
        "first_step_seconds": first,
        "eager_seconds": Spread.of(found["eager"]).told(),
        "compiled_seconds": Spread.of(found["compiled"]).told(),
        "times_faster": ratio(found["eager"], found["compiled"]).told(),
    }


def _point(recipe: Recipe, value: int, wanted: Wanted) -> dict[str, Any]:
    """One point of a curve: a new model of a changed recipe, on noise."""
    subject = Subject(recipe, data=None)
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
