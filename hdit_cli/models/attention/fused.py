"""Neighborhood attention by Triton kernels of our own, eagerly and inside compiled graphs.

They read q, k and v where they lie, by strides, and write the result in its natural layout: nothing is gathered, padded or put
into another order, before or after. By bytes moved this comes after NATTEN, which does the same, and before FlexAttention,
which wants the tokens in tiles; no time was measured on a GPU.

Two custom operators of torch hide the launches from compilers: a graph stays whole, sees their shapes and calls them as they
are. (`torch.library.triton_op` would open them to the compiler, which has nothing to fuse into them, and would read every
kernel once more at the start.)
"""

from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hdit_cli.models.attention import card
from hdit_cli.models.attention.request import Request

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NARROWEST, WIDEST = 16, 128  # heads


class Launch(NamedTuple):
    """How a kernel is built. `rows` of 16 tokens in a chunk; `stages`: chunks in shared memory at once."""

    rows: int
    warps: int
    stages: int = 2


class Launches(NamedTuple):
    """The three kernels, and the bytes of shared memory that the largest needs on the cards that have least (8.6, 8.9, 12.0).

    On 9.0 and 10.0 they need up to half as much again, and have more than twice as much.
    """

    forward: Launch
    queries: Launch
    keys: Launch
    shared: int


# By how products are taken, and whether a head is wider than 64 channels. Chosen from the registers and the shared memory that
# the compiled kernels need: hardly a register is spilled and each fits into the 101,376 bytes of the smallest card. A chunk of
# two rows wastes nothing of the 14 that a tile meets at kernel 7; float32 takes one row where two would spill. Not measured.
LAUNCHES = {
    ("half", False): Launches(Launch(2, 4), Launch(2, 4), Launch(2, 4), 24_832),
    ("half", True): Launches(Launch(2, 8), Launch(2, 8), Launch(2, 8), 53_504),
    ("tf32", False): Launches(Launch(2, 8), Launch(2, 8), Launch(1, 8), 53_248),
    ("tf32", True): Launches(Launch(1, 8), Launch(1, 8), Launch(1, 8), 90_240),
    ("ieee", False): Launches(Launch(2, 8), Launch(2, 8), Launch(1, 8), 57_344),
    ("ieee", True): Launches(Launch(1, 16), Launch(1, 16), Launch(1, 16), 86_144),
}


def refuse(request: Request) -> str:
    """One sentence why these kernels cannot serve the request, or ""."""
    if request.device != "cuda":
        return "our Triton kernels are made for CUDA"
    if find_spec("triton") is None:
        return "the package `triton`, which compiles the kernels, is not installed"
    if torch.version.hip:
        return "our Triton kernels are made for NVIDIA's cards"
    if request.dtype not in DTYPES:
        return f"our Triton kernels have none for {request.dtype}"
    if request.head_dim % 8 or not NARROWEST <= request.head_dim <= WIDEST:
        return f"our Triton kernels need a head width of {NARROWEST} ... {WIDEST} in steps of 8, not {request.head_dim}"
    if request.tracing:
        return "an exported graph must not depend on Triton"
    if (capability := card.capability()) and capability < (8, 0):
        return f"our Triton kernels need compute capability 8.0, and this card has {capability[0]}.{capability[1]}"
    needed, allowed = launches(request.dtype, request.head_dim).shared, card.shared_memory()
    if allowed is not None and needed > allowed:
        return f"our Triton kernels need {needed:,} bytes of shared memory here, and this card has {allowed:,}"
    return ""


def launches(dtype: torch.dtype, head_dim: int) -> Launches:
    """How the kernels are launched for q, k and v of a dtype."""
    return LAUNCHES["half" if dtype.itemsize == 2 else precision(), head_dim > 64]


def kernels() -> ModuleType:
    """The kernels; Triton is imported with them."""
    from hdit_cli.models.attention import fused_kernels

    return fused_kernels


def precision() -> str:
    """How float32 products are taken, as torch's own on this machine: "tf32", or "ieee" in full."""
    own = torch.backends.cuda.matmul.fp32_precision
    if own == "none":  # what holds for all of torch
        own = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if own == "tf32" else "ieee"


def _mapped(x: Tensor) -> tuple[Any, ...]:
    return kernels().Map(x, *x.stride()[:4])


def _readable(x: Tensor) -> Tensor:  # a copy only where channels do not lie side by side, as in an expanded gradient
    return x if x.stride(-1) == 1 else x.contiguous()


def _is_wide(x: Tensor) -> bool:
    """Whether one image reaches over 2^31 elements; images are told apart in 64 bits always."""
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 2**31


def _launch(name: str, launch: Launch, maps: tuple[Tensor, ...], sums: Any, kernel: int) -> None:
    n, height, width, heads, d = maps[0].shape
    own = kernels()
    grid = (n * heads * -(-height // 8) * -(-width // 8),)
    with torch.cuda.device(maps[0].device) if maps[0].is_cuda else nullcontext():
        getattr(own, name)[grid](
            tuple(map(_mapped, maps)),
            sums,
            own.Sizes(height, width, heads),
            KERNEL=kernel,
            D=d,
            ROWS=launch.rows,
            PRECISION=precision(),
            WIDE=any(map(_is_wide, maps)),
            num_warps=launch.warps,
            num_stages=launch.stages,
        )


def _empty_sums(x: Tensor) -> Tensor:  # (N, H, W, heads, d) => float32 (N, heads, H, W)
    return x.new_empty(x.shape[0], x.shape[3], *x.shape[1:3], dtype=torch.float32)


@torch.library.custom_op("hdit::neighborhood_attention", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """The result, contiguous (N, H, W, heads, d), and the logarithms of the sums of the softmax, float32 (N, heads, H, W)."""
    out, lse = v.new_empty(v.shape), _empty_sums(q)
    maps = (*map(_readable, (q, k, v)), out)
    if out.numel():
        _launch("forward", launches(q.dtype, q.shape[-1]).forward, maps, lse, kernel)
    return out, lse


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), _empty_sums(q)


@torch.library.custom_op("hdit::neighborhood_attention_backward", mutates_args=())
def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernel: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each contiguous (N, H, W, heads, d)."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    if not dq.numel():
        return dq, dk, dv
    q, k, v, out, grad = map(_readable, (q, k, v, out, grad))
    sums, how = (lse, torch.empty_like(lse)), launches(q.dtype, q.shape[-1])
    _launch("backward_queries", how.queries, (q, k, v, out, grad, dq), sums, kernel)
    _launch("backward_keys", how.keys, (q, k, v, grad, dk, dv), sums, kernel)
    return dq, dk, dv


@backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernel: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.kernel = inputs
    ctx.save_for_backward(*qkv, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    q, *others = ctx.saved_tensors
    return *backward(grad.to(q.dtype), q, *others, ctx.kernel), None


forward.register_autograd(_differentiate, setup_context=_keep)


def attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: int) -> Tensor:
    """Neighborhood attention with softmax scale 1, equal to `reference.attend`.

    Args:
        q, k, v: (N, H, W, heads, d), d 16 ... 128 in steps of 8; views by strides are read without a copy.
        kernel: side of the window in tokens, at most H and W.

    Returns:
        (N, H, W, heads, d), contiguous; of the dtype of autocast where that is on.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return forward(q, k, v, kernel)[0]
