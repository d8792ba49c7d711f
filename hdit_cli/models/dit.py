"""Diffusion Transformer (Peebles & Xie, ICCV 2023, https://arxiv.org/abs/2212.09748): a plain transformer over patches.

Works on pixels or on latents: only the number of channels tells them apart. Images are (N, C, H, W), tokens (N, T, width) in
row-major order, condition vectors (N, width). Parameter names are those of the authors' code, so that their state dicts load as
they are. Four kinds of block say how the timestep and the class reach the tokens (section 3.2): "adaln-zero", "adaln",
"in-context" and "cross-attention". The authors published code for the first alone; the others are built so that the paper's counts
of parameters and operations come out.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hdit_cli.models.conditions import Condition
from hdit_cli.models.conditions.classes import Classes, embedded, label_or_none
from hdit_cli.models.network import Neighbourhood, Role

Block = Literal["adaln-zero", "adaln", "in-context", "cross-attention"]
BLOCKS: tuple[Block, ...] = ("adaln-zero", "adaln", "in-context", "cross-attention")

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
        return self.mlp(time_features(t).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Class to condition vector; the last row means "no class"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        """A row of the table for int64 (N,), or for weights (N, classes + 1) the sum of rows by weight."""
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
            tokens * (_weights(self.q) + _weights(self.proj))
            + vectors * _weights(self.kv)
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
        per_token = _weights(self.attn) + _weights(self.mlp)
        return tokens * per_token + self.attn.macs(tokens) + _weights(self.adaLN_modulation)


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
        total = tokens * (_weights(self.attn) + _weights(self.mlp)) + self.attn.macs(tokens)
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


class DiT(nn.Module):
    """The bare network: predicts from a noisy image and its timestep; returns exactly 0 when new.

    Args:
        size: (height, width) of the image or latent; another one that the patch divides gets a table of its own positions.
        patch: side of a token's patch; divides both sides.
        depth: number of blocks.
        width: channels of a token, a multiple of 4 and of `heads`.
        heads: of attention.
        channels: of the image or latent.
        classes: number of classes; 0 for an unconditional network.
        block: how conditions reach the tokens.
        mlp_ratio: width of the feed-forward layers over `width`.
        learn_variance: twice the output channels: the second half says where the variance lies in its range.
        checkpoint: training keeps the input of each block alone and computes the rest again (Chen et al. 2016).

    Raises:
        ValueError: sizes that do not divide, or an unknown block.
    """

    told: ClassVar[str] = "timestep"

    def __init__(
        self,
        *,
        size: tuple[int, int],
        patch: int,
        depth: int,
        width: int,
        heads: int,
        channels: int = 4,
        classes: int = 1000,
        block: Block = "adaln-zero",
        mlp_ratio: float = 4.0,
        learn_variance: bool = True,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise ValueError(f"unknown block {block!r}: one of {', '.join(BLOCKS)}")
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"patches of {patch} do not divide {size[0]} x {size[1]}")
        if width % 4 or width % heads:
            raise ValueError(f"width {width} is not a multiple of 4 and of {heads} heads")
        self.size, self.patch, self.channels, self.classes, self.block = tuple(size), patch, channels, classes, block
        self.checkpoint = checkpoint
        self.grid = (size[0] // patch, size[1] // patch)
        self.out_channels = channels * (2 if learn_variance else 1)
        d_ff, adaptive = int(width * mlp_ratio), block in ("adaln-zero", "adaln")
        self.x_embedder = PatchEmbed(channels, width, patch=patch)
        self.t_embedder = TimestepEmbedder(width)
        if classes:
            self.y_embedder = LabelEmbedder(classes, width)
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), width), requires_grad=False)
        self.blocks = nn.ModuleList(
            AdaptiveBlock(width, heads, d_ff=d_ff, gates=block == "adaln-zero")
            if adaptive
            else PlainBlock(width, heads, d_ff=d_ff, cross=block == "cross-attention")
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, patch * patch * self.out_channels, adaptive=adaptive)
        self._initialise()

    def _initialise(self) -> None:
        """As the authors: Xavier for linears and patches, small normal embeddings, zeros where "Zero" says so."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(_given(self.x_embedder.proj.bias))
        if self.classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for weight in (p for p in self.t_embedder.parameters() if p.ndim > 1):
            nn.init.normal_(weight, std=0.02)
        zero = [*self.final_layer.linear.parameters()]
        if self.block == "adaln-zero":
            modulations: list[Any] = [part.adaLN_modulation for part in (*self.blocks, self.final_layer)]
            zero += [parameter for modulation in modulations for parameter in modulation.parameters()]
        for parameter in zero:
            nn.init.zeros_(parameter)
        self.pos_embed.data.copy_(position_table(*self.grid, self.pos_embed.shape[-1])[None])

    def conditions(self, t: Tensor, label: Tensor | None) -> Tensor:
        """The condition vectors (N, K, width): timestep and, where the network has classes, class."""
        vectors = [self.t_embedder(t)]
        if self.classes or label is not None:
            label = label_or_none(label, classes=self.classes, like=t)
            vectors.append(self.y_embedder(label))
        return torch.stack(vectors, dim=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output for noisy images at their timesteps.

        Args:
            x: (N, C, H, W), sides multiples of the patch.
            t: (N,), timesteps 0 ... 999, whole or between two.
            label: int64 (N,), 0 ... classes, the last meaning "no class"; None the same. Or float (N, classes + 1): weights
                of the classes and of "no class" in the embedding.

        Returns:
            (N, C_out, H, W): the noise; then, with learned variance, as many channels for the variance.

        Raises:
            ValueError: a size that the patch does not divide, or a class where the network has none.
        """
        if why := self.fits(x.shape[-2], x.shape[-1]):
            raise ValueError(why)
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        conditions = self.conditions(t, label)
        x = self.x_embedder(x)
        x = x + self.positions(rows, columns)
        tokens = x.shape[1]
        if self.block == "in-context":
            x = torch.cat([x, conditions], dim=1)  # T + K tokens
        again = self.checkpoint and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            if again:  # no block draws random numbers
                x = checkpoint(block, x, conditions, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, conditions)
        x = self.final_layer(x[:, :tokens], conditions)
        return rearrange(x, "n (h w) (a b c) -> n c (h a) (w b)", h=rows, a=self.patch, b=self.patch)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The table of a grid (1, rows * columns, width): the network's own, or one made for a grid of another size."""
        if (rows, columns) == self.grid:
            return self.pos_embed
        return position_table(rows, columns, self.pos_embed.shape[-1])[None].to(self.pos_embed)

    @property
    def unit(self) -> tuple[int, int]:
        return self.patch, self.patch

    @property
    def seams(self) -> tuple[int, int]:
        return self.patch, self.patch

    def fits(self, height: int, width: int) -> str:
        """Why it cannot be given images of this size, one sentence; "" where it can."""
        p = self.patch
        if height % p == 0 and width % p == 0:
            return ""
        near = " x ".join(str(max(p, (side + p // 2) // p * p)) for side in (height, width))
        return f"images of {height} x {width} do not divide: sides must be multiples of {p}; the nearest size is {near}"

    def wants(self) -> dict[str, Condition]:
        """The conditions that it takes, by keyword."""
        return {"label": Classes(self.classes, table="y_embedder.embedding_table.weight")} if self.classes else {}

    def parameter_groups(self) -> dict[str, Role]:
        """All learn at one rate, but for the frozen positions; matrices inside blocks decay."""
        decayed = set(self.matrices())
        return {
            name: Role(slow=False, decays=name in decayed)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Weights of the linears inside blocks: q | k | v, attention out, the two of the feed-forward; cross-attention's."""
        cuts = {"qkv": 3, "kv": 2, "q": 1, "proj": 1, "fc1": 1, "fc2": 1}
        found = {}
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear) and (parts := cuts.get(name.rpartition(".")[2])):
                found[f"blocks.{name}.weight"] = (module.out_features // parts,) * parts
        return found

    def timed_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Attention, feed-forward, norms and modulations."""
        kinds = {Attention: "attention", CrossAttention: "attention to conditions", Mlp: "feed-forward"}
        for name, module in self.named_modules():
            if part := kinds.get(type(module)):
                yield module, part
            elif isinstance(module, nn.LayerNorm):
                yield module, "norms"
            elif name.endswith("adaLN_modulation"):
                yield module, "modulation"

    def neighbourhoods(self, height: int, width: int) -> list[Neighbourhood]:
        """None: its attention is global."""
        return []

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image; what is computed from the conditions counts once.

        Linears count as tokens * in * out, attention as queries * keys * 2 * width; norms and softmax do not count.
        """
        tokens = height // self.patch * (width // self.patch)
        vectors = 2 if self.classes else 1
        inside = tokens + (vectors if self.block == "in-context" else 0)
        blocks: list[Any] = [*self.blocks]
        total = tokens * _weights(self.x_embedder) + tokens * _weights(self.final_layer.linear)
        total += _weights(self.t_embedder) + sum(block.macs(inside, vectors) for block in blocks)
        if self.final_layer.adaptive:
            total += _weights(self.final_layer.adaLN_modulation)
        return total


def _weights(module: nn.Module) -> int:
    """Entries of its matrices: multiply-accumulates for each token."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def _given(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias
