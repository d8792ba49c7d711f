"""The parts of Paella's network (Rampas et al. 2022, arXiv 2211.07292; its third version): time features and kinds of block.

Maps are (N, C, H, W), condition sequences (N, L, width); parameter names are those of the authors' published weights. Every
layer norm is over channels, without weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-6


def time_features(t: Tensor, width: int) -> Tensor:
    """[sin(10000 t f), cos(10000 t f)] with f_i = 10000^(-i / (width // 2 - 1)), and a zero where the width is odd.

    Args:
        t: (N,), share of noise in [0, 1].

    Returns:
        (N, width), of the type of t.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device).float() * (-math.log(10000) / (half - 1)))
    angle = (t * 10000)[:, None] * frequencies
    features = torch.cat([angle.sin(), angle.cos()], dim=1)
    return F.pad(features, (0, width % 2)).to(t.dtype)


class LayerNorm(nn.Module):
    """Over the channels of a map (N, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (self.width,), eps=_EPS).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """x (1 + gamma G / mean(G)) + beta with G the norm of a channel over the map (Woo et al. 2023, ConvNeXt V2).

    Maps are (N, H, W, C) here; gamma and beta are zero at the start.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + _EPS))) + self.beta + x


def perceptron(width: int, *, dropout: float) -> nn.Sequential:
    """Of each place of a map (N, H, W, width), four times as wide inside, normalised there over the map."""
    return nn.Sequential(
        nn.Linear(width, 4 * width),
        nn.GELU(),
        GlobalResponseNorm(4 * width),
        nn.Dropout(dropout),
        nn.Linear(4 * width, width),
    )


class ResBlock(nn.Module):
    """x + perceptron(norm(depthwise(x or [x; skip]))).

    The convolution has as many groups as x has channels, so with a skip each of its outputs sees two neighbouring channels
    of the stack: the first half of them x alone, the second half the skip alone.
    """

    def __init__(self, width: int, *, skip: bool, kernel: int, dropout: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(2 * width if skip else width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = LayerNorm(width)
        self.channelwise = perceptron(width, dropout=dropout)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.norm(self.depthwise(x if skip is None else torch.cat([x, skip], dim=1)))
        return x + self.channelwise(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeedForwardBlock(nn.Module):
    """x + perceptron(norm(x))."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.channelwise = perceptron(width, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.channelwise(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TimestepBlock(nn.Module):
    """x (1 + a) + b, both from the time features."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.mapper = nn.Linear(features, 2 * width)

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        a, b = self.mapper(r)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + a) + b


class Attention(nn.Module):
    """torch's multi-head attention under the name that the authors' weights have for it."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, dropout=dropout, bias=True, batch_first=True)

    def forward(self, query: Tensor, keys: Tensor, *, hidden: Tensor | None) -> Tensor:
        return self.attn(query, keys, keys, key_padding_mask=hidden, need_weights=False)[0]


class AttentionBlock(nn.Module):
    """x + attention of the map to the condition sequence and, where `self_attention`, to itself."""

    def __init__(self, width: int, condition: int, heads: int, *, self_attention: bool, dropout: float) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.norm = LayerNorm(width)
        self.attention = Attention(width, heads, dropout=dropout)
        self.kv_mapper = nn.Sequential(nn.SiLU(), nn.Linear(condition, width))

    def forward(self, x: Tensor, sequence: Tensor, hidden: Tensor | None = None) -> Tensor:
        """`hidden`: bool (N, L), true where a place of the sequence is padding."""
        keys = self.kv_mapper(sequence)
        query = self.norm(x).flatten(2).transpose(1, 2)
        if self.self_attention:
            keys = torch.cat([query, keys], dim=1)
            if hidden is not None:
                hidden = torch.cat([hidden.new_zeros(query.shape[:2]), hidden], dim=1)
        return x + self.attention(query, keys, hidden=hidden).transpose(1, 2).reshape(x.shape)
