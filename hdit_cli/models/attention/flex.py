"""Neighborhood attention by FlexAttention's fused CUDA kernels (Dong et al. 2024), which come with torch.

Tokens are put into an order in which each block of 128 is a two-dimensional tile of the map, so that a block of queries
sees few blocks of keys. Which ones is a table that depends on the map alone; it is made once and kept. Inside a block the
exact windows are opened by `mask_mod`.
"""

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hdit_cli.models.attention import card
from hdit_cli.models.attention.request import Request
from hdit_cli.models.kept import have_values, kept

ROWS, COLUMNS = 8, 16  # of a tile: 128 tokens, the block that FlexAttention's kernels are tuned for


def refuse(request: Request) -> str:
    """One sentence why FlexAttention cannot serve the request, or ""."""
    if request.device != "cuda":
        return "FlexAttention's kernels are made for CUDA; on a CPU they have no backward"
    if importlib.util.find_spec("triton") is None:
        return "the package `triton`, which compiles FlexAttention's kernels, is not installed"
    if request.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"FlexAttention has no kernel for {request.dtype}"
    if request.head_dim not in WIDTHS:
        return f"FlexAttention needs a head width that is a power of two from 16 to 256, not {request.head_dim}"
    if request.tracing:
        return "an exported graph must not depend on FlexAttention"
    needed, allowed = shared_memory(request), card.shared_memory()
    if allowed is not None and needed > allowed:
        what = f"FlexAttention's kernels for heads of {request.head_dim} in {str(request.dtype).removeprefix('torch.')}"
        return f"{what} need {needed:,} bytes of shared memory, and this card has {allowed:,}"
    return ""


WIDTHS = (16, 32, 64, 128, 256)  # of a head
# Bytes of shared memory by what torch chooses for a kind of card (major compute capability) and by bytes of the dtype: forward
# and backward, for each of WIDTHS. Compiled for cards without one by torch 2.13 and Triton 3.7.1, tests/gpu/offline/flex_memory.py.
SHARED_MEMORY = {
    (8, 2): ((10_240, 20_480, 49_152, 98_304, 151_552), (12_800, 25_088, 35_328, 68_096, 135_680)),
    (8, 4): ((36_864, 57_600, 82_432, 147_968, 135_424), (5_120, 9_216, 17_408, 33_792, 66_560)),
    (9, 2): ((14_336, 28_672, 114_688, 131_072, 131_072), (17_408, 33_792, 82_944, 164_864, 197_120)),
    (9, 4): ((36_864, 57_600, 82_432, 155_776, 168_064), (5_120, 9_216, 17_408, 33_792, 66_560)),
    (12, 2): ((10_240, 20_480, 32_768, 65_536, 86_016), (12_800, 25_088, 35_328, 57_344, 114_688)),
    (12, 4): ((36_864, 57_600, 66_048, 115_200, 102_656), (5_120, 9_216, 17_408, 33_792, 66_560)),
}


def shared_memory(request: Request) -> int:
    """Bytes of shared memory that a block of threads needs.

    Data-centre cards of Blackwell were not measured and count as Hopper, which has as much; older ones count as Ampere.
    """
    major = (card.capability() or (8, 9))[0]
    kind = 9 if major in (9, 10) else 12 if major > 10 else 8
    forward, backward = SHARED_MEMORY[kind, request.dtype.itemsize]
    place = WIDTHS.index(request.head_dim)
    return max(forward[place], backward[place]) if request.gradient else forward[place]


