"""Paella's network (Rampas et al. 2022, arXiv 2211.07292; its third version): noised tokens to logits of the clean ones.

A U-Net of convolutions, time modulation and attention to a sequence of conditions. Parameter names are those of the authors'
published weights. Without classes it is exactly their network; classes, which they had none of, bring a table, whose rows are
places of the sequence, and a second linear in each T block, so that levels without attention hear of the class too.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from hdit_cli.models.conditions import Condition
from hdit_cli.models.conditions.classes import Classes, embedded, label_or_none
from hdit_cli.models.conditions.embeddings import Embeddings
from hdit_cli.models.network import Neighbourhood, Role
from hdit_cli.models.paella_blocks import (
    AttentionBlock,
    FeedForwardBlock,
    Heads,
    LayerNorm,
    ResBlock,
    TimestepBlock,
    time_features,
)

_KINDS = "CTAF"


class Paella(nn.Module):
    """Noised tokens and the share of noise to logits.

    Args:
        c_in, c_out: width of a token's embedding and of the last map; they must be equal.
        num_labels: number of tokens K.
        c_r: width of the time features.
        patch_size: side of the patch of tokens that becomes one place of the first map.
        c_cond: width of the condition sequence.
        c_hidden: width of each level; the map is halved between levels.
        nhead: attention heads of each level; -1 where it has none.
        blocks: how often each level repeats its blocks, down and up alike.
        level_config: the blocks of each level: C convolution, T time, A attention, F perceptron.
        clip_embd, byt5_embd: width of a CLIP vector, and of each place of a text; 0 for a network that is told none.
        clip_seq_len: places of the sequence that a CLIP vector becomes.
        kernel_size: of the convolutions.
        dropout: one number, or one for each level.
        self_attn: whether the map attends to itself as well; one, or one for each level.
        classes: number of classes; 0 for none.
        class_tokens: places of the sequence that a class becomes.
        checkpoint: training keeps the input of each block alone and computes the rest again (Chen et al. 2016).

    Raises:
        ValueError: settings that do not fit together.
    """

    told: ClassVar[str] = "share"
    title: ClassVar[str] = "Paella"
    paper: ClassVar[str] = "2211.07292"
    architecture: ClassVar[str] = "paella"
    channels: ClassVar[int] = 1

    def __init__(
        self,
        *,
        c_in: int = 256,
        c_out: int = 256,
        num_labels: int = 8192,
        c_r: int = 64,
        patch_size: int = 2,
        c_cond: int = 1024,
        c_hidden: Sequence[int] = (640, 1280, 1280),
        nhead: Sequence[int] = (-1, 16, 16),
        blocks: Sequence[int] = (6, 16, 6),
        level_config: Sequence[str] = ("CT", "CTA", "CTA"),
        clip_embd: int = 1024,
        byt5_embd: int = 1536,
        clip_seq_len: int = 4,
        kernel_size: int = 3,
        dropout: float | Sequence[float] = 0.1,
        self_attn: bool | Sequence[bool] = True,
        classes: int = 0,
        class_tokens: int = 1,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.depth = len(c_hidden)
        if not len(nhead) == len(blocks) == len(level_config) == self.depth:
            raise ValueError("c_hidden, nhead, blocks and level_config must have one entry for each level")
        if c_in != c_out:
            raise ValueError(f"c_out must equal c_in, {c_in}: the last layer begins as a copy of the first")
        if wrong := [kinds for kinds in level_config if not kinds or set(kinds) - set(_KINDS) or kinds[0] != "C"]:
            raise ValueError(f"a level of blocks {wrong[0]!r}: it must begin with C, and hold only {', '.join(_KINDS)}")
        self.c_r, self.c_cond, self.clip_seq_len, self.vocabulary = c_r, c_cond, clip_seq_len, num_labels
        self.patch_size, self.classes, self.class_tokens, self.checkpoint = (
            patch_size,
            classes,
            class_tokens,
            checkpoint,
        )
        self._conditions(byt5_embd, clip_embd)
        self.in_mapper = nn.Sequential(
            nn.Embedding(num_labels, c_in), nn.LayerNorm(c_in, elementwise_affine=False, eps=1e-6)
        )
        self.embedding = nn.Sequential(
            nn.PixelUnshuffle(patch_size), nn.Conv2d(c_in * patch_size**2, c_hidden[0], 1), LayerNorm(c_hidden[0])
        )
        drops = [float(dropout)] * self.depth if isinstance(dropout, int | float) else list(dropout)
        attends = [self_attn] * self.depth if isinstance(self_attn, bool) else list(self_attn)

        def block(kind: str, level: int, *, skip: bool) -> nn.Module:
            width, drop = c_hidden[level], drops[level]
            if kind == "C":
                return ResBlock(width, skip=skip, kernel=kernel_size, dropout=drop)
            if kind == "A":
                return AttentionBlock(width, c_cond, nhead[level], self_attention=attends[level], dropout=drop)
            if kind == "F":
                return FeedForwardBlock(width, dropout=drop)
            return TimestepBlock(width, c_r, condition=c_cond if classes else 0)

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i in range(self.depth):
            inside = nn.ModuleList()
            if i:
                inside.append(
                    nn.Sequential(LayerNorm(c_hidden[i - 1]), nn.Conv2d(c_hidden[i - 1], c_hidden[i], 2, stride=2))
                )
            inside.extend(block(kind, i, skip=False) for _ in range(blocks[i]) for kind in level_config[i])
            self.down_blocks.append(inside)
        for i in reversed(range(self.depth)):
            inside = nn.ModuleList()
            for j in range(blocks[i]):
                for k, kind in enumerate(level_config[i]):
                    inside.append(block(kind, i, skip=i < self.depth - 1 and j == k == 0))
            if i:
                inside.append(
                    nn.Sequential(LayerNorm(c_hidden[i]), nn.ConvTranspose2d(c_hidden[i], c_hidden[i - 1], 2, stride=2))
                )
            self.up_blocks.append(inside)
        self.clf = nn.Sequential(
            LayerNorm(c_hidden[0]), nn.Conv2d(c_hidden[0], c_out * patch_size**2, 1), nn.PixelShuffle(patch_size)
        )
        self.out_mapper = nn.Sequential(LayerNorm(c_out), nn.Conv2d(c_out, num_labels, 1, bias=False))
        self._initialise(sum(blocks))

    def _conditions(self, byt5_embd: int, clip_embd: int) -> None:
        """The maps of texts, pictures and classes into the sequence."""
        self.told_texts, self.told_clip = bool(byt5_embd), bool(clip_embd)
        if byt5_embd:
            self.byt5_mapper = nn.Linear(byt5_embd, self.c_cond)
        if clip_embd:
            self.clip_mapper = nn.Linear(clip_embd, self.c_cond * self.clip_seq_len)
            self.clip_image_mapper = nn.Linear(clip_embd, self.c_cond * self.clip_seq_len)
        if self.classes:
            self.class_embedding = nn.Embedding(self.classes + 1, self.c_cond * self.class_tokens)
        self.seq_norm = nn.LayerNorm(self.c_cond, elementwise_affine=False, eps=1e-6)

    @torch.no_grad()
    def _initialise(self, depth: int) -> None:
        """As the authors: the answer is 0 at the start, and the last layer a copy of the embedding."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("byt5_mapper", "clip_mapper", "clip_image_mapper", "class_embedding"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name).weight, std=0.02)
        nn.init.xavier_uniform_(self.embedding[1].weight, gain=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(self.clf[1].weight)  # type: ignore[arg-type]
        table: Tensor = self.in_mapper[0].weight  # type: ignore[assignment]
        nn.init.normal_(table, std=math.sqrt(1 / self.vocabulary))
        self.out_mapper[1].weight.copy_(table[:, :, None, None])  # type: ignore[operator]
        for module in self.modules():
            if isinstance(module, ResBlock | FeedForwardBlock):
                module.channelwise[-1].weight.mul_(math.sqrt(1 / depth))  # type: ignore[operator]
            elif isinstance(module, TimestepBlock):
                nn.init.zeros_(module.mapper.weight)
                if self.classes:
                    nn.init.zeros_(module.condition_mapper.weight)

    def sequence(
        self,
        byt5: Tensor | None = None,
        clip: Tensor | None = None,
        clip_image: Tensor | None = None,
        *,
        classes: Tensor | None = None,
        like: Tensor,
    ) -> Tensor:
        """The conditions as one sequence; one that is not given is left out, and the sequence is shorter.

        Args:
            byt5: (N, L, byt5_embd).
            clip, clip_image: (N, clip_embd), or (N, G, clip_embd) of several, or of none.
            classes: (N, class_tokens, c_cond).
            like: (N, ...), gives device and dtype where there is no condition.

        Returns:
            (N, L', c_cond).
        """
        parts = [] if byt5 is None else [self.byt5_mapper(byt5)]
        for vector, mapper in ((clip, "clip_mapper"), (clip_image, "clip_image_mapper")):
            if vector is not None:
                parts.append(getattr(self, mapper)(vector).reshape(vector.shape[0], -1, self.c_cond))
        if classes is not None:
            parts.append(classes)
        return self.seq_norm(torch.cat(parts, dim=1) if parts else like.new_zeros(like.shape[0], 0, self.c_cond))

    def forward(
        self,
        tokens: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        *,
        byt5: Tensor | None = None,
        clip: Tensor | None = None,
        clip_image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the clean tokens.

        Args:
            tokens: int64 (N, h, w), h and w multiples of `unit`.
            t: (N,), share of tokens that are noise, in [0, 1].
            label: int64 (N,), 0 ... classes, the last meaning "no class"; None the same. Or float (N, classes + 1): weights
                of the classes and of "no class" in the embedding.
            byt5: (N, L, byt5_embd); None: no text.
            clip, clip_image: (N, clip_embd), or (N, G, clip_embd); None: none.
            mask: bool (N, L), true where a place of the text is real; None: everywhere.

        Returns:
            (N, K, h, w).

        Raises:
            ValueError: a size that does not divide, or a class where the network has none.
        """
        if why := self.fits(tokens.shape[-2], tokens.shape[-1]):
            raise ValueError(why)
        weight: Tensor = self.in_mapper[0].weight  # type: ignore[assignment]
        r = time_features(t, self.c_r).to(weight.dtype)
        classes = None
        if self.classes or label is not None:
            label = label_or_none(label, classes=self.classes, like=t)
            label = label if label.ndim == 2 else label.long()
            classes = embedded(self.class_embedding.weight, label).view(t.shape[0], self.class_tokens, self.c_cond)
        sequence = self.sequence(byt5, clip, clip_image, classes=classes, like=r)
        told = None if classes is None else sequence[:, -self.class_tokens :].mean(dim=1)  # (N, c_cond), for T blocks
        hidden = None
        if mask is not None:
            hidden = nn.functional.pad(~mask, (0, sequence.shape[1] - mask.shape[1]), value=False)
        through = _Through(
            r, sequence, hidden, told, again=self.checkpoint and self.training and torch.is_grad_enabled()
        )
        x = self.embedding(self.in_mapper(tokens).permute(0, 3, 1, 2))
        skips = []
        for inside in self.down_blocks:
            for module in inside:  # type: ignore[union-attr]
                x = through(module, x)
            skips.append(x)
        for i, inside in enumerate(self.up_blocks):
            for j, module in enumerate(inside):  # type: ignore[arg-type]
                x = through(module, x, skips[-1 - i] if i and not j else None)
        return self.out_mapper(self.clf(x))

    # What the rest of the house asks

    @property
    def unit(self) -> tuple[int, int]:
        side = self.patch_size * 2 ** (self.depth - 1)
        return side, side

    @property
    def seams(self) -> tuple[int, int]:
        return self.patch_size, self.patch_size

    def fits(self, height: int, width: int) -> str:
        """Why it cannot be given tokens of this size, one sentence; "" where it can."""
        u = self.unit[0]
        if height % u == 0 and width % u == 0:
            return ""
        near = " x ".join(str(max(u, (side + u // 2) // u * u)) for side in (height, width))
        return f"tokens of {height} x {width} do not divide: sides must be multiples of {u}; the nearest size is {near}"

    def wants(self) -> dict[str, Condition]:
        """The conditions that it takes, by keyword."""
        found: dict[str, Condition] = {}
        if self.classes:
            found["label"] = Classes(self.classes, table="class_embedding.weight")
        if self.told_texts:
            found |= {"byt5": Embeddings(), "mask": Embeddings()}
        if self.told_clip:
            found |= {"clip": Embeddings(), "clip_image": Embeddings()}
        return found

    def parameter_groups(self) -> dict[str, Role]:
        """All learn at one rate; matrices inside blocks decay."""
        decayed = set(self.matrices())
        return {name: Role(slow=False, decays=name in decayed) for name, _ in self.named_parameters()}

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Weights of the linears inside blocks: perceptrons, modulations (a | b), attention (q | k | v) and its maps."""
        found: dict[str, tuple[int, ...]] = {}
        for prefix in ("down_blocks", "up_blocks"):
            for name, module in getattr(self, prefix).named_modules():
                if isinstance(module, Heads):
                    found[f"{prefix}.{name}.in_proj_weight"] = (module.width,) * 3
                elif isinstance(module, nn.Linear):
                    parts = 2 if name.endswith("mapper") else 1
                    found[f"{prefix}.{name}.weight"] = (module.out_features // parts,) * parts
        return found

    def layers(self) -> Iterator[nn.Module]:
        """Its blocks, and the convolutions between its levels."""
        for inside in (*self.down_blocks, *self.up_blocks):
            yield from inside  # type: ignore[misc]

    def timed_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Convolutions, perceptrons, modulations, attention, and the maps to and from tokens."""
        for module in self.modules():
            if isinstance(module, ResBlock):
                yield module.depthwise, "convolutions"
            if isinstance(module, ResBlock | FeedForwardBlock):
                yield module.channelwise, "perceptrons"
            elif isinstance(module, TimestepBlock):
                yield module, "modulation"
            elif isinstance(module, AttentionBlock):
                yield module, "attention"
            elif isinstance(module, LayerNorm):
                yield module, "norms"
        yield self.embedding, "tokens to the first map"
        yield self.out_mapper, "the last map to logits"

    def neighbourhoods(self, height: int, width: int) -> list[Neighbourhood]:
        """None: its attention is global."""
        return []

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image of so many tokens; what is computed from the conditions counts once.

        Of the sequence the places of a class alone count: how long a text is, the network does not know.
        """
        places = height * width // self.patch_size**2
        length = self.class_tokens if self.classes else 0
        total = places * (_weights(self.embedding) + _weights(self.clf)) + height * width * _weights(self.out_mapper)
        for i in range(self.depth):
            here = places // 4**i
            for module in (*self.down_blocks[i], *self.up_blocks[-1 - i]):  # type: ignore[misc]
                total += _macs(module, here, length)
        return total


class _Through:
    """Calls of blocks with what each kind is told besides the map."""

    def __init__(self, r: Tensor, sequence: Tensor, hidden: Tensor | None, told: Tensor | None, *, again: bool) -> None:
        self.r, self.sequence, self.hidden, self.told, self.again = r, sequence, hidden, told, again

    def __call__(self, module: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
        others: tuple[Tensor | None, ...] = ()
        if isinstance(module, ResBlock):
            others = (skip,)
        elif isinstance(module, AttentionBlock):
            others = (self.sequence, self.hidden)
        elif isinstance(module, TimestepBlock):
            others = (self.r, self.told)
        if self.again:  # dropout is a function of the image's key
            return recompute(module, x, *others, use_reentrant=False, preserve_rng_state=False)
        return module(x, *others)


def _weights(module: nn.Module) -> int:
    """Of its linears and convolutions: multiply-accumulates for each place."""
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    found: list[Any] = [each for each in module.modules() if isinstance(each, kinds)]
    return sum(each.weight.numel() for each in found)


def _macs(module: nn.Module, places: int, length: int) -> int:
    """Of one block on a map of so many places, with a condition sequence of so many."""
    if isinstance(module, TimestepBlock):
        return _weights(module)
    if not isinstance(module, AttentionBlock):
        return places * _weights(module)
    width = module.norm.width
    keys = length + (places if module.self_attention else 0)
    attention: Any = module.attention.attn
    linears = 2 * places * width**2 + 2 * keys * width**2 + length * _weights(module.kv_mapper)
    return linears + 2 * places * keys * attention.width
