"""Chooses the backend of neighborhood attention once for each kind of call, and can say why the others were refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from hdit_cli import catalog
from hdit_cli.errors import UsageError
from hdit_cli.models.attention.request import Request


def explain(request: Request) -> dict[str, str]:
    """For each backend, in order of preference: "" if it can serve the request, else one sentence why not."""
    return {name: catalog.get("attention", name).refuse(request) for name in catalog.names("attention")}


@lru_cache(maxsize=256)
def choose(request: Request) -> str:
    """Name of the first backend that can serve the request.

    Raises:
        UsageError: none can.
    """
    reasons = explain(request)
    for name, reason in reasons.items():
        if not reason:
            return name
    raise UsageError("no attention backend can run this", hint="; ".join(f"{n}: {r}" for n, r in reasons.items()))


def choose_compiled(request: Request) -> str:
    """The backend that the same call has inside a compiled step, where one can be compiled."""
    return choose(replace(request, compiling=True))


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, *, kernel: int, backend: str | None = None) -> Tensor:
    """Each token attends to the kernel x kernel window around it, with softmax scale 1.

    The window is moved inward at the edges of the map and never padded: it always holds kernel * kernel tokens
    (Hassani et al. 2023).

    Args:
        q, k, v: (N, H, W, heads, d).
        kernel: side of the window, 1 ... min(H, W).
        backend: a name of the catalog; None lets the dispatcher choose.

    Returns:
        (N, H, W, heads, d).

    Raises:
        ValueError: the kernel does not fit the map.
    """
    height, width = q.shape[1:3]
    if not 1 <= kernel <= min(height, width):
        raise ValueError(f"a {kernel} x {kernel} neighborhood does not fit a map of {height} x {width} tokens")
    if backend is None:
        gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        exact = torch.are_deterministic_algorithms_enabled()
        if torch.compiler.is_compiling():
            exported = torch.compiler.is_exporting()
            name = choose_for_graph(q.device.type, q.dtype, q.shape[-1], kernel, gradient, exported, exact)
            return _attends[name](q, k, v, kernel=kernel)
        backend = choose(Request(q.device.type, q.dtype, q.shape[-1], kernel, gradient, deterministic=exact))
    return catalog.get("attention", backend).attend(q, k, v, kernel=kernel)


_attends: dict[str, Callable[..., Tensor]] = {}  # by backend, for graphs: what they would import would break them


@torch.compiler.assume_constant_result
def choose_for_graph(
    device: str, dtype: torch.dtype, head_dim: int, kernel: int, gradient: bool, exported: bool, deterministic: bool
) -> str:
    """`choose` for a call that becomes part of a graph; asked while it is made, its answer is part of it."""
    if not _attends:
        _attends.update({name: catalog.get("attention", name).attend for name in catalog.names("attention")})
    how = {"tracing": exported, "compiling": not exported, "deterministic": deterministic}
    return choose(Request(device, dtype, head_dim, kernel, gradient, **how))
