"""Karras augmentation: geometric transforms of the training images, each with a small probability, told to the network
as a 9-vector so that they do not leak into what it generates (Karras et al. 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models", appendix F.2).

Every draw is a function of (seed, image number in the run), and the whole batch is warped at once.
Points are (x, y) in pixels, pixel centres at integers; matrices act on homogeneous columns (x, y, 1).
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from hdit_cli import runtime
from hdit_cli.data.catmull_rom import is_straight, resample

SCALE = 2**0.2  # one standard deviation of zoom and of stretch
TRANSLATION = 1 / 8  # one standard deviation of a shift, in image sides

_PIXELS = 1 << 16  # of the images that a CPU works on at once

# Columns of the uniform draws of an image: five gates (y-flip, zoom, rotation, stretch, shift), then the values a0..a7.
_GATES, _DRAWS = 5, 13
_FLIP_Y, _ZOOM, _ROTATION, _STRETCH, _SHIFT = range(_GATES)


def draw(index: np.ndarray, *, seed: int, probability: float) -> Tensor:
    """The eight numbers a0..a7 that say what happens to each image; all zero means nothing.

    a0 x-flip (0 or 1; always drawn, a fair coin), a1 y-flip (0 or 1), a2 ~ N(0, 1) zoom, a3 ~ U(-pi, pi) rotation,
    a4 ~ U(-pi, pi) and a5 ~ N(0, 1) direction and amount of stretch, a6, a7 ~ N(0, 1) shift. Zoom, rotation, stretch,
    shift and y-flip happen with `probability` each, independently.

    Args:
        index: int64 (N,), global image numbers in the run.

    Returns:
        float64 (N, 8).
    """
    u = runtime.uniform(seed, "augment", index, _DRAWS)
    gate, value = u[:, :_GATES] < probability, u[:, _GATES:]
    coin, angle, normal = (value < 0.5).double(), (2 * value - 1) * math.pi, torch.special.ndtri(value)  # inverse CDF
    a = torch.zeros(len(u), 8, dtype=torch.float64)
    a[:, 0] = coin[:, 0]
    a[:, 1] = coin[:, 1] * gate[:, _FLIP_Y]
    a[:, 2] = normal[:, 2] * gate[:, _ZOOM]
    a[:, 3] = angle[:, 3] * gate[:, _ROTATION]
    a[:, 4] = angle[:, 4] * gate[:, _STRETCH]
    a[:, 5] = normal[:, 5] * gate[:, _STRETCH]
    a[:, 6:] = normal[:, 6:] * gate[:, _SHIFT, None]
    return a


def condition(a: Tensor) -> Tensor:
    """What the network is told: a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7.

    Args:
        a: float64 (N, 8) from `draw`.

    Returns:
        float64 (N, 9), zero where nothing happens.
    """
    a0, a1, a2, a3, a4, a5, a6, a7 = a.unbind(1)
    return torch.stack([a0, a1, a2, a3.cos() - 1, a3.sin(), a5 * a4.cos(), a5 * a4.sin(), a6, a7], dim=1)


def _affine(xx: Tensor | float, xy: Tensor | float, yx: Tensor | float, yy: Tensor | float, *, like: Tensor) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(like), 1, 1)
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = (torch.as_tensor(v) for v in (xx, xy, yx, yy))
    return matrix


def _translation(x: Tensor | float, y: Tensor | float, *, like: Tensor) -> Tensor:
    matrix = _affine(1.0, 0.0, 0.0, 1.0, like=like)
    matrix[:, 0, 2], matrix[:, 1, 2] = torch.as_tensor(x), torch.as_tensor(y)
    return matrix


def _rotation(angle: Tensor) -> Tensor:
    return _affine(angle.cos(), -angle.sin(), angle.sin(), angle.cos(), like=angle)


def matrices(a: Tensor, *, height: int, width: int) -> Tensor:
    """The matrix of each image, from points of the image to points of the augmented image.

    The product, in this order: to the centre, x-flip, y-flip, zoom, rotation by -a3, stretch along a4, shift, and back
    from the centre. x is measured by the width and y by the height, in the centring as in the shift, so that an image
    that is not square turns about its true centre and shifts by the same share of each side. (The published code reads
    Pillow's (width, height) into variables h, w: its centring is this one, its shift crosses the sides; for square
    images every reading agrees.)

    Args:
        a: float64 (N, 8) from `draw`.

    Returns:
        float64 (N, 3, 3).
    """
    a0, a1, a2, a3, a4, a5, a6, a7 = a.unbind(1)
    x, y = (width - 1) / 2, (height - 1) / 2
    flips = _affine(1 - 2 * a0, 0.0, 0.0, 1 - 2 * a1, like=a0)
    zoom = _affine(SCALE**a2, 0.0, 0.0, SCALE**a2, like=a0)
    stretch = _rotation(a4) @ _affine(SCALE**a5, 0.0, 0.0, SCALE**-a5, like=a0) @ _rotation(-a4)
    shift = _translation(TRANSLATION * width * a6, TRANSLATION * height * a7, like=a0)
    to_centre, from_centre = _translation(x, y, like=a0), _translation(-x, -y, like=a0)
    return to_centre @ flips @ zoom @ _rotation(-a3) @ stretch @ shift @ from_centre


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Moves every image by its matrix: the value of x at p comes to matrix @ p; Catmull-Rom, mirrored at the edges.

    Images whose matrix is the identity or a flip are copied, bit by bit.

    Args:
        x: float (N, C, H, W), H and W at least 2.
        matrix: float64 (N, 3, 3) on the CPU, affine, from points (x, y, 1) to points.

    Returns:
        float (N, C, H, W), a new tensor; may overshoot the range of x a little, as cubic interpolation does.
    """
    height, width = x.shape[2:]
    flip_x, flip_y = matrix[:, 0, 0] == -1, matrix[:, 1, 1] == -1
    lands = torch.stack([(width - 1) * flip_x, (height - 1) * flip_y], dim=1)  # where a flip puts the first pixel
    straight = (matrix[:, [0, 1], [1, 0]] == 0).all(1) & (matrix[:, [0, 1], [0, 1]].abs() == 1).all(1)
    copied = straight & (matrix[:, :2, 2] == lands).all(1)
    if x.device.type == "cpu" and x.dtype != torch.float64 and has_compiler():
        return _warp_compiled(x, matrix, copied)
    out = torch.empty_like(x)
    axes_of = {(False, False): [], (True, False): [3], (False, True): [2], (True, True): [2, 3]}
    for (right, down), axes in axes_of.items():
        for here in _pieces(copied & (flip_x == right) & (flip_y == down), like=x):
            rows = here.to(x.device, non_blocking=True)
            out.index_copy_(0, rows, x.index_select(0, rows).flip(axes))
    wide = torch.promote_types(x.dtype, torch.float32)  # places in bfloat16 would be off by whole pixels
    straight = is_straight(matrix)
    for kind in (~copied & straight, ~copied & ~straight):
        for here in _pieces(kind, like=x):
            rows = here.to(x.device, non_blocking=True)
            moved = resample(x.index_select(0, rows).to(wide), torch.linalg.inv(matrix[here]))
            out.index_copy_(0, rows, moved.to(x.dtype))
    return out


