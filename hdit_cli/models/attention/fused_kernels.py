"""Triton kernels of neighborhood attention, forward and backward; `fused` launches them.

A program takes one head of one image and a tile of 8 x 8 tokens. All that these tokens meet lies in one rectangle of the map:
at kernel 7, 14 x 14 keys in the middle of the map and fewer at its edges. The program walks it in chunks of ROWS x 16
tokens, so that every product is one of matrices; the scores stay in registers (Dao et al. 2022,
https://arxiv.org/abs/2205.14135). The softmax and all sums are float32. Tokens are read where they are, by strides.

Backward, one kernel takes tiles of queries and gives dq, another takes tiles of keys and gives dk and dv: each result has
one owner, so nothing is added up in memory and the same inputs give the same bits.
With P the weights, g the gradient of the result, delta = sum(g out) over channels and dS = P (g v^T - delta): dq = dS k,
dk = dS^T q, dv = P^T g.
"""

# pyright: reportGeneralTypeIssues=false, reportMissingImports=false
# (a function of Triton's is no Python function, and Triton is not on every machine)

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

TILE = tl.constexpr(8)  # its side
COLUMNS = tl.constexpr(16)  # of a chunk: what kernels 3 ... 9 let a tile see
LOG2E = tl.constexpr(1.4426950408889634)  # the GPU's exponential is that of 2
LN2 = tl.constexpr(0.6931471805599453)


class Map(NamedTuple):
    """A tensor (N, H, W, heads, d) and its strides in elements; channels lie side by side."""

    data: Tensor
    image: int
    row: int
    column: int
    head: int


class Sizes(NamedTuple):
    """Of the maps."""

    height: int
    width: int
    heads: int


