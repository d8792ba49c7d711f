"""Neighborhood attention in plain torch, forward and backward, on any device and in exported or compiled graphs.

Queries are cut into tiles. All windows of a tile lie inside one halo of (tile + kernel - 1) tokens a side, so the tile
attends to its halo under a mask that opens to each query just its own window: dense matrix products instead of a gather
per query. The mask depends on the map alone and is shared by batch and heads.
"""

from typing import NamedTuple

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
    """Tiles along one axis. `starts`: first key of each halo; `allowed`: bool (tiles, tile, halo), the window of each query."""

    tile: int
    halo: int
    starts: tuple[int, ...]
    allowed: Tensor


def plan_axis(length: int, kernel: int, tile: int = TILE) -> Axis:
    """Cuts one axis of `length` tokens into tiles and their halos; the last tile may hang over the end."""
    tile = min(tile, length)
    count = -(-length // tile)
    halo = min(tile + kernel - 1, length)
    starts = tuple(min(max(first - kernel // 2, 0), length - halo) for first in range(0, count * tile, tile))
    query = torch.arange(count * tile).view(count, tile).clamp(max=length - 1)  # (tiles, tile)
    key = torch.tensor(starts)[:, None] + torch.arange(halo)  # (tiles, halo)
    window = (query - kernel // 2).clamp(0, length - kernel)
    allowed = (key[:, None] >= window[..., None]) & (key[:, None] < window[..., None] + kernel)
    return Axis(tile, halo, starts, allowed)


def build_plan(
    height: int, width: int, kernel: int, dtype: torch.dtype, device: torch.device
) -> tuple[Axis, Axis, Tensor]:
    """Both axes and the additive mask (tiles, 1, queries, keys), 0 inside a query's window and -inf outside."""
    y, x = plan_axis(height, kernel), plan_axis(width, kernel)
    allowed = rearrange(y.allowed, "ty q k -> ty 1 q 1 k 1") & rearrange(x.allowed, "tx q k -> 1 tx 1 q 1 k")
    allowed = rearrange(allowed, "ty tx qy qx ky kx -> (ty tx) 1 (qy qx) (ky kx)")
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
    return y, x, mask.to(device)


@kept
def cached_plan(
    height: int, width: int, kernel: int, dtype: torch.dtype, device: torch.device
) -> tuple[Axis, Axis, Tensor]:
    """`build_plan`, kept. Sampling may be the first to ask, and training must be able to keep the mask for its backward pass."""
    with torch.inference_mode(False):
        return build_plan(height, width, kernel, dtype, device)


def gather_halo(x: Tensor, y: Axis, x_axis: Axis) -> Tensor:  # (N, H, W, heads, d) => (tiles, N * heads, halo, d)
    """Copies the halo of every tile by indexing: few kernels."""
    rows = torch.tensor(y.starts, device=x.device)[:, None] + torch.arange(y.halo, device=x.device)
    columns = torch.tensor(x_axis.starts, device=x.device)[:, None] + torch.arange(x_axis.halo, device=x.device)
    x = x[:, rows][:, :, :, columns]
    return rearrange(x, "n ty h tx w a d -> (ty tx) (n a) (h w) d")


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
    keys, values = gather_halo(k, y, x), gather_halo(v, y, x)
    out = F.scaled_dot_product_attention(tiles, keys, values, attn_mask=mask, scale=1.0)
    out = rearrange(out, "(ty tx) (n a) (h w) d -> n (ty h) (tx w) a d", ty=len(y.starts), n=n, h=y.tile)
    return out[:, :height, :width]
