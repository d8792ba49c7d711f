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
from torch.utils.checkpoint import checkpoint

from hdit_cli.models.conditions import Condition
from hdit_cli.models.conditions.classes import Classes, label_or_none
from hdit_cli.models.dit_blocks import (
    AdaptiveBlock,
    Attention,
    CrossAttention,
    FinalLayer,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    PlainBlock,
    TimestepEmbedder,
    position_table,
    weights_of,
)
from hdit_cli.models.network import Neighbourhood, Role

Block = Literal["adaln-zero", "adaln", "in-context", "cross-attention"]
BLOCKS: tuple[Block, ...] = ("adaln-zero", "adaln", "in-context", "cross-attention")


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
    title: ClassVar[str] = "Diffusion Transformer"
    paper: ClassVar[str] = "2212.09748"
    architecture: ClassVar[str] = "diffusion-transformer"

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

    def layers(self) -> Iterator[nn.Module]:
        """Its blocks."""
        yield from self.blocks

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
        total = tokens * weights_of(self.x_embedder) + tokens * weights_of(self.final_layer.linear)
        total += weights_of(self.t_embedder) + sum(block.macs(inside, vectors) for block in blocks)
        if self.final_layer.adaptive:
            total += weights_of(self.final_layer.adaLN_modulation)
        return total


def _given(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias
