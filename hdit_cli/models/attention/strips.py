"""Neighborhood attention for CPUs, in plain torch, forward and backward.

The map is cut into strips of columns; a strip of keys holds the columns that its queries can see, so neighbouring strips
overlap. Inside a strip the queries are cut into tiles, and the rows of keys that a tile can see lie in one piece: they are
read where they are, without a copy. All strips of all images and heads take a tile together, in a loop down the map: the
scores of one turn of the loop stay in the processor's cache, and the backward pass computes them again (Dao et al. 2022).
Windows open by an additive mask, which depends on the map alone and is shared by images and heads.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hdit_cli.models.attention.request import Request
from hdit_cli.models.attention.tiled import Axis, plan_axis
from hdit_cli.models.kept import have_values, kept

TILE = 8  # its side: a small one multiplies less in vain, a large one in larger pieces (docs/performance.md)


def refuse(request: Request) -> str:
    """One sentence why this cannot serve the request, or ""."""
    if request.device != "cpu":
        return "its loop over tiles is made for a CPU"
    if request.dtype.itemsize < 4:
        return "it is made for float32 and float64"
    if request.tracing or request.compiling:
        return "its loop over tiles does not go into a graph"
    return ""


_BOUND = 40.0  # e^40 times as many keys as there can be is far from the largest float32, e^-40 from the smallest


class Plan(NamedTuple):
    """Both axes; masks (kinds of rows of tiles, 1, strips, queries, keys), 0 or -inf, and the same as 1 or 0; the kind of each
    row of tiles.
    """

    y: Axis
    x: Axis
    masks: Tensor
    open: Tensor
    kinds: tuple[int, ...]


@kept
def plan(height: int, width: int, kernel: int, dtype: torch.dtype) -> Plan:
    """How a map is cut. Sampling may be the first to ask, and training must be able to use the masks."""
    y, x = (plan_axis(length, kernel, TILE) for length in (height, width))
    with torch.inference_mode(False):
        kinds = _kinds(y, height, kernel)
        distinct = y.allowed[[kinds.index(kind) for kind in range(max(kinds) + 1)]]
        allowed = rearrange(distinct, "i qy ky -> i 1 qy 1 ky 1") & rearrange(x.allowed, "tx qx kx -> 1 tx 1 qx 1 kx")
        allowed = rearrange(allowed, "i tx qy qx ky kx -> i 1 tx (qy qx) (ky kx)")
        masks = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
    return Plan(y, x, masks, allowed.to(dtype), kinds)


def _kinds(axis: Axis, length: int, kernel: int) -> tuple[int, ...]:
    """Numbers the tiles of an axis by where their queries' windows lie in their halos: those of one number share a mask."""
    windows = [
        tuple(
            min(max(min(query, length - 1) - kernel // 2, 0), length - kernel) - start
            for query in range(i * axis.tile, (i + 1) * axis.tile)
        )
        for i, start in enumerate(axis.starts)
    ]
    distinct = list(dict.fromkeys(windows))
    return tuple(map(distinct.index, windows))


# Layouts: B is (images heads strips), with the strip fastest


def to_tiles(x: Tensor, cut: Plan) -> Tensor:  # (N, H, W, heads, d) => (rows of tiles, B, queries, d)
    bottom, right = len(cut.y.starts) * cut.y.tile - x.shape[1], len(cut.x.starts) * cut.x.tile - x.shape[2]
    if bottom or right:
        x = F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom))
    tiles = rearrange(x.to(cut.masks.dtype), "n (ty h) (tx w) a d -> ty (n a tx) (h w) d", h=cut.y.tile, w=cut.x.tile)
    return tiles.contiguous()


def from_tiles(
    tiles: Tensor, cut: Plan, shape: torch.Size
) -> Tensor:  # (rows of tiles, B, queries, d) => (N, H, W, heads, d)
    x = rearrange(tiles, "ty (n a tx) (h w) d -> n (ty h) (tx w) a d", n=shape[0], a=shape[3], h=cut.y.tile)
    return x[:, : shape[1], : shape[2]]


def to_strips(x: Tensor, cut: Plan) -> Tensor:  # (N, H, W, heads, d) => (B, H, columns, d)
    n, height, _, heads, d = x.shape
    out = x.new_empty(n, heads, len(cut.x.starts), height, cut.x.halo, d, dtype=cut.masks.dtype)
    source = rearrange(x, "n h w a d -> n a h w d")
    for j, left in enumerate(cut.x.starts):
        out[:, :, j] = source[:, :, :, left : left + cut.x.halo]
    return out.flatten(0, 2)


def from_strips(
    strips: Tensor, cut: Plan, shape: torch.Size
) -> Tensor:  # (B, H, columns, d) => (N, H, W, heads, d), added up
    out = strips.new_zeros(shape)
    target = rearrange(out, "n h w a d -> n a h w d")
    pieces = rearrange(strips, "(n a tx) h w d -> tx n a h w d", n=shape[0], a=shape[3])
    for left, piece in zip(cut.x.starts, pieces, strict=True):
        target[:, :, :, left : left + cut.x.halo] += piece
    return out


def rows(strips: Tensor, top: int, cut: Plan) -> Tensor:  # a view: (B, H, columns, d) => (B, keys, d)
    return strips[:, top : top + cut.y.halo].flatten(1, 2)


