"""Hourglass Diffusion Transformer (Crowson, Baumann, Birch et al., ICML 2024, https://arxiv.org/abs/2401.11605).

A transformer over pixels in an hourglass: levels of tokens, each half the side of the one outside it, cheap local
attention outside and global attention in the middle. Images are (N, C, H, W), maps inside (N, H, W, width).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hdit_cli.models.attention.dense import global_attention, window_attention
from hdit_cli.models.attention.dispatch import neighborhood_attention
from hdit_cli.models.conditions import Condition
from hdit_cli.models.conditions import augment as augmentation
from hdit_cli.models.conditions.augment import Augment
from hdit_cli.models.conditions.classes import Classes, embedded, label_or_none
from hdit_cli.models.conditions.vector import Vector
from hdit_cli.models.fused import by_hand, pairs_together, rotated_cosine
from hdit_cli.models.layers import (
    AdaRMSNorm,
    AxialRoPE,
    Dropout,
    FeedForward,
    FourierFeatures,
    Linear,
    Mapping,
    Merge,
    RMSNorm,
    Split,
    Unpatch,
    axial_positions,
    coarser_positions,
    cosine_scale,
    exactly,
    rotate,
)
from hdit_cli.models.network import Neighbourhood, Role


@dataclass(frozen=True)
class Level:
    """One level of the hourglass; the innermost has `depth` layers, the others `depth` on either side.

    Attributes:
        attention: neighborhood, global, shifted-window or none.
        kernel: side of the neighborhood in tokens.
        window: side of the shifted windows in tokens.
        checkpoint: training keeps the input of each layer alone and computes the rest again (Chen et al. 2016).
    """

    depth: int
    width: int
    d_ff: int
    dropout: float = 0.0
    attention: str = "neighborhood"
    head_dim: int = 64
    kernel: int = 7
    window: int = 8
    checkpoint: bool = False


class SelfAttention(nn.Module):
    """x + out(attention(norm(x))) with scaled cosine similarity and axial RoPE (HDiT section 4.2, appendix E)."""

    def __init__(self, level: Level, *, index: int, condition_width: int) -> None:
        super().__init__()
        self.level = level
        self.heads = level.width // level.head_dim
        if level.attention == "neighborhood":
            self.attend = partial(neighborhood_attention, kernel=level.kernel)
        elif level.attention == "shifted-window":
            self.attend = partial(window_attention, window=level.window, shift=level.window // 2 * (index % 2))
        elif level.attention == "global":
            self.attend = global_attention
        else:
            raise ValueError(f"unknown attention {level.attention!r}")
        self.norm = AdaRMSNorm(level.width, condition_width)
        self.qkv_proj = Linear(level.width, level.width * 3)
        self.scale = nn.Parameter(torch.full((self.heads,), 10.0))
        self.pos_emb = AxialRoPE(self.heads, level.head_dim)
        self.dropout = Dropout(level.dropout)
        self.out_proj = Linear(level.width, level.width, zero=True)

    def forward(self, x: Tensor, positions: Tensor, condition: Tensor) -> Tensor:
        q, k, v = self.project(self.norm(x, condition), positions)
        out = rearrange(self.attend(q, k, v), "n h w a d -> n h w (a d)")
        return self.out_proj.add_to(x, self.dropout(out))

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k, normalised and rotated, and v: each (N, H, W, heads, d)."""
        if by_hand(x):
            both, values = self.qkv_proj.weight.split([2 * self.level.width, self.level.width])
            qk = nn.functional.linear(x, pairs_together(both, heads=self.heads))
            q, k = rotated_cosine(qk, self.scale, self.pos_emb.turns(positions), eps=1e-6)
            return q, k, rearrange(nn.functional.linear(x, values), "n h w (a d) -> n h w a d", a=self.heads)
        # in three slices, whose gradients a compiler writes to their places: it would add those of one tensor of three to zeros
        q, k, v = (rearrange(t, "n h w (a d) -> n h w a d", a=self.heads) for t in self.qkv_proj(x).chunk(3, dim=-1))
        angles = self.pos_emb.angles(positions)
        cos, sin = angles.cos(), angles.sin()
        return rotate(cosine_scale(q, self.scale), cos, sin), rotate(cosine_scale(k, self.scale), cos, sin), v

    def macs(self, height: int, width: int) -> int:
        level, tokens = self.level, height * width
        keys = {"neighborhood": level.kernel**2, "shifted-window": level.window**2, "global": tokens}[level.attention]
        return self.qkv_proj.macs(tokens) + self.out_proj.macs(tokens) + tokens * keys * 2 * level.width


