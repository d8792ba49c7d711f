"""Normal noise of a whole batch at once, each number a function of (seed, stream, image, element) alone, by a counter.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11) turns a counter of four 32-bit words under
a key of two into four random words, and Box and Muller (1958) turn two words into two normals. It is plain arithmetic on tensors:
no generator, no loop over images, and one kernel where a compiler sees it.

A word lies in an int64, which every device computes with. A product of two words may run over into the sign, and its two
halves are right all the same.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hdit_cli import runtime

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # the key moves on by these: the golden ratio, and the square root of 3 less 1
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter.

    Args:
        counter, key: int64 words, 0 ... 2^32 - 1, of shapes that broadcast.
    """
    (a, b, c, d), (k, m) = counter, key
    for _ in range(ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = _high(right) ^ b ^ k, right & _WORD, _high(left) ^ d ^ m, left & _WORD
        k, m = (k + _WEYL[0]) & _WORD, (m + _WEYL[1]) & _WORD
    return a, b, c, d


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & _WORD


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two words to two independent standard normals, float32; none is beyond 6.8."""
    radius = torch.sqrt(-2 * torch.log((a.float() + 0.5) * 2.0**-32))
    angle = b.float() * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def normals(table: Tensor, count: int) -> Tensor:
    """Standard normals by rows of words: number e of a row is lane e mod 4 of counter e div 4.

    Args:
        table: int64 (N, 4): low and high word of an image's number, low and high word of the key.
        count: numbers for each row.

    Returns:
        float32 (N, count).
    """
    a, b, c, d = _words(table, torch.arange((count + 3) // 4, device=table.device))  # (N, counters) each
    lanes = torch.stack([*_box_muller(a, b), *_box_muller(c, d)], dim=-1)  # (N, counters, 4)
    return lanes.flatten(1)[:, :count]


def normals_apart(table: Tensor, count: int) -> Tensor:
    """As `normals`, each number made for itself: four times the arithmetic, and one kernel that only writes, once compiled."""
    number = torch.arange(count, device=table.device)
    a, b, c, d = _words(table, number >> 2)
    early, even = (number & 2) == 0, (number & 1) == 0
    cosine, sine = _box_muller(torch.where(early, a, c), torch.where(early, b, d))
    return torch.where(even, cosine, sine)


def _words(table: Tensor, each: Tensor) -> Words:
    """The words of counters `each` of every row.

    The counter's own place is second, where the first round multiplies nothing: a compiler that knows it for an index may
    multiply in 32 bits.
    """
    low, high, k, m = table.unsqueeze(-1).unbind(1)  # (N, 1) each
    return philox((low, each, high, torch.zeros_like(each)), (k, m))


def normal(
    seed: int,
    stream: str,
    index: Sequence[int] | np.ndarray,
    shape: Sequence[int],
    *,
    like: Tensor,
    make: Callable[[Tensor, int], Tensor] = normals,
) -> Tensor:
    """As `runtime.normal`, other numbers: the same words on every device, normals the same to a last digit or two.

    Args:
        index: N numbers of images.
        shape: shape of one draw.
        like: gives dtype and device; the draw itself is float32.
        make: `normals`, or `normals_apart` compiled.

    Returns:
        (N, *shape).
    """
    found = make(_table(seed, stream, index).to(like.device, non_blocking=True), math.prod(shape))
    return found.view(len(found), *shape).to(like.dtype)


def _table(seed: int, stream: str, index: Sequence[int] | np.ndarray) -> Tensor:
    """The rows of `normals`, on the CPU."""
    key = runtime.key(seed, stream)
    numbers = np.asarray(index, dtype=np.int64)
    table = np.empty((len(numbers), 4), dtype=np.int64)
    table[:, 0], table[:, 1] = numbers & _WORD, numbers >> 32
    table[:, 2], table[:, 3] = key & _WORD, key >> 32
    return torch.from_numpy(table)


def uniform(
    seed: int, stream: str, index: Sequence[int] | np.ndarray, shape: Sequence[int], *, device: torch.device
) -> Tensor:
    """As `runtime.uniform`, made on the device, other numbers: the same there as on every other.

    Returns:
        (N, *shape) in (0, 1), in steps of 2^-32 in float64; where a device has none (MPS), of 2^-24 in float32.
    """
    count = math.prod(shape)
    table = _table(seed, stream, index).to(device, non_blocking=True)
    words = torch.stack(_words(table, torch.arange((count + 3) // 4, device=device)), dim=-1).flatten(1)[:, :count]
    words = words.view(len(words), *shape)
    if device.type == "mps":
        return ((words >> 8).float() + 0.5) * 2.0**-24
    return (words.double() + 0.5) * 2.0**-32