def seen(length: int, kernel: int, tile: int, count: int, *, device: torch.device) -> Tensor:
    """bool (count, count): whether any query of a tile has a key in another, along one axis."""
    query = torch.arange(count * tile, device=device)
    start = (query - kernel // 2).clamp(0, length - kernel)  # queries past the end see what the last one sees
    key = torch.arange(count, device=device) * tile
    meets = (key < start[:, None] + kernel) & (key + tile > start[:, None])
    return rearrange(meets, "(c t) k -> c t k", t=tile).any(1)


def window_mask(height: int, width: int, kernel: int, across: int) -> Callable[..., Tensor]:
    """FlexAttention's `mask_mod`: whether a query's window holds a key, by their places in the order of tiles."""

    def place(index: Tensor) -> tuple[Tensor, Tensor]:
        tile, inside = index // (ROWS * COLUMNS), index % (ROWS * COLUMNS)
        return tile // across * ROWS + inside // COLUMNS, tile % across * COLUMNS + inside % COLUMNS

    def inside_window(image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        (query_y, query_x), (key_y, key_x) = place(query), place(key)
        y = (query_y - kernel // 2).clamp(0, height - kernel)
        x = (query_x - kernel // 2).clamp(0, width - kernel)
        return (key_y >= y) & (key_y < y + kernel) & (key_x >= x) & (key_x < x + kernel)

    return inside_window


def tiles(height: int, width: int) -> tuple[int, int]:
    """Tiles down and across a map; the last may hang over its end."""
    return -(-height // ROWS), -(-width // COLUMNS)


@kept
def blocks(height: int, width: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each block of queries how many blocks of keys it sees, and which; the same the other way round.

    Sampling may be the first to ask, and training must be able to use them.
    """
    down, across = tiles(height, width)
    with torch.inference_mode(False):
        y = seen(height, kernel, ROWS, down, device=device)
        x = seen(width, kernel, COLUMNS, across, device=device)
        both = rearrange(y, "q k -> q 1 k 1") & rearrange(x, "q k -> 1 q 1 k")
        both = rearrange(both, "ty tx ky kx -> 1 1 (ty tx) (ky kx)")
        return *_listed(both), *_listed(both.mT)


def _listed(
    both: Tensor,
) -> tuple[Tensor, Tensor]:  # bool (..., i, j) => how many j each i meets (..., i), those first (..., i, j)
    order = both.int().argsort(dim=-1, descending=True, stable=True)
    return both.sum(-1, dtype=torch.int32), order.to(torch.int32)


@torch.compiler.assume_constant_result
def blocks_for_graph(
    height: int, width: int, kernel: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`blocks`, made while a graph is and then a part of it."""
    return blocks(height, width, kernel, device)


def plan(height: int, width: int, kernel: int, device: torch.device) -> BlockMask:
    """The blocks of keys that each block of queries sees."""
    found = (blocks_for_graph if torch.compiler.is_dynamo_compiling() else blocks)(height, width, kernel, device)
    counts, keys, query_counts, queries = found
    across, block = tiles(height, width)[1], ROWS * COLUMNS
    tokens = counts.shape[-1] * block
    return BlockMask(
        seq_lengths=(tokens, tokens),
        kv_num_blocks=counts,
        kv_indices=keys,
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=query_counts,
        q_indices=queries,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=(block, block),
        mask_mod=window_mask(height, width, kernel, across),
    )


def fused_only(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float) -> Tensor:
    """FlexAttention inside a compiled graph, and nowhere else.

    Raises:
        RuntimeError: it is not being compiled: then FlexAttention would write out the scores of all pairs, and say nothing.
    """
    if not torch.compiler.is_dynamo_compiling():
        raise RuntimeError("FlexAttention was to run without its kernel, which would hold the scores of all tokens")
    out: Any = flex_attention(q, k, v, block_mask=block_mask, scale=scale)
    return out


@lru_cache(maxsize=256)
def compiled(how: tuple[Any, ...]) -> tuple[Callable[..., Tensor], BlockMask]:
    """The kernel of one map, batch, dtype and mode, and its plan.

    Dynamo counts what it compiled by the code of a function, and beyond a few it stops compiling that one. So each has code
    of its own.
    """
    own = FunctionType(fused_only.__code__.replace(), fused_only.__globals__, fused_only.__name__)
    return torch.compile(own, fullgraph=True, dynamic=False), plan(*how[:4])


def attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: int, run: Callable[..., Any] | None = None) -> Tensor:
    """Neighborhood attention with softmax scale 1; (N, H, W, heads, d) in and out.

    Args:
        kernel: side of the window in tokens, at most H and W.
        run: stands for the compiled kernel, called with q, k, v (N, heads, tokens, d), the mask and a scale.
    """
    height, width = q.shape[1:3]
    down, across = tiles(height, width)
    bottom, right = down * ROWS - height, across * COLUMNS - width
    pad = (0, 0, 0, 0, 0, right, 0, bottom)
    q, k, v = (F.pad(t, pad) if bottom or right else t for t in (q, k, v))
    q, k, v = (rearrange(t, "n (ty h) (tx w) a d -> n a (ty tx h w) d", h=ROWS, w=COLUMNS) for t in (q, k, v))
    if torch.compiler.is_dynamo_compiling():
        out = fused_only(q, k, v, block_mask=plan(height, width, kernel, q.device), scale=1.0)
    elif have_values():
        if run is None:
            gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
            mode = (gradient, torch.is_inference_mode_enabled(), q.dtype, k.dtype, v.dtype)
            run, mask = compiled((height, width, kernel, q.device, q.shape, mode))
        else:
            mask = plan(height, width, kernel, q.device)
        out = run(q, k, v, block_mask=mask, scale=1.0)
    else:  # holds what the compiled kernel holds
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    out = rearrange(out, "n a (ty tx h w) d -> n (ty h) (tx w) a d", ty=down, tx=across, h=ROWS)
    return out[:, :height, :width]
