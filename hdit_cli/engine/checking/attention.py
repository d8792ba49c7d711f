"""Every attention backend that may be chosen on a device, beside the slow reference in float64, forward and backward."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from hdit_cli import catalog
from hdit_cli.engine.checking.ground import Found, Ground
from hdit_cli.models.attention.dispatch import neighborhood_attention
from hdit_cli.models.attention.request import Request
from hdit_cli.precision import has_tf32

WIDTHS = (16, 32, 40, 64, 128)  # of a head
MAPS = (
    (19, 22, 7),
    (16, 16, 7),
    (9, 50, 5),
    (20, 13, 6),
)  # height, width, kernel: tiles that hang over, an even kernel
IMAGES, HEADS = 1, 2
SCALE = 10.0  # the largest score: where cosine similarity of the networks begins

# precision => dtype, unit roundoff. float32 products of a training step on CUDA are TF32, which keeps 10 bits
PRECISIONS = {
    "fp64": (torch.float64, 2.0**-53),
    "fp32": (torch.float32, 2.0**-24),
    "tf32": (torch.float32, 2.0**-11),
    "bf16": (torch.bfloat16, 2.0**-8),
    "fp16": (torch.float16, 2.0**-11),
}
# Worst error of a token over the usual length of one, in unit roundoffs. Inputs are the same on both sides. Scores, weights,
# the average and, backwards, their derivatives are rounded a few times each, and a rounding of a score of up to `SCALE` moves
# its weight by as many times more: 16. float32 and float64 also add up in their own precision, a head's width for a score and
# a window's tokens for an average, up to 177 numbers: 128.
ALLOWED = {"fp64": 128.0, "fp32": 128.0, "tf32": 16.0, "bf16": 16.0, "fp16": 16.0}


def check(ground: Ground) -> Found:
    """Every backend in every precision that it takes, over widths of heads and maps that no tile divides."""
    rows = []
    for name in catalog.names("attention"):
        for precision in precisions(ground.device):
            cases = list(_cases(name, precision, ground.device))
            if cases:
                ground.tell(f"attention: {name}, {precision}")
            rows += [measure(name, precision, case, device=ground.device) for case in cases]
    return _told(rows)


def precisions(device: torch.device) -> list[str]:
    """Those that the device has, of attention."""
    lacks = {"tf32": not has_tf32(device), "fp64": device.type == "mps"}
    return [name for name in PRECISIONS if not lacks.get(name)]


def _cases(name: str, precision: str, device: torch.device) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """(width, map) that a backend serves; each precision pairs widths and maps in another way.

    On CUDA, where most backends compile a kernel for each, a precision takes every other width, and the next one the others.
    """
    turn = list(PRECISIONS).index(precision)
    for i, width in enumerate(WIDTHS):
        chosen = MAPS[(i + turn) % len(MAPS)]
        left_out = device.type == "cuda" and (i + turn) % 2
        request = Request(device.type, PRECISIONS[precision][0], width, chosen[2])
        if not left_out and not catalog.get("attention", name).refuse(request):
            yield width, chosen


def measure(name: str, precision: str, case: tuple[int, tuple[int, int, int]], *, device: torch.device) -> dict:
    """A row of the result: errors of the output and of the three gradients, and of the output without gradients."""
    width, (height, columns, kernel) = case
    dtype, unit = PRECISIONS[precision]
    exact_inputs = inputs(height, columns, width, dtype=dtype)
    exact = forward_and_backward([t.double() for t in exact_inputs], kernel=kernel, backend="reference")
    there = [t.to(device) for t in exact_inputs]
    with matmul_precision("highest" if precision != "tf32" else "high"):
        ours = forward_and_backward(there, kernel=kernel, backend=name)
        with torch.no_grad():
            alone = neighborhood_attention(*there[:3], kernel=kernel, backend=name)
    pairs = zip(
        ("output", "dq", "dk", "dv", "output without gradients"), [*ours, alone], [*exact, exact[0]], strict=True
    )
    errors = {part: worst_token(found, right) / unit for part, found, right in pairs}
    part = max(errors, key=lambda each: errors[each])
    return {
        "backend": name, "precision": precision, "head_width": width, "map": [height, columns], "kernel": kernel,
        "worst_roundoffs": errors[part], "worst_part": part, "allowed_roundoffs": ALLOWED[precision],
        "right": errors[part] <= ALLOWED[precision],
    }  # fmt: skip


def inputs(height: int, columns: int, width: int, *, dtype: torch.dtype) -> list[Tensor]:
    """q, k of cosine similarity, v, and the gradient of the output; on the CPU."""
    generator = torch.Generator().manual_seed(height * columns + width)
    drawn = [torch.randn(IMAGES, height, columns, HEADS, width, generator=generator) for _ in range(4)]
    q, k = (F.normalize(t, dim=-1) * SCALE**0.5 for t in drawn[:2])
    return [t.to(dtype) for t in (q, k, *drawn[2:])]


def forward_and_backward(tensors: list[Tensor], *, kernel: int, backend: str) -> list[Tensor]:
    """Output and gradients of q, k and v; `tensors` are those and the gradient of the output."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors[:3]]
    out = neighborhood_attention(*leaves, kernel=kernel, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]


def worst_token(found: Tensor, right: Tensor) -> float:
    """The largest error of a token of a head, over the root mean square of the tokens; infinite where one is not finite."""
    difference = (found.detach().cpu().double() - right).norm(dim=-1)
    if not difference.isfinite().all():
        return float("inf")
    return float(difference.max() / right.norm(dim=-1).square().mean().sqrt())


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """How float32 products are made inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _told(rows: list[dict]) -> Found:
    wrong = [row for row in rows if not row["right"]]
    names = list(dict.fromkeys(row["backend"] for row in rows))
    numbers = {"cases": rows}
    if wrong:
        row = max(wrong, key=_share)
        return Found(
            numbers=numbers,
            wrong=f"{row['backend']} in {row['precision']} differs from the reference: {row['worst_part']} by "
            f"{row['worst_roundoffs']:.3g} roundoffs of the {row['allowed_roundoffs']:g} allowed, at heads of {row['head_width']}, "
            f"{row['map'][0]}x{row['map'][1]} tokens, kernel {row['kernel']}; {len(wrong)} of {len(rows)} cases",
            hint=_remedy(row["backend"]),
        )
    if not rows:
        return Found("no backend of neighborhood attention runs on this device", skipped=True)
    worst = max(map(_share, rows))
    text = f"{', '.join(names)}: {len(rows)} cases equal the reference, the worst at {worst:.0%} of what is allowed"
    return Found(text, numbers)


def _share(row: dict) -> float:
    return row["worst_roundoffs"] / row["allowed_roundoffs"]


def _remedy(backend: str) -> str:
    if backend == "natten":
        return (
            "`pip uninstall natten` lets another backend run; or install the build for this torch, see docs/natten.md"
        )
    return "do not train here before it is mended: try another version of torch, and report it with what --json prints"