@triton.jit
def window(position, length, kernel):
    """First token of the window of each query along one axis."""
    return tl.minimum(tl.maximum(position - kernel // 2, 0), length - kernel)


@triton.jit
def keys_seen(first, length, kernel):
    """Along one axis, the first key that a tile of queries sees, and the first behind the last."""
    last = tl.minimum(first + TILE - 1, length - 1)
    return window(first, length, kernel), window(last, length, kernel) + kernel


@triton.jit
def queries_seeing(first, length, kernel):
    """Along one axis, the first query that sees a key of a tile, and the first behind the last.

    Windows moved inward: keys nearer to an edge than a kernel are seen from the edge on.
    """
    last = tl.minimum(first + TILE - 1, length - 1)
    start = tl.where(first < kernel, 0, first - kernel + 1 + kernel // 2)
    end = tl.where(last >= length - kernel, length, last + kernel // 2 + 1)
    return start, end


@triton.jit
def place(sizes):
    """Image, head, and first row and column of this program's tile. Heads lie side by side in memory, so they come first."""
    across = tl.cdiv(sizes.width, TILE)
    down = tl.cdiv(sizes.height, TILE)
    number = tl.program_id(0)
    head = number % sizes.heads
    number = number // sizes.heads
    x = number % across * TILE
    number = number // across
    return number // down, head, number % down * TILE, x


@triton.jit
def offsets(of, image, head, y, x, WIDE: tl.constexpr):
    """Where the tokens of one head begin, from the start of the memory of a map; WIDE: one image may need 64 bits."""
    if WIDE:
        y, x = y.to(tl.int64), x.to(tl.int64)
    return (image.to(tl.int64) * of.image + head.to(tl.int64) * of.head) + (y * of.row + x * of.column)


@triton.jit
def channels(inside, D: tl.constexpr):
    """Numbers of the channels (1, block) and which of them to touch; blocks are as wide as the next power of two."""
    BLOCK: tl.constexpr = triton.next_power_of_2(D)
    channel = tl.arange(0, BLOCK)[None, :]
    touched = inside[:, None]
    if BLOCK != D:
        touched = touched & (channel < D)
    return channel, touched


@triton.jit
def load(of, start, inside, D: tl.constexpr):  # => (tokens, block); 0 where outside
    channel, touched = channels(inside, D)
    return tl.load(of.data + start[:, None] + channel, mask=touched, other=0.0)


@triton.jit
def store(of, start, inside, value, D: tl.constexpr):
    channel, touched = channels(inside, D)
    tl.store(of.data + start[:, None] + channel, value.to(of.data.dtype.element_ty), mask=touched)


@triton.jit
def chunk_place(step, across, start_y, start_x, ROWS: tl.constexpr):
    """Rows and columns of the tokens of a chunk, each (ROWS * 16,)."""
    slot = tl.arange(0, ROWS * COLUMNS)
    return start_y + step // across * ROWS + slot // COLUMNS, start_x + step % across * COLUMNS + slot % COLUMNS


@triton.jit
def is_open(query_y, query_x, key_y, key_x, sizes, KERNEL: tl.constexpr):
    """Whether a query's window holds a key; the places are (queries, 1) and (1, keys), or the other way round."""
    y, x = window(query_y, sizes.height, KERNEL), window(query_x, sizes.width, KERNEL)
    return (key_y >= y) & (key_y < y + KERNEL) & (key_x >= x) & (key_x < x + KERNEL)


@triton.jit
def forward(
    maps,
    lse,
    sizes,
    KERNEL: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """maps: q, k, v, out. lse: float32 (N, heads, H, W), the logarithm of each query's sum of exponentials."""
    q_map, k_map, v_map, out_map = maps
    image, head, first_y, first_x = place(sizes)
    slot = tl.arange(0, TILE * TILE)
    y, x = first_y + slot // TILE, first_x + slot % TILE
    inside = (y < sizes.height) & (x < sizes.width)
    q = load(q_map, offsets(q_map, image, head, y, x, WIDE), inside, D)

    start_y, end_y = keys_seen(first_y, sizes.height, KERNEL)
    start_x, end_x = keys_seen(first_x, sizes.width, KERNEL)
    across = tl.cdiv(end_x - start_x, COLUMNS)
    largest = tl.full([TILE * TILE], float("-inf"), tl.float32)  # score so far, in powers of 2
    total = tl.zeros([TILE * TILE], tl.float32)
    out = tl.zeros([TILE * TILE, triton.next_power_of_2(D)], tl.float32)
    for step in range(across * tl.cdiv(end_y - start_y, ROWS)):
        key_y, key_x = chunk_place(step, across, start_y, start_x, ROWS)
        seen = (key_y < end_y) & (key_x < end_x)
        k = load(k_map, offsets(k_map, image, head, key_y, key_x, WIDE), seen, D)
        v = load(v_map, offsets(v_map, image, head, key_y, key_x, WIDE), seen, D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E
        opened = is_open(y[:, None], x[:, None], key_y[None, :], key_x[None, :], sizes, KERNEL)
        scores = tl.where(opened, scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(now == float("-inf"), 0.0, now)  # a window that none of the chunks has met yet
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        largest = now

    store(out_map, offsets(out_map, image, head, y, x, WIDE), inside, out / total[:, None], D)
    rows = (image * sizes.heads + head).to(tl.int64) * (sizes.height * sizes.width) + (y * sizes.width + x)
    tl.store(lse + rows, (largest + tl.log2(total)) * LN2, mask=inside)


@triton.jit
def backward_queries(
    maps,
    sums,
    sizes,
    KERNEL: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """maps: q, k, v, out, its gradient, and dq to be written. sums: lse, and delta to be written, both (N, heads, H, W)."""
    q_map, k_map, v_map, out_map, grad_map, dq_map = maps
    lse, delta = sums
    image, head, first_y, first_x = place(sizes)
    slot = tl.arange(0, TILE * TILE)
    y, x = first_y + slot // TILE, first_x + slot % TILE
    inside = (y < sizes.height) & (x < sizes.width)
    q = load(q_map, offsets(q_map, image, head, y, x, WIDE), inside, D)
    grad = load(grad_map, offsets(grad_map, image, head, y, x, WIDE), inside, D)
    out = load(out_map, offsets(out_map, image, head, y, x, WIDE), inside, D)
    along = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    rows = (image * sizes.heads + head).to(tl.int64) * (sizes.height * sizes.width) + (y * sizes.width + x)
    tl.store(delta + rows, along, mask=inside)
    log_total = tl.load(lse + rows, mask=inside, other=0.0) * LOG2E

    start_y, end_y = keys_seen(first_y, sizes.height, KERNEL)
    start_x, end_x = keys_seen(first_x, sizes.width, KERNEL)
    across = tl.cdiv(end_x - start_x, COLUMNS)
    dq = tl.zeros([TILE * TILE, triton.next_power_of_2(D)], tl.float32)
    for step in range(across * tl.cdiv(end_y - start_y, ROWS)):
        key_y, key_x = chunk_place(step, across, start_y, start_x, ROWS)
        seen = (key_y < end_y) & (key_x < end_x)
        k = load(k_map, offsets(k_map, image, head, key_y, key_x, WIDE), seen, D)
        v = load(v_map, offsets(v_map, image, head, key_y, key_x, WIDE), seen, D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E
        opened = is_open(y[:, None], x[:, None], key_y[None, :], key_x[None, :], sizes, KERNEL)
        weights = tl.where(opened, tl.exp2(scores - log_total[:, None]), 0.0)
        grad_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - along[:, None])
        dq = tl.dot(grad_scores.to(k.dtype), k, dq, input_precision=PRECISION)
    store(dq_map, offsets(dq_map, image, head, y, x, WIDE), inside, dq, D)


@triton.jit
def backward_keys(
    maps,
    sums,
    sizes,
    KERNEL: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """maps: q, k, v, the gradient of the result, and dk and dv to be written. sums: lse and delta, both (N, heads, H, W)."""
    q_map, k_map, v_map, grad_map, dk_map, dv_map = maps
    lse, delta = sums
    image, head, first_y, first_x = place(sizes)
    slot = tl.arange(0, TILE * TILE)
    y, x = first_y + slot // TILE, first_x + slot % TILE
    inside = (y < sizes.height) & (x < sizes.width)
    k = load(k_map, offsets(k_map, image, head, y, x, WIDE), inside, D)
    v = load(v_map, offsets(v_map, image, head, y, x, WIDE), inside, D)

    start_y, end_y = queries_seeing(first_y, sizes.height, KERNEL)
    start_x, end_x = queries_seeing(first_x, sizes.width, KERNEL)
    across = tl.cdiv(end_x - start_x, COLUMNS)
    dk = tl.zeros([TILE * TILE, triton.next_power_of_2(D)], tl.float32)
    dv = tl.zeros([TILE * TILE, triton.next_power_of_2(D)], tl.float32)
    images_rows = (image * sizes.heads + head).to(tl.int64) * (sizes.height * sizes.width)
    for step in range(across * tl.cdiv(end_y - start_y, ROWS)):
        query_y, query_x = chunk_place(step, across, start_y, start_x, ROWS)
        seeing = (query_y < end_y) & (query_x < end_x)
        q = load(q_map, offsets(q_map, image, head, query_y, query_x, WIDE), seeing, D)
        grad = load(grad_map, offsets(grad_map, image, head, query_y, query_x, WIDE), seeing, D)
        rows = images_rows + (query_y * sizes.width + query_x)
        log_total = tl.load(lse + rows, mask=seeing, other=0.0) * LOG2E
        along = tl.load(delta + rows, mask=seeing, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * LOG2E  # (keys, queries)
        opened = is_open(query_y[None, :], query_x[None, :], y[:, None], x[:, None], sizes, KERNEL)
        weights = tl.where(opened, tl.exp2(scores - log_total[None, :]), 0.0)
        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
        grad_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - along[None, :])
        dk = tl.dot(grad_scores.to(q.dtype), q, dk, input_precision=PRECISION)
    store(dk_map, offsets(dk_map, image, head, y, x, WIDE), inside, dk, D)
    store(dv_map, offsets(dv_map, image, head, y, x, WIDE), inside, dv, D)
