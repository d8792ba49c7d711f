"""Layers the architectures share. Maps are (N, H, W, C), condition vectors (N, C); no layer has a bias.

Each layer that multiplies knows its multiply-accumulates: `macs` counts linears as tokens * in * out and attention as
heads * queries * keys * 2 * head_dim, and nothing for norms, rotations and softmax.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from hdit_cli.models.fused import by_hand, scaled_rms_norm


class Linear(nn.Linear):
    """Bias-free linear layer of the kind that weight decay applies to."""

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False) -> None:
        super().__init__(inputs, outputs, bias=False)
        if zero:
            nn.init.zeros_(self.weight)

    def add_to(self, x: Tensor, y: Tensor) -> Tensor:
        """x + self(y)."""
        if not by_hand(y):
            return x + self(y)
        width = self.out_features  # in one product
        return torch.addmm(x.reshape(-1, width), y.reshape(-1, self.in_features), self.weight.mT).view(x.shape)

    def macs(self, tokens: int) -> int:
        return tokens * self.in_features * self.out_features


def rms_norm(x: Tensor, scale: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, the mean taken in float32 at least (Zhang & Sennrich 2019)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    mean_square = x.to(wide).square().mean(dim=-1, keepdim=True)
    return x * (scale.to(wide) * torch.rsqrt(mean_square + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS normalisation with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class AdaRMSNorm(nn.Module):
    """RMS normalisation of a map whose scale is 1 + a linear of the condition, zero at the start (HDiT, appendix E)."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.linear = Linear(condition_width, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale = self.linear(condition) + 1
        if by_hand(x):
            return scaled_rms_norm(x, scale, eps=1e-6)
        return rms_norm(x, scale[:, None, None])


def exactly(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, autocast is off where x is: conditions tell levels apart that bfloat16, of 8 bits, would round to one.

    A vector for each image costs nothing beside its maps, so it is computed in the weights' own dtype in training too.
    """
    for kind in (x.device.type, "cpu"):  # the second where x only says that it is elsewhere, as memory is estimated
        if torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)
    return nullcontext()


class FourierFeatures(nn.Module):
    """Random Fourier features [cos(2 pi x W^T), sin(2 pi x W^T)] with fixed W ~ N(0, 1) (Tancik et al. 2020).

    Computed in float32 at least, given back in the dtype of W.
    """

    weight: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(outputs // 2, inputs))

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs) => (N, outputs)
        wide = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        x, weight = 2 * math.pi * x.to(wide), self.weight.to(wide).mT
        angle = (
            x * weight if len(weight) == 1 else x @ weight
        )  # TF32, of 11 bits, rounds what is multiplied as matrices
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.weight.dtype)


class GEGLU(Linear):
    """Linear whose first half of outputs is gated by the GELU of the second (Shazeer 2020), exact erf GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs * 2)

    def forward(self, x: Tensor) -> Tensor:
        if by_hand(x):  # each in one piece: the GELU of a CPU is several times slower on slices
            value, gate = (F.linear(x, weight) for weight in self.weight.chunk(2))
            return value * F.gelu(gate) if value.requires_grad else value.mul_(torch.ops.aten.gelu_(gate))
        value, gate = super().forward(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Dropout(nn.Module):
    """Zeroes a share of the values; which ones is a function of the image's key, the module and the place in the image.

    So the mask of an image is the same in any batch, on any number of processes, and when a layer is computed again.
    """

    keys: Tensor | None = None  # int32 (N,), one for each image, set by `seed_dropout`; None: torch's own generator
    number = 0  # tells the modules of a network apart

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) => (N, ...)
        if not self.training or not self.p:
            return x
        if self.keys is None:
            return F.dropout(x, self.p)
        places = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device)
        keys = _mix(self.keys + self.number * _ODD)
        bits = _mix(places * _ODD + keys[:, None]).view(x.shape)
        kept = bits.bitwise_and_(0x7FFFFFFF) >= int(self.p * 2**31)
        return x * kept.to(x.dtype).div_(1 - self.p)


_ODD = 0x9E3779B9 - 2**32  # the golden ratio; products wrap around


