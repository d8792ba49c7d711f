"""Neighborhood attention through NATTEN's fused CUDA kernels (https://natten.org), where `libnatten` is installed."""

from functools import cache

import torch
from torch import Tensor

from hdit_cli.models.attention import card
from hdit_cli.models.attention.dense import global_attention
from hdit_cli.models.attention.request import Request
from hdit_cli.models.kept import have_values


@cache
def unavailable() -> str:
    """Why NATTEN's kernels cannot be used on this machine, or ""."""
    try:
        import natten
    except ImportError:
        return "the package `natten` is not installed"
    except (RuntimeError, OSError) as error:  # a wheel made for another torch
        return f"the package `natten` does not load: {error}"
    if not getattr(natten, "HAS_LIBNATTEN", False):
        return "`natten` is installed without `libnatten`, its CUDA kernels"
    return ""


def refuse(request: Request) -> str:
    """One sentence why NATTEN cannot serve the request, or ""."""
    if request.device != "cuda":
        return "NATTEN's kernels need CUDA; its CPU path is slow and has no backward"
    if reason := unavailable():
        return reason
    if request.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"NATTEN has no kernel for {request.dtype}"
    if request.head_dim % 8:
        return f"NATTEN needs a head width that is a multiple of 8, not {request.head_dim}"
    if request.tracing:
        return "an exported graph must not depend on NATTEN"
    if request.compiling and not traceable():
        return "this version of NATTEN does not go into a compiled graph (0.21.5 and later do)"
    if request.deterministic and request.gradient and (card.capability() or (0, 0))[0] in (9, 10):
        return "NATTEN's backward pass on Hopper and Blackwell is not deterministic, and this run is to be"
    return ""


def traceable() -> bool:
    """Whether its kernels are operators of torch, which a compiler leaves whole."""
    return hasattr(torch.ops.natten, "na2d_forward") and hasattr(torch.ops.natten, "na2d_backward")


def attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: int) -> Tensor:
    """Neighborhood attention with softmax scale 1; (N, H, W, heads, d) in and out."""
    if not have_values():
        return global_attention(q, k, v)  # holds what the kernel holds
    import natten

    return natten.na2d(q, k, v, kernel_size=kernel, scale=1.0)  # type: ignore[attr-defined]
