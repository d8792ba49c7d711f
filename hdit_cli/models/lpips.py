"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how different two pictures look, by the features of VGG16 (arXiv 1409.1556).

The features of five layers are scaled to length one at every place; their squared differences are weighted by a
non-negative number for each channel (the heads, fitted to what people said), and averaged over the picture. Without heads
every channel counts as one: the paper's baseline of VGG16 alone. Version 0.1, in which the input is shifted and scaled.

Parameter names are torchvision's for VGG16 (`features.N.weight`), and `lin0.weight` to `lin4.weight` for the heads. The
weights are never trained here; the distance is differentiable in both pictures.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

# of VGG16: the widths of its convolutions between the poolings; a tap is the last map before a pooling
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LEAST_SIDE = 16  # pixels: the last tap then has one place
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # from [-1, 1] to what VGG16 was trained on
_EPS = 1e-10  # added to a length before it is divided by


class Head(nn.Module):
    """A weight for each channel of a tap: a 1 x 1 convolution to one channel, without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, means: Tensor) -> Tensor:  # (N, C) => (N,)
        return (means * self.weight.flatten()).sum(1)


class LPIPS(nn.Module):
    """The distance of pictures: 0 for equal ones; larger, the more different they look.

    Args:
        heads: whether channels have weights of their own; else each counts as one.

    Attributes:
        file, sha256: where the weights come from, told by who loads them.
    """

    shift: Tensor  # (3, 1, 1), as scale
    scale: Tensor

    def __init__(self, *, heads: bool = True) -> None:
        super().__init__()
        layers, taps, inputs = [], [], 3
        for widths in WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
            taps.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])  # nothing is taken after the last tap
        self.heads, self._taps = heads, tuple(taps)
        if heads:
            for number, widths in enumerate(WIDTHS):
                self.add_module(f"lin{number}", Head(widths[-1]))
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.file = self.sha256 = ""
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays as it is: it has nothing that differs in training, and no weight learns."""
        return super().train(False)

    @staticmethod
    def fits(shape: Sequence[int]) -> str:
        """Why pictures of (height, width) cannot be compared; "" where they can."""
        height, width = shape
        if min(height, width) >= LEAST_SIDE:
            return ""
        return f"LPIPS compares pictures of {LEAST_SIDE} pixels a side or more, and these are {height}x{width}"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of pictures, (N, 3, H, W) in [-1, 1] each => (N,), in float32 or what is more exact.

        Raises:
            ValueError: other shapes, or pictures that are too small.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"LPIPS compares (N, 3, H, W) with the same, not {tuple(x.shape)} with {tuple(y.shape)}")
        if problem := self.fits(x.shape[2:]):
            raise ValueError(problem)
        distance = x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
        for number, (one, other) in enumerate(zip(self.taps(x), self.taps(y), strict=True)):
            means = (_to_length_one(one) - _to_length_one(other)).square().mean((2, 3))  # (N, C)
            distance = distance + (self.get_submodule(f"lin{number}")(means) if self.heads else means.sum(1))
        return distance

    def taps(self, x: Tensor) -> list[Tensor]:
        """The five maps of pictures, (N, C, H / 2^i, W / 2^i), rounded down; after the ReLU."""
        x, found = (x - self.shift) / self.scale, []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self._taps:
                found.append(x)
        return found

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for the features of one picture; a distance takes those of two."""
        total = 0
        for number, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                halvings = sum(tap < number for tap in self._taps)
                total += (height >> halvings) * (width >> halvings) * layer.weight.numel()
        return total


def _to_length_one(x: Tensor) -> Tensor:
    """Every place's channels over their length. Where all are 0, so is the gradient: a root's own would be infinite."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)