def _mix(x: Tensor) -> Tensor:
    """Two rounds of xor-shift and multiply on int32, bijective; x itself is changed."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << 32 - shift) - 1))
        if factor != 1:
            x.mul_(factor)
    return x


def seed_dropout(network: nn.Module, keys: Tensor | None) -> None:
    """Gives every `Dropout` of a network the keys of the next batch: int32 (N,), on its device."""
    for number, module in enumerate(m for m in network.modules() if isinstance(m, Dropout)):
        module.keys, module.number = keys, number


class FeedForward(nn.Module):
    """x + down(GEGLU(norm(x))) on maps, with a norm that a condition scales."""

    def __init__(self, width: int, d_ff: int, *, dropout: float, condition_width: int) -> None:
        super().__init__()
        self.norm = AdaRMSNorm(width, condition_width)
        self.up_proj = GEGLU(width, d_ff)
        self.dropout = Dropout(dropout)
        self.down_proj = Linear(d_ff, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.down_proj.add_to(x, self.dropout(self.up_proj(self.norm(x, condition))))

    def macs(self, height: int, width: int) -> int:
        return self.up_proj.macs(height * width) + self.down_proj.macs(height * width)


class MappingBlock(nn.Module):
    """x + down(GEGLU(norm(x))) on condition vectors."""

    def __init__(self, width: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.up_proj = GEGLU(width, d_ff)
        self.dropout = Dropout(dropout)
        self.down_proj = Linear(d_ff, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(self.dropout(self.up_proj(self.norm(x))))


class Mapping(nn.Module):
    """The network that turns the sum of the embedded conditions into the condition vector of every norm."""

    def __init__(self, width: int, *, depth: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.in_norm = RMSNorm(width)
        self.blocks = nn.ModuleList(MappingBlock(width, d_ff, dropout) for _ in range(depth))
        self.out_norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.out_norm(x)


# Positions and their rotations


def axial_positions(height: int, width: int, *, like: Tensor) -> Tensor:
    """(y, x) of the centres of a height x width grid; the longer side spans [-1, 1], the shorter its share. (H, W, 2)."""
    longer = max(height, width)
    y, x = (
        (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) * (2 / longer) - n / longer
        for n in (height, width)
    )
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


def coarser_positions(positions: Tensor) -> Tensor:
    """Means of 2 x 2 neighbours: (H, W, 2) to (H/2, W/2, 2)."""
    return rearrange(positions, "(h a) (w b) e -> h w (a b) e", a=2, b=2).mean(dim=-2)


class AxialRoPE(nn.Module):
    """Rotates half the channels of each head by angles linear in y and x (Su et al. 2021, in two axes as HDiT section 4.2).

    The frequencies run from pi (included) to 10 pi (excluded), evenly in their logarithm, dealt out over the heads.
    """

    freqs: Tensor

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        steps = torch.linspace(math.log(math.pi), math.log(10 * math.pi), heads * head_dim // 8 + 1)[:-1]
        self.register_buffer("freqs", rearrange(steps.exp(), "(f heads) -> heads f", heads=heads).contiguous())

    def angles(self, positions: Tensor) -> Tensor:  # (H, W, 2) => (H, W, heads, head_dim / 4)
        freqs = self.freqs.to(positions.dtype)
        y, x = positions[..., 0, None, None] * freqs, positions[..., 1, None, None] * freqs
        return torch.cat([y, x], dim=-1)

    def turns(self, positions: Tensor) -> Tensor:
        """exp(i angles), complex; rows share their y and columns their x, so that sines are few."""
        freqs = self.freqs.to(positions.dtype)
        y, x = positions[:, :1, 0, None, None] * freqs, positions[:1, :, 1, None, None] * freqs
        y, x = (torch.polar(torch.ones_like(angle), angle) for angle in (y, x))  # (H, 1, ...) and (1, W, ...)
        size = (*positions.shape[:2], *freqs.shape)
        return torch.cat([y.expand(size), x.expand(size)], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the channel pairs (i, i + quarter) of (N, H, W, heads, d) by angles (H, W, heads, d / 4)."""
    quarter = cos.shape[-1]
    a, b, rest = x.split([quarter, quarter, x.shape[-1] - 2 * quarter], dim=-1)
    wide_a, wide_b = a.to(cos.dtype), b.to(cos.dtype)
    first, second = wide_a * cos - wide_b * sin, wide_b * cos + wide_a * sin
    return torch.cat([first.to(x.dtype), second.to(x.dtype), rest], dim=-1)


def cosine_scale(x: Tensor, scale: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x * sqrt(scale) / sqrt(sum(x^2) + eps) over the last axis, so that q.k becomes scale * cos (Henry et al. 2020)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    sum_square = x.to(wide).square().sum(dim=-1, keepdim=True)
    return x * (scale.to(wide).sqrt()[:, None] * torch.rsqrt(sum_square + eps)).to(x.dtype)


# Patches: features are ordered (row, column, channel), the channel fastest


class Merge(nn.Module):
    """Joins each patch of tokens into one: (N, H, W, C) to (N, H/ph, W/pw, C')."""

    def __init__(self, inputs: int, outputs: int, *, patch: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.proj = Linear(inputs * math.prod(self.patch), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(rearrange(x, "n (h a) (w b) c -> n h w (a b c)", a=self.patch[0], b=self.patch[1]))


class Unpatch(nn.Module):
    """Splits each token into a patch; zero at the start, so that a new network returns zeros."""

    def __init__(self, inputs: int, outputs: int, *, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.proj = Linear(inputs, outputs * math.prod(self.patch), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "n h w (a b c) -> n (h a) (w b) c", a=self.patch[0], b=self.patch[1])


class Split(nn.Module):
    """Splits each token into 2 x 2 and mixes them with the skip: lerp(skip, x, fac), fac learned from 0.5 (HDiT eq. 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = Linear(inputs, outputs * 4)
        self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = rearrange(self.proj(x), "n h w (a b c) -> n (h a) (w b) c", a=2, b=2)
        return torch.lerp(skip, x, self.fac.to(x.dtype))
