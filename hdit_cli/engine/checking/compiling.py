"""A compiled training step beside the eager one, and, on CUDA, a network that is replayed as a CUDA graph."""

from typing import Any

import torch
from torch import Tensor, nn

from hdit_cli import runtime
from hdit_cli.engine.checking.ground import Found, Ground
from hdit_cli.engine.checking.steps import ALLOWED, Step, compared, usual, variants
from hdit_cli.engine.sampling.compiled import Compiled, CompiledDenoiser
from hdit_cli.recipe import Recipe

SWITCH = "--set train.compile=false"
_SAMPLING = "--no-compile"


def check_step(ground: Ground) -> Found:
    """A step of each kind of network, forward and backward as one graph, beside the same step in eager mode.

    On a CPU making code for a step takes a minute or two, and pays for nothing: there the step is only captured as one graph,
    and code is made for a few layers.
    """
    if why := runtime.why_not_compiled(ground.device):
        return Found(why, skipped=True)
    on_cpu = ground.device.type == "cpu"
    precision = "fp32" if on_cpu else "bf16"
    options: dict[str, Any] = {"backend": "aot_eager"} if on_cpu else {}
    rows = []
    for name, recipe in [usual()] if on_cpu else one_of_each_network():
        ground.tell(f"compiled step: {name}")
        eager = Step(recipe, precision=precision, device=ground.device)
        drawn = eager.draw()
        right = eager.take(drawn)
        compiled = Step(recipe, precision=precision, device=ground.device)
        compiled.stepper.compile(sizes=1, fall_back=False, **options)
        rows.append({"step": name, "precision": precision, **compared(compiled.take(drawn), right, precision)})
    if on_cpu:
        ground.tell("compiled step: code for a few layers")
        rows.append({"step": "a few layers", "precision": precision, **_few_layers()})
    return _told(rows, on_cpu=on_cpu)


def one_of_each_network() -> list[tuple[str, Recipe]]:
    """Of `variants`; a task adds little to a graph."""
    drawing = [
        (name, recipe) for name, recipe in variants() if recipe.model.told != "nothing"
    ]  # an autoencoder draws none
    return list({recipe.model.type: (name, recipe) for name, recipe in drawing}.values())


def _few_layers() -> dict[str, Any]:
    """Code that a compiler makes on this machine, forward and backward, beside eager mode."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
    x = torch.randn(16, 32)

    def loss(x: Tensor) -> Tensor:
        return layers(x).square().mean()

    def both(call: Any) -> list[Tensor]:
        value = call(x)
        return [value.detach(), *torch.autograd.grad(value, list(layers.parameters()))]

    right, found = both(loss), both(Compiled(loss, graphs=1, switch=SWITCH))
    far = {i: float((a - b).norm() / b.norm()) for i, (a, b) in enumerate(zip(found, right, strict=True))}
    errors = {"loss": far.pop(0), "tensor": max(far.values())}
    allowed = {part: ALLOWED["fp32"][part] for part in errors}
    return {"errors": errors, "allowed": allowed, "wrong": [p for p in errors if not errors[p] <= allowed[p]]}


def _told(rows: list[dict[str, Any]], *, on_cpu: bool) -> Found:
    numbers = {"steps": rows}
    for row in rows:
        for part in row["wrong"]:
            return Found(
                numbers=numbers,
                wrong=f"a compiled step of {row['step']} is wrong: its {part} is off by {row['errors'][part]:.3g} of the "
                f"eager one's, {row['allowed'][part]:g} is allowed",
                hint=f"{SWITCH} trains without it; report it with what --json prints",
            )
    worst = max(row["errors"]["tensor"] for row in rows)
    text = f"{len(rows)} equal eager mode, the worst gradient off by {worst:.1g}"
    where = "a step captured as one graph, and code made for a few layers" if on_cpu else "steps as one graph each"
    return Found(f"{where}: {text}", numbers)


def check_graphs(ground: Ground) -> Found:
    """On CUDA a network that is replayed as a CUDA graph, beside the network itself, on inputs that change."""
    if ground.device.type != "cuda":
        return Found("CUDA graphs are of CUDA devices, and this is none", skipped=True)
    if why := runtime.why_not_compiled(ground.device):
        return Found(why, skipped=True)
    from torch._dynamo.utils import counters

    skipped = counters["inductor"]["cudagraph_skips"]
    found = replayed(ground)
    if not found.wrong and counters["inductor"]["cudagraph_skips"] > skipped:
        hint = f"{_SAMPLING} of sample and eval-fid does without; report it with what --json prints"
        return Found(
            numbers=found.numbers, wrong="a network that was to be a CUDA graph was run without one", hint=hint
        )
    return found


def replayed(ground: Ground, **options: Any) -> Found:
    """A compiled denoiser called four times, each time with other inputs.

    Args:
        options: of `torch.compile`, in place of those that sampling uses.
    """
    name, recipe = usual()
    ground.tell(f"CUDA graphs: {name}")
    step = Step(recipe, precision="fp32", device=ground.device)
    task = step.stepper.state.model.task.eval()
    drawn = step.draw()
    denoiser, conditions = task.denoiser, drawn.conditions
    call = CompiledDenoiser(denoiser, images=len(drawn.x0), device=ground.device, **options)
    errors = []
    with torch.inference_mode():
        for number in range(4):
            x = drawn.x0 + drawn.noise * (0.5 + number)
            sigma = torch.full((len(x),), 0.5 + number, device=x.device, dtype=x.dtype)
            right = denoiser(x, sigma, **conditions)
            errors.append(float((call(x, sigma, **conditions) - right).norm() / right.norm()))
    allowed = ALLOWED["tf32"]["gradient"]
    numbers = {"errors": errors, "allowed": allowed}
    if not all(error <= allowed for error in errors):
        wrong = f"a replayed network gives something else: off by {max(errors):.3g}, {allowed:g} is allowed"
        hint = f"{_SAMPLING} of sample and eval-fid does without; report it with what --json prints"
        return Found(numbers=numbers, wrong=wrong, hint=hint)
    return Found(f"four replays with other inputs equal the network, the worst off by {max(errors):.1g}", numbers)