class Layer(nn.Module):
    """Attention, unless the level has none, then feed-forward."""

    def __init__(self, level: Level, *, index: int, condition_width: int) -> None:
        super().__init__()
        if level.attention != "none":
            self.self_attn = SelfAttention(level, index=index, condition_width=condition_width)
        self.has_attention = level.attention != "none"
        self.ff = FeedForward(level.width, level.d_ff, dropout=level.dropout, condition_width=condition_width)

    def forward(self, x: Tensor, positions: Tensor, condition: Tensor) -> Tensor:
        if self.has_attention:
            x = self.self_attn(x, positions, condition)
        return self.ff(x, condition)

    def macs(self, height: int, width: int) -> int:
        attention = self.self_attn.macs(height, width) if self.has_attention else 0
        return attention + self.ff.macs(height, width)


class Stack(nn.ModuleList):
    """The layers of one level on one side of the hourglass."""

    def __init__(self, level: Level, *, first: int, condition_width: int) -> None:
        indices = range(first, first + level.depth)
        super().__init__(Layer(level, index=i, condition_width=condition_width) for i in indices)
        self.level = level

    def forward(self, x: Tensor, positions: Tensor, condition: Tensor) -> Tensor:
        again = self.level.checkpoint and self.training and torch.is_grad_enabled()
        for layer in self:
            if again:  # with the random state of the first time, where dropout draws from it
                rng = self.level.dropout > 0
                x = checkpoint(layer, x, positions, condition, use_reentrant=False, preserve_rng_state=rng)
            else:
                x = layer(x, positions, condition)
        return x

    def macs(self, height: int, width: int) -> int:
        layers: list[Any] = [*self]
        return sum(layer.macs(height, width) for layer in layers)


