"""Images read between their pixels: Catmull-Rom interpolation of the mirrored image, cubic convolution with a = -1/2
(Keys 1981, "Cubic convolution interpolation for digital image processing").

Torch has no such kernel (its bicubic mode has a = -3/4, which is sharper), so it is put together from what torch does fast.
On a CPU that is `embedding_bag`, a sum of weighted table rows with the weights of each sum its own; elsewhere
`grid_sample`. Between pixels k and k + 1 the pixels k - 1 to k + 2 count. Mirrored is about the centres of edge pixels.
"""

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import embedding_bag, grid_sample, pad

# the weights of pixels k - 1, k, k + 1, k + 2 (columns) as polynomials in t, the place between k and k + 1 (rows: 1, t, t^2, t^3)
_WEIGHTS = ((0.0, 1.0, 0.0, 0.0), (-0.5, 0.0, 0.5, 0.0), (1.0, -2.5, 2.0, -0.5), (-0.5, 1.5, -1.5, 0.5))


def resample(x: Tensor, inverse: Tensor) -> Tensor:
    """Each image read at inverse @ (column, row, 1). On a CPU it is fastest for images of one kind, as `is_straight` has it.

    Args:
        x: float32 or float64 (N, C, H, W), H and W at least 2.
        inverse: float64 (N, 3, 3), on the CPU.

    Returns:
        like x.
    """
    if x.device.type != "cpu":
        return _by_grid(x, inverse)
    return _straight(x, inverse) if is_straight(inverse).all() else _anywhere(x, inverse)


def is_straight(matrix: Tensor) -> Tensor:
    """Which of (N, 3, 3) matrices keep rows rows and columns columns, which is several times as fast: bool (N,)."""
    return (matrix[:, [0, 1], [1, 0]] == 0).all(1)


# On a CPU


def _straight(x: Tensor, inverse: Tensor) -> Tensor:
    """As `resample`, where rows stay rows and columns columns: one axis after the other."""
    return _down(_down(x, inverse[:, 1, 1], inverse[:, 1, 2]).mT, inverse[:, 0, 0], inverse[:, 0, 2]).mT


def _down(x: Tensor, step: Tensor, start: Tensor) -> Tensor:
    """(N, C, H, W) read down its columns at start + step * row: each new row is a sum of four old ones."""
    images, channels, height, width = x.shape
    at = start[:, None, None] + step[:, None, None] * torch.arange(height, dtype=torch.float64)[:, None]
    pixel, t = _place(at, at.new_zeros(1, 1, 1), height)  # (N, H, 1)
    rows = (pixel.int() + torch.arange(-1, 3, dtype=torch.int32)).abs_()
    rows = torch.minimum(rows, 2 * (height - 1) - rows)[:, None]  # beyond an edge: the mirror image
    first = torch.arange(0, images * channels * height, height, dtype=torch.int32).view(images, channels, 1, 1)
    weights = _weights(t.to(x.dtype)).view(images, 1, height, 4).expand(-1, channels, -1, -1)
    new = embedding_bag(
        (first + rows).view(-1, 4), x.reshape(-1, width), mode="sum", per_sample_weights=weights.reshape(-1, 4)
    )
    return new.view(x.shape)


def _anywhere(x: Tensor, inverse: Tensor) -> Tensor:
    """As `resample`: four pixels side by side are one row of a table, and each new pixel comes of four such rows."""
    images, channels, height, width = x.shape
    row, column = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    (xx, xy, x1), (yx, yy, y1) = (inverse[:, axis, :, None, None].unbind(1) for axis in (0, 1))
    x0, tx = _place(xy * row + x1, xx * column, width)  # (N, H, W)
    y0, ty = _place(yy * row + y1, yx * column, height)
    pixels = rearrange(pad(x, (1, 1, 1, 1), mode="reflect"), "n c h w -> (n h) (w c)")
    table = pixels.unfold(1, 4 * channels, channels).reshape(-1, 4 * channels)  # N (H + 2) (W - 1) rows
    image = torch.arange(0, len(table), (height + 2) * (width - 1), dtype=torch.int32).view(-1, 1, 1)
    first = x0.int().add_(y0.int(), alpha=width - 1).add_(image).view(-1, 1)
    rows = first + torch.arange(0, 4 * (width - 1), width - 1, dtype=torch.int32)  # (N H W, 4)
    sums = embedding_bag(rows, table, mode="sum", per_sample_weights=_weights(ty.to(x.dtype)))
    new = embedding_bag(
        _fours(len(rows)), sums.view(-1, channels), mode="sum", per_sample_weights=_weights(tx.to(x.dtype))
    )
    return rearrange(new, "(n h w) c -> n c h w", n=images, h=height)


