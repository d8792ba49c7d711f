"""The parts of Paella's network (Rampas et al. 2022, arXiv 2211.07292; its third version): time features and kinds of block.

Maps are (N, C, H, W), condition sequences (N, L, width); parameter names are those of the authors' published weights. Every
layer norm is over channels, without weights.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from hdit_cli.models.layers import Dropout

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
        Dropout(dropout),
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
    """x (1 + a) + b, both from the time features and, where `condition`, from a condition vector of that width beside them."""

    def __init__(self, width: int, features: int, *, condition: int = 0) -> None:
        super().__init__()
        self.mapper = nn.Linear(features, 2 * width)
        if condition:  # with `mapper` one linear of [r; condition], whose parts bear names of their own
            self.condition_mapper = nn.Linear(condition, 2 * width, bias=False)

    def forward(self, x: Tensor, r: Tensor, condition: Tensor | None = None) -> Tensor:
        both = self.mapper(r)
        if condition is not None:
            both = both + self.condition_mapper(condition)
        a, b = both[:, :, None, None].chunk(2, dim=1)
        return x * (1 + a) + b


class Heads(nn.Module):
    """Multi-head attention with torch's names of its weights; which of its weights drop out is a function of the image's key."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, keys: Tensor, *, hidden: Tensor | None) -> Tensor:
        """(N, Q, width) and (N, S, width) to (N, Q, width); keys where `hidden` (N, S) is true are not seen."""
        c = self.width
        q = F.linear(query, self.in_proj_weight[:c], self.in_proj_bias[:c])
        k, v = F.linear(keys, self.in_proj_weight[c:], self.in_proj_bias[c:]).chunk(2, dim=-1)
        q, k, v = (rearrange(each, "n l (a d) -> n a l d", a=self.heads) for each in (q, k, v))
        mask = None if hidden is None else ~hidden[:, None, None]
        if self.training and self.dropout.p:
            scores = q @ k.mT * (c // self.heads) ** -0.5
            scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
            out = self.dropout(scores.softmax(dim=-1)) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(rearrange(out, "n a l d -> n l (a d)"))


class Attention(nn.Module):
    """The heads under the name that the authors' weights have for them."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.attn = Heads(width, heads, dropout=dropout)

    def forward(self, query: Tensor, keys: Tensor, *, hidden: Tensor | None) -> Tensor:
        return self.attn(query, keys, hidden=hidden)


class AttentionBlock(nn.Module):
    """x + attention of the map to the condition sequence and, where `self_attention`, to itself."""

    def __init__(self, width: int, condition: int, heads: int, *, self_attention: bool, dropout: float) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.norm = LayerNorm(width)
        self.attention = Attention(width, heads, dropout=dropout)
        self.kv_mapper = nn.Sequential(nn.SiLU(), nn.Linear(condition, width))

    def forward(self, x: Tensor, sequence: Tensor, hidden: Tensor | None = None) -> Tensor:
        """`hidden`: bool (N, L), true where a place of the sequence is padding. An image that sees no key stays as it is."""
        if not self.self_attention and not sequence.shape[1]:
            return x
        keys = self.kv_mapper(sequence)
        query = self.norm(x).flatten(2).transpose(1, 2)
        blind = None
        if self.self_attention:
            keys = torch.cat([query, keys], dim=1)
            if hidden is not None:
                hidden = torch.cat([hidden.new_zeros(query.shape[:2]), hidden], dim=1)
        elif hidden is not None:
            blind = hidden.all(dim=1, keepdim=True)  # (N, 1)
            hidden = hidden & ~blind
        y = self.attention(query, keys, hidden=hidden)
        if blind is not None:
            y = torch.where(blind[:, :, None], 0.0, y)
        return x + y.transpose(1, 2).reshape(x.shape)