@lru_cache(maxsize=1)
def has_compiler() -> bool:
    """Whether numba is installed, which makes this several times as fast on a CPU."""
    return find_spec("numba") is not None


def _warp_compiled(x: Tensor, matrix: Tensor, copied: Tensor) -> Tensor:
    from hdit_cli.data.compiled_warp import COPIED, STRAIGHT, TURNED, warp_all

    kinds = torch.where(is_straight(matrix), STRAIGHT, TURNED).masked_fill_(copied, COPIED)
    out = torch.empty(x.shape, dtype=torch.float32)
    warp_all(x.detach().float().contiguous().numpy(), torch.linalg.inv(matrix).numpy(), kinds.numpy(), out.numpy())
    return out.to(x.dtype)


def _pieces(chosen: Tensor, *, like: Tensor) -> Iterable[Tensor]:
    """The numbers of the images chosen; on a CPU a few at a time, so that what they take in between stays in its caches."""
    numbers = chosen.nonzero()[:, 0]
    if not len(numbers):
        return ()
    return numbers.split(max(1, _PIXELS // like[0, 0].numel())) if like.device.type == "cpu" else (numbers,)


def augment(x0: Tensor, *, index: np.ndarray, seed: int, probability: float) -> tuple[Tensor, Tensor]:
    """Augmented images and what the network is told of it.

    Args:
        x0: float (N, C, H, W) in [-1, 1].
        index: int64 (N,), global image numbers in the run; the draws are a function of (seed, index) alone.
        probability: of each transform (the x-flip is a fair coin); 0 switches all of it off, the x-flip too.

    Returns:
        images like x0, and the condition (N, 9) of the same dtype and device, zeros where nothing happened.
    """
    if probability == 0:
        return x0, x0.new_zeros(len(x0), 9)
    a = draw(index, seed=seed, probability=probability)
    height, width = x0.shape[2:]
    return warp(x0, matrices(a, height=height, width=width)), condition(a).to(x0.dtype).to(x0.device, non_blocking=True)
