"""The parts of a Diffusion Transformer (Peebles & Xie 2023, arXiv 2212.09748): embeddings, attention, the kinds of block.

Tokens are (N, T, width) in row-major order, condition vectors (N, width); parameter names are those of the authors' code.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from hdit_cli.models.conditions.classes import embedded
from hdit_cli.models.layers import exactly

_EPS = 1e-6  # of every layer norm
_TIME_FEATURES = 256


def position_table(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the integer positions of a grid: the column fills the first half of the channels, the row the second.

    Each half is [sin(p w_j), cos(p w_j)] with w_j = 10000^(-j / (width / 4)), computed in float64.

    Args:
        rows, columns: of the grid.
        width: channels, a multiple of 4.

    Returns:
        float32 (rows * columns, width), row-major.
    """
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def waves(count: int) -> Tensor:  # => (count, width / 2)
        angle = torch.arange(count, dtype=torch.float64)[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    down, across = waves(rows)[:, None].expand(-1, columns, -1), waves(columns)[None].expand(rows, -1, -1)
    return rearrange(torch.cat([across, down], dim=-1), "h w d -> (h w) d").float()


def time_features(t: Tensor) -> Tensor:
    """[cos(t f_j), sin(t f_j)] with f_j = 10000^(-j / 128), in float32 as the authors' weights were trained with.

    Args:
        t: (N,), timesteps, whole or not.

    Returns:
        float32 (N, 256).
    """
    half = _TIME_FEATURES // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000) / half))
    angle = t.float()[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, the same for every token."""
    return x * (1 + scale[:, None]) + shift[:, None]


class PatchEmbed(nn.Module):
    """A patch of pixels to a token."""

    def __init__(self, channels: int, width: int, *, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) => (N, T, width)
        return rearrange(self.proj(x), "n d h w -> n (h w) d")


class TimestepEmbedder(nn.Module):
    """Timestep to condition vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:  # (N,) => (N, width)
        with exactly(t):
            return self.mlp(time_features(t).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Class to condition vector; the last row means "no class"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        """A row of the table for int64 (N,), or for weights (N, classes + 1) the sum of rows by weight."""
        with exactly(label):
            return embedded(self.embedding_table.weight, label)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, width) => the same
        q, k, v = rearrange(self.qkv(x), "n t (three a d) -> three n a t d", three=3, a=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n a t d -> n t (a d)"))

    def macs(self, tokens: int) -> int:
        """Of the products between tokens alone."""
        return 2 * tokens**2 * self.proj.in_features


class CrossAttention(nn.Module):
    """Multi-head attention of the tokens to the condition vectors."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:  # (N, T, width), (N, K, width) => (N, T, width)
        q = rearrange(self.q(x), "n t (a d) -> n a t d", a=self.heads)
        k, v = rearrange(self.kv(conditions), "n t (two a d) -> two n a t d", two=2, a=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n a t d -> n t (a d)"))

    def macs(self, tokens: int, vectors: int) -> int:
        """Of all its products."""
        return (
            tokens * (weights_of(self.q) + weights_of(self.proj))
            + vectors * weights_of(self.kv)
            + 2 * tokens * vectors * self.proj.in_features
        )


class Mlp(nn.Module):
    """Two linears around a GELU in its tanh form."""

    def __init__(self, width: int, d_ff: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, d_ff)
        self.fc2 = nn.Linear(d_ff, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _modulation(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


class AdaptiveBlock(nn.Module):
    """Layer norms shifted and scaled by the condition; with `gates`, each branch is also gated by it (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, *, d_ff: int, gates: bool) -> None:
        super().__init__()
        self.gates = gates
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.mlp = Mlp(width, d_ff)
        self.adaLN_modulation = _modulation(width, 6 if gates else 4)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:  # (N, T, width), (N, K, width)
        vectors = self.adaLN_modulation(conditions.sum(dim=1))
        if not self.gates:
            shift_1, scale_1, shift_2, scale_2 = vectors.chunk(4, dim=-1)
            x = x + self.attn(modulate(self.norm1(x), shift_1, scale_1))
            return x + self.mlp(modulate(self.norm2(x), shift_2, scale_2))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors.chunk(6, dim=-1)
        x = x + gate_1[:, None] * self.attn(modulate(self.norm1(x), shift_1, scale_1))
        return x + gate_2[:, None] * self.mlp(modulate(self.norm2(x), shift_2, scale_2))

    def macs(self, tokens: int, vectors: int) -> int:
        per_token = weights_of(self.attn) + weights_of(self.mlp)
        return tokens * per_token + self.attn.macs(tokens) + weights_of(self.adaLN_modulation)


class PlainBlock(nn.Module):
    """A standard pre-norm block; with `cross`, the tokens attend to the condition vectors after they attended to each other."""

    def __init__(self, width: int, heads: int, *, d_ff: int, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        if cross:
            self.cross_attn = CrossAttention(width, heads)
            self.norm3 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, d_ff)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:  # (N, T, width), (N, K, width)
        x = x + self.attn(self.norm1(x))
        if not self.cross:
            return x + self.mlp(self.norm2(x))
        x = x + self.cross_attn(self.norm2(x), conditions)
        return x + self.mlp(self.norm3(x))

    def macs(self, tokens: int, vectors: int) -> int:
        total = tokens * (weights_of(self.attn) + weights_of(self.mlp)) + self.attn.macs(tokens)
        return total + (self.cross_attn.macs(tokens, vectors) if self.cross else 0)


class FinalLayer(nn.Module):
    """Norm, adaptive where the blocks are, and the linear to patches; zero at the start, so that a new network returns zeros."""

    def __init__(self, width: int, outputs: int, *, adaptive: bool) -> None:
        super().__init__()
        self.adaptive = adaptive
        self.norm_final = nn.LayerNorm(width, elementwise_affine=not adaptive, eps=_EPS)
        self.linear = nn.Linear(width, outputs)
        if adaptive:
            self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        x = self.norm_final(x)
        if self.adaptive:
            shift, scale = self.adaLN_modulation(conditions.sum(dim=1)).chunk(2, dim=-1)
            x = modulate(x, shift, scale)
        return self.linear(x)


def weights_of(module: nn.Module) -> int:
    """Entries of its matrices: multiply-accumulates for each token."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)