def walk(tiles: Tensor, keys: Tensor, values: Tensor, cut: Plan, shape: torch.Size, *, bounded: bool) -> Tensor:
    """Softmax attention of every tile: (N, H, W, heads, d). `bounded`: no score is larger than _BOUND."""
    y, x = cut.y, cut.x
    out = tiles.new_empty(shape[0], len(y.starts) * y.tile, len(x.starts) * x.tile, *shape[3:])
    target = rearrange(out, "n (ty h) (tx w) a d -> ty n a tx h w d", h=y.tile, w=x.tile)
    turn = _bounded_turn(tiles, cut) if bounded else _turn(cut)
    for i, (top, kind) in enumerate(zip(y.starts, cut.kinds, strict=True)):
        found = turn(tiles[i], rows(keys, top, cut), rows(values, top, cut), kind)
        target[i] = found.view(target.shape[1:])
    return out[:, : shape[1], : shape[2]]


def is_bounded(tiles: Tensor, keys: Tensor) -> bool:
    """Whether no score is larger than _BOUND, by Cauchy and Schwarz; not where one is NaN. Without values, as usual."""
    if not have_values():
        return True
    return math.prod(torch.linalg.vector_norm(x, dim=-1).max().item() for x in (tiles, keys)) < _BOUND


Turn = Callable[
    [Tensor, Tensor, Tensor, int], Tensor
]  # queries, keys, values (B, ., d), kind of row => (B, queries, d)


def _turn(cut: Plan) -> Turn:
    strips = (-1, len(cut.x.starts))  # of one image and head

    def attended(q: Tensor, k: Tensor, v: Tensor, kind: int) -> Tensor:
        q, k, v = (t.unflatten(0, strips) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=cut.masks[kind], scale=1.0)

    return attended


def _bounded_turn(tiles: Tensor, cut: Plan) -> Turn:
    """Of scores so small that the softmax needs no largest one taken off: as those of cosine similarity are."""
    weights = _scores_of(tiles, cut)
    found = torch.empty_like(tiles[0])

    def attended(q: Tensor, k: Tensor, v: Tensor, kind: int) -> Tensor:
        torch.bmm(q, k.mT, out=weights)
        total = _exp(weights, cut, kind)
        return torch.bmm(weights, v, out=found).div_(total)

    return attended


def _scores_of(tiles: Tensor, cut: Plan) -> Tensor:
    """Memory for the scores of a turn; used again in each one, it stays in the cache: (B, queries, keys)."""
    return tiles.new_empty(*tiles.shape[1:3], cut.masks.shape[-1])


def _exp(scores: Tensor, cut: Plan, kind: int) -> Tensor:
    """In place e^score where the window is open, else 0; their sums, (B, queries, 1)."""
    scores.exp_().unflatten(0, (-1, len(cut.x.starts))).mul_(cut.open[kind])
    return scores.sum(-1, keepdim=True)


def _softmax(scores: Tensor, cut: Plan, kind: int, *, bounded: bool) -> Tensor:
    """In place the softmax over the open keys."""
    if bounded:
        return scores.div_(_exp(scores, cut, kind))
    scores.unflatten(0, (-1, len(cut.x.starts))).add_(cut.masks[kind])
    return torch.softmax(scores, -1, out=scores)


class Attention(torch.autograd.Function):
    """With a backward pass that walks the same way; gradients of overlapping strips are added up in a fixed order."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cut: Plan) -> Tensor:
        ctx.cut, ctx.shape, ctx.dtype = cut, q.shape, q.dtype
        tiles, keys, values = to_tiles(q, cut), to_strips(k, cut), to_strips(v, cut)
        ctx.save_for_backward(tiles, keys, values)
        ctx.bounded = is_bounded(tiles, keys)
        return walk(tiles, keys, values, cut, q.shape, bounded=ctx.bounded).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        cut: Plan = ctx.cut
        tiles, keys, values = ctx.saved_tensors
        grad = to_tiles(grads[0], cut)
        grad_tiles, grad_keys, grad_values = torch.empty_like(tiles), torch.zeros_like(keys), torch.zeros_like(values)
        weights, grad_weights = _scores_of(tiles, cut), _scores_of(tiles, cut)
        block = tiles.new_empty(len(tiles[0]), cut.y.halo, cut.x.halo, tiles.shape[-1])  # of keys
        for i, (top, kind) in enumerate(zip(cut.y.starts, cut.kinds, strict=True)):
            seen = slice(top, top + cut.y.halo)
            torch.bmm(tiles[i], rows(keys, top, cut).mT, out=weights)
            _softmax(weights, cut, kind, bounded=ctx.bounded)
            torch.bmm(weights.mT, grad[i], out=block.flatten(1, 2))
            grad_values[:, seen] += block
            torch.bmm(grad[i], rows(values, top, cut).mT, out=grad_weights)
            grad_scores = torch._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype, grad_input=grad_weights
            )
            torch.bmm(grad_scores, rows(keys, top, cut), out=grad_tiles[i])
            torch.bmm(grad_scores.mT, tiles[i], out=block.flatten(1, 2))
            grad_keys[:, seen] += block
        grad_q = from_tiles(grad_tiles, cut, ctx.shape).to(ctx.dtype)
        grad_k, grad_v = (from_strips(g, cut, ctx.shape).to(ctx.dtype) for g in (grad_keys, grad_values))
        return grad_q, grad_k, grad_v, None


def attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: int) -> Tensor:
    """Neighborhood attention with softmax scale 1, equal to `reference.attend`.

    Args:
        q, k, v: (N, H, W, heads, d), on a CPU; of fewer than 32 bits they are computed in float32.
        kernel: side of the window in tokens, at most H and W.

    Returns:
        (N, H, W, heads, d).
    """
    cut = plan(q.shape[1], q.shape[2], kernel, torch.promote_types(q.dtype, torch.float32))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return Attention.apply(q, k, v, cut)  # type: ignore[return-value]
    tiles, keys, values = to_tiles(q, cut), to_strips(k, cut), to_strips(v, cut)
    return walk(tiles, keys, values, cut, q.shape, bounded=is_bounded(tiles, keys)).to(q.dtype)
