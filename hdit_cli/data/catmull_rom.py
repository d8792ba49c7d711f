"""Images read between their pixels: Catmull-Rom interpolation of the mirrored image, cubic convolution with a = -1/2
(Keys 1981, "Cubic convolution interpolation for digital image processing").

Torch has no such kernel (its bicubic mode has a = -3/4, which is sharper), so it is put together from what torch does fast.
On a CPU that is `embedding_bag`, a sum of weighted table rows with the weights of each sum its own; elsewhere
`grid_sample`. Between pixels k and k + 1 the pixels k - 1 to k + 2 count. Mirrored is about the centres of edge pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, grid_sample, pad

# the weights of pixels k - 1, k, k + 1, k + 2 (columns) as polynomials in t, the place between k and k + 1 (rows: 1, t, t^2, t^3)
_WEIGHTS = ((0.0, 1.0, 0.0, 0.0), (-0.5, 0.0, 0.5, 0.0), (1.0, -2.5, 2.0, -0.5), (-0.5, 1.5, -1.5, 0.5))


def resample(x: Tensor, inverse: Tensor) -> Tensor:
    """Each image read at inverse @ (column, row, 1).

    Args:
        x: float32 or float64 (N, C, H, W), H and W at least 2.
        inverse: float64 (N, 3, 3), on the CPU.

    Returns:
        like x.
    """
    if x.device.type != "cpu":
        return _by_grid(x, inverse)
    is_straight = (inverse[:, [0, 1], [1, 0]] == 0).all(1).tolist()
    return torch.stack([_straight(*pair) if easy else _anywhere(*pair) for easy, *pair in zip(is_straight, x, inverse)])


# On a CPU, one image at a time


def _straight(x: Tensor, inverse: Tensor) -> Tensor:
    """(C, H, W) by a matrix that keeps rows rows and columns columns: one axis after the other."""
    return _down(_down(x, inverse[1, 1], inverse[1, 2]).mT, inverse[0, 0], inverse[0, 2]).mT


def _down(x: Tensor, step: Tensor, start: Tensor) -> Tensor:
    """(C, H, W) read down its columns at start + step * row: each new row is a sum of four old ones."""
    channels, height, width = x.shape
    pixel, t = _place(start + step * torch.arange(height, dtype=torch.float64)[:, None], x.new_zeros(1).double(), height)
    # at the upper and the lower edge the row that is not there is its mirror image
    rows = (pixel.int() + torch.arange(-1, 3, dtype=torch.int32)).abs_()
    rows = torch.minimum(rows, 2 * (height - 1) - rows)
    rows = rows + height * torch.arange(channels, dtype=torch.int32)[:, None, None]  # (C, H, 4)
    weights = _weights(t.to(x.dtype)).repeat(channels, 1)
    new = embedding_bag(rows.view(-1, 4), x.reshape(-1, width), mode="sum", per_sample_weights=weights)
    return new.view(channels, height, width)


def _anywhere(x: Tensor, inverse: Tensor) -> Tensor:
    """(C, H, W) by any matrix: four pixels side by side are one row of a table, and of four such rows is taken the sum."""
    channels, height, width = x.shape
    row, column = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    x0, tx = _place((inverse[0, 1] * row + inverse[0, 2])[:, None], inverse[0, 0] * column, width)
    y0, ty = _place((inverse[1, 1] * row + inverse[1, 2])[:, None], inverse[1, 0] * column, height)
    pixels = pad(x, (1, 1, 1, 1), mode="reflect").permute(1, 2, 0).reshape(height + 2, -1)  # CHW => H, W C
    table = pixels.unfold(1, 4 * channels, channels).reshape(-1, 4 * channels)  # (H + 2) (W - 1) rows
    first = x0.int().add_(y0.int(), alpha=width - 1).view(-1, 1)
    rows = first + torch.arange(0, 4 * (width - 1), width - 1, dtype=torch.int32)  # (H W, 4)
    sums = embedding_bag(rows, table, mode="sum", per_sample_weights=_weights(ty.to(x.dtype)))
    each = torch.arange(rows.numel(), dtype=torch.int32).view(-1, 4)
    new = embedding_bag(each, sums.view(-1, channels), mode="sum", per_sample_weights=_weights(tx.to(x.dtype)))
    return new.T.reshape(channels, height, width)


def _place(down: Tensor, along: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where down + along falls in the mirrored image.

    Args:
        down: float64 (H, 1).
        along: float64 (W,).
        side: pixels of the image along this axis.

    Returns:
        pixel k in [0, side - 2] and place t in [0, 1] between it and the next, both float32 (H, W). Whole pixels and
        fractions are added apart: the sum of both has no room for the fraction in 24 bits.
    """
    t = (down - down.floor()).float() + (along - along.floor()).float()
    pixel = t.floor()
    t -= pixel
    pixel += down.floor().float()
    pixel += along.floor().float()
    period = 2 * (side - 1)
    pixel.sub_(((pixel + 0.5) / period).floor_(), alpha=period)
    mirrored = (period - 1) - pixel
    t = (t - (mirrored < pixel).float()).abs_()  # there 1 - t
    return torch.minimum(pixel, mirrored), t


def _weights(t: Tensor) -> Tensor:
    """(..., ) places => (numel, 4) weights of the four pixels around."""
    powers = t.new_empty(4, t.numel())
    powers[0] = 1
    powers[1] = t.reshape(-1)
    torch.mul(powers[1], powers[1], out=powers[2])
    torch.mul(powers[2], powers[1], out=powers[3])
    return powers.T @ t.new_tensor(_WEIGHTS)


# On an accelerator, all images at once


def _by_grid(x: Tensor, inverse: Tensor) -> Tensor:
    """As `resample`. Between pixels 0 and 1 the interpolation is (1 - t) p0 + t p1 - q ((1 - t) d0 + t d1), with
    q = t (1 - t) / 2 and d the second difference: linear interpolation of p minus q times that of d. Along both axes it
    is four bilinear interpolations, of x and of its second differences, which torch does in one call.
    """
    _, channels, height, width = x.shape
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    m = inverse.to(x.device, exact)
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