class HDiT(nn.Module):
    """The bare network: predicts from a scaled noisy image and its noise level; returns exactly 0 when new.

    Args:
        levels: outermost first, each a `Level` or its fields by name.
        channels: of the image.
        patch: pixels of a token, (rows, columns).
        mapping_width, mapping_depth, mapping_d_ff, mapping_dropout: of the mapping network.
        mapping_inputs: length of a free condition vector; 0 for none.
        classes: number of classes; 0 for an unconditional network.
    """

    told: ClassVar[str] = "sigma"
    title: ClassVar[str] = "Hourglass Diffusion Transformer"
    paper: ClassVar[str] = "2401.11605"
    architecture: ClassVar[str] = "hourglass-diffusion-transformer-v2"

    def __init__(
        self,
        levels: Sequence[Level | dict[str, Any]],
        *,
        channels: int = 3,
        patch: tuple[int, int] = (4, 4),
        mapping_width: int = 256,
        mapping_depth: int = 2,
        mapping_d_ff: int = 768,
        mapping_dropout: float = 0.0,
        mapping_inputs: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        levels = [level if isinstance(level, Level) else Level(**level) for level in levels]
        outer, middle = levels[:-1], levels[-1]
        self.channels, self.patch, self.classes, self.mapping_inputs = channels, patch, classes, mapping_inputs
        self.patch_in = Merge(channels, levels[0].width, patch=patch)
        self.time_emb = FourierFeatures(1, mapping_width)
        self.time_in_proj = nn.Linear(mapping_width, mapping_width, bias=False)
        self.aug_emb = FourierFeatures(augmentation.INPUTS, mapping_width)
        self.aug_in_proj = nn.Linear(mapping_width, mapping_width, bias=False)
        if classes:
            self.class_emb = nn.Embedding(classes + 1, mapping_width)  # the last row: "no class"
        if mapping_inputs:
            self.mapping_cond_in_proj = nn.Linear(mapping_inputs, mapping_width, bias=False)
        self.mapping = Mapping(mapping_width, depth=mapping_depth, d_ff=mapping_d_ff, dropout=mapping_dropout)
        stack = partial(Stack, condition_width=mapping_width)
        self.down_levels = nn.ModuleList(stack(level, first=0) for level in outer)
        self.up_levels = nn.ModuleList(stack(level, first=level.depth) for level in outer)
        self.mid_level = stack(middle, first=0)
        pairs = list(itertools.pairwise(levels))
        self.merges = nn.ModuleList(Merge(fine.width, coarse.width) for fine, coarse in pairs)
        self.splits = nn.ModuleList(Split(coarse.width, fine.width) for fine, coarse in pairs)
        self.out_norm = RMSNorm(levels[0].width)
        self.patch_out = Unpatch(levels[0].width, channels, patch=patch)

    def condition(
        self, sigma: Tensor, *, label: Tensor | None, augment: Tensor | None, mapping: Tensor | None
    ) -> Tensor:
        """The condition vector (N, mapping_width) of every norm; arguments as in `forward`."""
        with exactly(sigma):
            return self.mapping(self._embedded(sigma, label=label, augment=augment, mapping=mapping))

    def _embedded(
        self, sigma: Tensor, *, label: Tensor | None, augment: Tensor | None, mapping: Tensor | None
    ) -> Tensor:
        """The sum of the embedded conditions, (N, mapping_width)."""
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        if augment is None:
            augment = sigma.new_zeros(sigma.shape[0], augmentation.INPUTS)
        total = self.time_in_proj(self.time_emb(sigma.log()[:, None] / 4)) + self.aug_in_proj(self.aug_emb(augment))
        if self.classes or label is not None:
            label = label_or_none(label, classes=self.classes, like=sigma)
            total = total + embedded(self.class_emb.weight, label)
        if self.mapping_inputs:
            if mapping is None:
                raise ValueError(f"this network needs a condition vector: mapping of shape (N, {self.mapping_inputs})")
            total = total + self.mapping_cond_in_proj(mapping.to(total.dtype))
        elif mapping is not None:
            raise ValueError("this network takes no condition vector: leave mapping out")
        return total

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        mapping: Tensor | None = None,
    ) -> Tensor:
        """The network's output for images at their noise levels.

        Args:
            x: (N, C, H, W), scaled by the preconditioner; H and W multiples of patch * 2^(levels - 1).
            sigma: (N,), positive.
            label: int64 (N,), 0 ... classes, the last meaning "no class"; None the same. Or float (N, classes + 1): weights
                of the classes and of "no class" in the embedding, for what lies between two.
            augment: (N, 9), condition of the Karras augmentation; None is zeros.
            mapping: (N, mapping_inputs), free condition vector.

        Returns:
            (N, C, H, W).

        Raises:
            ValueError: a size that the levels do not divide, or a condition the network does not have.
        """
        self.check_size(x.shape[-2], x.shape[-1])
        condition = self.condition(sigma, label=label, augment=augment, mapping=mapping)
        x = self.patch_in(rearrange(x, "n c h w -> n h w c"))
        positions = axial_positions(x.shape[1], x.shape[2], like=sigma)
        skips = []
        for stack, merge in zip(self.down_levels, self.merges, strict=True):
            x = stack(x, positions, condition)
            skips.append((x, positions))
            x, positions = merge(x), coarser_positions(positions)
        x = self.mid_level(x, positions, condition)
        # a list: dynamo loses count of `reversed` where a body that it follows apart, as FlexAttention's mask, comes between
        for stack, split in [*zip(reversed(self.up_levels), reversed(self.splits), strict=True)]:
            skip, positions = skips.pop()
            x = stack(split(x, skip), positions, condition)
        return rearrange(self.patch_out(self.out_norm(x)), "n h w c -> n c h w")

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless the levels divide an image of this size."""
        if height % self.unit[0] or width % self.unit[1]:
            near = " x ".join(str(nearest(side, step)) for side, step in zip((height, width), self.unit, strict=True))
            raise ValueError(
                f"images of {height} x {width} do not divide: sides must be multiples of {self.unit[0]} and "
                f"{self.unit[1]}; the nearest size is {near}"
            )

    @property
    def unit(self) -> tuple[int, int]:
        halvings = 2 ** len(self.merges)
        return self.patch[0] * halvings, self.patch[1] * halvings

    @property
    def seams(self) -> tuple[int, int]:
        return self.patch

    def fits(self, height: int, width: int) -> str:
        """Why it cannot be given images of this size, one sentence; "" where it can."""
        try:
            self.check_size(height, width)
        except ValueError as error:
            return str(error)
        for number, level in enumerate(self.levels()):
            smallest = min(side // (p * 2**number) for side, p in zip((height, width), self.patch, strict=True))
            if level.attention == "neighborhood" and smallest < level.kernel:
                return f"level {number} has {smallest} tokens a side, fewer than its kernel {level.kernel}"
        return ""

    def levels(self) -> list[Level]:
        """Outermost first."""
        stacks: list[Any] = [*self.down_levels, self.mid_level]
        return [stack.level for stack in stacks]

    def wants(self) -> dict[str, Condition]:
        """The conditions that it takes, by keyword."""
        found: dict[str, Condition] = {"augment": Augment()}
        if self.classes:
            found["label"] = Classes(self.classes, table="class_emb.weight")
        if self.mapping_inputs:
            found["mapping"] = Vector(self.mapping_inputs)
        return found

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image of height x width pixels; conditions count once."""
        once = [_weights(m) for name, m in self.named_modules() if _is_condition_linear(name, m)]
        h, w = height // self.patch[0], width // self.patch[1]
        total = sum(once) + self.patch_in.proj.macs(h * w) + self.patch_out.proj.macs(h * w)
        sides: list[Any] = [*zip(self.down_levels, self.up_levels, self.merges, self.splits, strict=True)]
        for down, up, merge, split in sides:
            total += down.macs(h, w) + up.macs(h, w)
            h, w = h // 2, w // 2
            total += merge.proj.macs(h * w) + split.proj.macs(h * w)
        return total + self.mid_level.macs(h, w)

    def parameter_groups(self) -> dict[str, Role]:
        """The mapping network and the norms' conditions learn slower; only the linears inside decay."""
        decayed = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, Linear)}
        return {
            name: Role(name.startswith("mapping.") or name.endswith(".norm.linear.weight"), name in decayed)
            for name, _ in self.named_parameters()
        }

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Weights of the linears inside layers: q | k | v, attention out, value | gate, feed-forward out."""
        cuts = {"qkv_proj": 3, "out_proj": 1, "up_proj": 2, "down_proj": 1}
        found = {}
        for name, module in self.named_modules():
            if isinstance(module, Linear) and (parts := cuts.get(name.rpartition(".")[2])):
                found[f"{name}.weight"] = (module.weight.shape[0] // parts,) * parts
        return found

    def layers(self) -> Iterator[nn.Module]:
        """The layers of all levels."""
        yield from (module for module in self.modules() if isinstance(module, Layer))

    def timed_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Attention by level, feed-forward and norms, wherever they are."""
        levels = self.levels()
        for stack in (module for module in self.modules() if isinstance(module, Stack)):
            number = next(i for i, level in enumerate(levels) if level is stack.level)
            for module in stack.modules():
                if isinstance(module, SelfAttention):
                    yield module, f"attention, level {number} ({stack.level.attention})"
                elif isinstance(module, FeedForward):
                    yield module, "feed-forward"
        for module in self.modules():
            if isinstance(module, AdaRMSNorm | RMSNorm):
                yield module, "norms"

    def neighbourhoods(self, height: int, width: int) -> list[Neighbourhood]:
        """Its levels of neighborhood attention on an image of this size."""
        h, w = height // self.patch[0], width // self.patch[1]
        return [
            Neighbourhood(i, (h >> i, w >> i, level.width // level.head_dim, level.head_dim), level.kernel)
            for i, level in enumerate(self.levels())
            if level.attention == "neighborhood"
        ]


def nearest(side: int, step: int) -> int:
    """The multiple of `step` nearest to `side`, at least one."""
    return max(step, (side + step // 2) // step * step)


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _is_condition_linear(name: str, module: nn.Module) -> bool:
    inside = name.startswith("mapping.") or name.endswith((".norm.linear", "in_proj"))
    return inside and isinstance(module, nn.Linear)
