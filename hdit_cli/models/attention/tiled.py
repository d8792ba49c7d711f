"""Neighborhood attention in plain torch, forward and backward, on any device and in exported or compiled graphs.

Queries are cut into tiles. All windows of a tile lie inside one halo of (tile + kernel - 1) tokens a side, so the tile
attends to its halo under a mask that opens to each query just its own window: dense matrix products instead of a gather
per query. The mask depends on the map alone and is shared by batch and heads.
"""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from hdit_cli.models.attention.request import Request
from hdit_cli.models.kept import kept

TILE = 8  # 8 x 8 queries meet 14 x 14 keys at kernel 7


def refuse(request: Request) -> str:
    """Runs everywhere."""
    return ""


class Axis(NamedTuple):
    """Tiles along one axis.

    Attributes:
        tile, halo: their lengths in tokens.
        starts: first key of each halo.
        keys: int64 (tiles, halo), the keys of each halo.
        allowed: bool (tiles, tile, halo), the window of each query.
    """

    tile: int
    halo: int
    starts: tuple[int, ...]
    keys: Tensor
    allowed: Tensor


def plan_axis(length: int, kernel: int, tile: int = TILE, *, device: torch.device | None = None) -> Axis:
    """Cuts one axis of `length` tokens into tiles and their halos; the last tile may hang over the end.

    Tensors come of arithmetic on the device: nothing is copied there, so that a compiled graph holds no work of the CPU.
    """
    tile = min(tile, length)
    count = -(-length // tile)
    halo = min(tile + kernel - 1, length)
    starts = tuple(min(max(first - kernel // 2, 0), length - halo) for first in range(0, count * tile, tile))
    query = torch.arange(count * tile, device=device).view(count, tile)
    first = (query[:, 0] - kernel // 2).clamp(0, length - halo)
    keys = first[:, None] + torch.arange(halo, device=device)  # (tiles, halo)
    window = (query.clamp(max=length - 1) - kernel // 2).clamp(0, length - kernel)  # (tiles, tile)
    allowed = (keys[:, None] >= window[..., None]) & (keys[:, None] < window[..., None] + kernel)
    return Axis(tile, halo, starts, keys, allowed)


def build_plan(
    height: int, width: int, kernel: int, dtype: torch.dtype, device: torch.device
) -> tuple[Axis, Axis, Tensor]:
    """Both axes and the additive mask (tiles, 1, queries, keys), 0 inside a query's window and -inf outside."""
    y, x = (plan_axis(length, kernel, device=device) for length in (height, width))
    allowed = rearrange(y.allowed, "ty q k -> ty 1 q 1 k 1") & rearrange(x.allowed, "tx q k -> 1 tx 1 q 1 k")
    allowed = rearrange(allowed, "ty tx qy qx ky kx -> (ty tx) 1 (qy qx) (ky kx)")
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))
    return y, x, mask


@kept
def cached_plan(
    height: int, width: int, kernel: int, dtype: torch.dtype, device: torch.device
) -> tuple[Axis, Axis, Tensor]:
    """`build_plan`, kept. Sampling may be the first to ask, and training must be able to keep the mask for its backward pass."""
    with torch.inference_mode(False):
        return build_plan(height, width, kernel, dtype, device)


# Halos


def halos(x: Tensor, y: Axis, x_axis: Axis) -> Tensor:
    """Copies the halo of every tile by indexing, few kernels: (N, H, W, heads, d) => (N, tiles, halo, tiles, halo, heads, d)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return Halos.apply(x, y, x_axis)  # type: ignore[return-value]
    return x[:, y.keys][:, :, :, x_axis.keys]


class Halos(torch.autograd.Function):
    """`halos`, with a backward pass that reads where autograd's would scatter.

    Halos overlap, so gradients of a token are added up. Scattering does that with atomic additions, in any order, and where a
    GPU has none for the dtype by a sort (bfloat16 below compute capability 9); each token can as well read its few places.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Axis, x_axis: Axis) -> Tensor:
        ctx.y, ctx.x_axis, ctx.shape = y, x_axis, x.shape
        return x[:, y.keys][:, :, :, x_axis.keys]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        height, width = ctx.shape[1:3]
        columns = added(grads[0].flatten(3, 4), ctx.x_axis, width, dim=3)  # (N, tiles, halo, W, heads, d)
        return added(columns.flatten(1, 2), ctx.y, height, dim=1), None, None


def added(halos: Tensor, axis: Axis, length: int, *, dim: int) -> Tensor:
    """Sums over the halos that hold each token, tile after tile: `dim` from tiles * halo places to `length` tokens."""
    token = torch.arange(length, device=halos.device)
    start = axis.keys[:, 0]
    first = (start + axis.halo <= token[:, None]).sum(1)  # the first tile that holds the token
    total: Tensor | None = None
    for place in range(most_halos(axis, length)):
        tile = first + place
        known = tile.clamp(max=len(axis.starts) - 1)
        inside = token - start[known]
        holds = (tile < len(axis.starts)) & (inside >= 0)
        found = halos.index_select(dim, known * axis.halo + inside.clamp(min=0))
        found = torch.where(holds.view(-1, *[1] * (halos.dim() - dim - 1)), found, 0)
        total = found if total is None else total + found
    assert total is not None
    return total


def most_halos(axis: Axis, length: int) -> int:
    """How many halos hold a token at most."""
    return max(sum(start <= token < start + axis.halo for start in axis.starts) for token in range(length))


def attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: int) -> Tensor:
    """Neighborhood attention with softmax scale 1, equal to `reference.attend`.

    Args:
        q, k, v: (N, H, W, heads, d).
        kernel: side of the window in tokens, at most H and W.

    Returns:
        (N, H, W, heads, d).
    """
    n, height, width, _, _ = q.shape
    tracing = torch.compiler.is_compiling()
    y, x, mask = (build_plan if tracing else cached_plan)(height, width, kernel, q.dtype, q.device)
    bottom, right = -height % y.tile, -width % x.tile
    if bottom or right:
        q = F.pad(q, (0, 0, 0, 0, 0, right, 0, bottom))
    tiles = rearrange(q, "n (ty h) (tx w) a d -> (ty tx) (n a) (h w) d", h=y.tile, w=x.tile)
    keys, values = (rearrange(halos(t, y, x), "n ty h tx w a d -> (ty tx) (n a) (h w) d") for t in (k, v))
    out = F.scaled_dot_product_attention(tiles, keys, values, attn_mask=mask, scale=1.0)
    out = rearrange(out, "(ty tx) (n a) (h w) d -> n (ty h) (tx w) a d", ty=len(y.starts), n=n, h=y.tile)
    return out[:, :height, :width]