@lru_cache(maxsize=2)
def _fours(count: int) -> Tensor:
    """int32 (count, 4): 0 1 2 3, 4 5 6 7, ..."""
    return torch.arange(4 * count, dtype=torch.int32).view(-1, 4)


def _place(down: Tensor, along: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where down + along falls in the mirrored image.

    Args:
        down: float64 (N, H, 1).
        along: float64 (N, 1, W).
        side: pixels of the image along this axis.

    Returns:
        pixel k in [0, side - 2] and place t in [0, 1] between it and the next, both float32 (N, H, W). Whole pixels and
        fractions are added apart: a sum of both would leave the fraction few of its 24 bits.
    """
    whole_down, whole_along = down.floor(), along.floor()
    t = (down - whole_down).float() + (along - whole_along).float()
    pixel = t.floor()
    t -= pixel
    pixel += whole_down.float()
    pixel += whole_along.float()
    period = 2 * (side - 1)
    pixel.sub_(((pixel + 0.5) / period).floor_(), alpha=period)
    mirrored = (period - 1) - pixel
    t = (t - (mirrored < pixel).float()).abs_()  # in a mirrored part 1 - t
    return torch.minimum(pixel, mirrored), t


def _weights(t: Tensor) -> Tensor:
    """Places t => (numel, 4) weights of the four pixels around."""
    powers = t.new_empty(4, t.numel())
    powers[0] = 1
    powers[1] = t.reshape(-1)
    torch.mul(powers[1], powers[1], out=powers[2])
    torch.mul(powers[2], powers[1], out=powers[3])
    return powers.T @ t.new_tensor(_WEIGHTS)


# On an accelerator


def _by_grid(x: Tensor, inverse: Tensor) -> Tensor:
    """As `resample`. Between pixels 0 and 1 the interpolation is (1 - t) p0 + t p1 - q ((1 - t) d0 + t d1), with
    q = t (1 - t) / 2 and d the second difference: linear interpolation of p minus q times that of d. Along both axes it
    is four bilinear interpolations, of x and of its second differences, which torch does in one call.
    """
    _, channels, height, width = x.shape
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    m = inverse.to(x.device, exact, non_blocking=True)
    row, column = (torch.arange(side, device=x.device, dtype=exact) for side in (height, width))
    grid, bend = [], []
    for i, side in enumerate((width, height)):
        at = m[:, i, 0, None, None] * column + m[:, i, 1, None, None] * row[:, None] + m[:, i, 2, None, None]
        t = at - at.floor()
        bend.append((t * (1 - t) / 2).to(x.dtype)[:, None])  # (N, 1, H, W)
        grid.append((at * (2 / (side - 1)) - 1).to(x.dtype))
    bent_x, bent_y = _bend(x), _bend(x.mT).mT
    maps = torch.cat([x, bent_x, bent_y, _bend(bent_y)], dim=1)
    seen = grid_sample(maps, torch.stack(grid, -1), mode="bilinear", padding_mode="reflection", align_corners=True)
    plain, along_x, along_y, along_both = seen.split(channels, dim=1)
    return plain - bend[0] * (along_x - bend[1] * along_both) - bend[1] * along_y


def _bend(x: Tensor) -> Tensor:
    """Second difference along the last axis, the image being mirrored about the centres of its edge pixels."""
    wide = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=-1)
    return wide[..., 2:] - 2 * x + wide[..., :-2]
