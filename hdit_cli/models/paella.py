"""Paella's network (Rampas et al. 2022, arXiv 2211.07292; its third version): noised tokens to logits of the clean ones.

A U-Net of convolutions, time modulation and attention to a sequence of conditions. Parameter names are those of the authors'
published weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hdit_cli.models.paella_blocks import (
    AttentionBlock,
    FeedForwardBlock,
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
        clip_embd, byt5_embd: width of a CLIP vector, and of each place of a text.
        clip_seq_len: places of the sequence that a CLIP vector becomes.
        kernel_size: of the convolutions.
        dropout: one number, or one for each level.
        self_attn: whether the map attends to itself as well; one, or one for each level.
    """

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
    ) -> None:
        super().__init__()
        levels = len(c_hidden)
        if not len(nhead) == len(blocks) == len(level_config) == levels:
            raise ValueError("c_hidden, nhead, blocks and level_config must have one entry for each level")
        if c_in != c_out:
            raise ValueError(f"c_out must equal c_in, {c_in}: the last layer begins as a copy of the first")
        if wrong := [kinds for kinds in level_config if not kinds or set(kinds) - set(_KINDS) or kinds[0] != "C"]:
            raise ValueError(f"a level of blocks {wrong[0]!r}: it must begin with C, and hold only {', '.join(_KINDS)}")
        self.c_r, self.c_cond, self.clip_seq_len, self.vocabulary = c_r, c_cond, clip_seq_len, num_labels
        self.unit = patch_size * 2 ** (levels - 1)
        drops = [float(dropout)] * levels if isinstance(dropout, int | float) else list(dropout)
        attends = [self_attn] * levels if isinstance(self_attn, bool) else list(self_attn)

        self.byt5_mapper = nn.Linear(byt5_embd, c_cond)
        self.clip_mapper = nn.Linear(clip_embd, c_cond * clip_seq_len)
        self.clip_image_mapper = nn.Linear(clip_embd, c_cond * clip_seq_len)
        self.seq_norm = nn.LayerNorm(c_cond, elementwise_affine=False, eps=1e-6)
        self.in_mapper = nn.Sequential(
            nn.Embedding(num_labels, c_in), nn.LayerNorm(c_in, elementwise_affine=False, eps=1e-6)
        )
        self.embedding = nn.Sequential(
            nn.PixelUnshuffle(patch_size), nn.Conv2d(c_in * patch_size**2, c_hidden[0], 1), LayerNorm(c_hidden[0])
        )

        def block(kind: str, level: int, *, skip: bool) -> nn.Module:
            width, drop = c_hidden[level], drops[level]
            if kind == "C":
                return ResBlock(width, skip=skip, kernel=kernel_size, dropout=drop)
            if kind == "A":
                return AttentionBlock(width, c_cond, nhead[level], self_attention=attends[level], dropout=drop)
            return FeedForwardBlock(width, dropout=drop) if kind == "F" else TimestepBlock(width, c_r)

        self.down_blocks = nn.ModuleList()
        for i in range(levels):
            inside = nn.ModuleList()
            if i:
                inside.append(
                    nn.Sequential(LayerNorm(c_hidden[i - 1]), nn.Conv2d(c_hidden[i - 1], c_hidden[i], 2, stride=2))
                )
            inside.extend(block(kind, i, skip=False) for _ in range(blocks[i]) for kind in level_config[i])
            self.down_blocks.append(inside)
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(levels)):
            inside = nn.ModuleList()
            for j in range(blocks[i]):
                for k, kind in enumerate(level_config[i]):
                    inside.append(block(kind, i, skip=i < levels - 1 and j == k == 0))
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

    @torch.no_grad()
    def _initialise(self, depth: int) -> None:
        """As the authors: the answer is 0 at the start, and the last layer a copy of the embedding."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for mapper in (self.byt5_mapper, self.clip_mapper, self.clip_image_mapper):
            nn.init.normal_(mapper.weight, std=0.02)
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

    def sequence(self, byt5: Tensor, clip: Tensor | None = None, clip_image: Tensor | None = None) -> Tensor:
        """The conditions as one sequence; one that is not given is left out, and the sequence is shorter.

        Args:
            byt5: (N, L, byt5_embd).
            clip, clip_image: (N, clip_embd).

        Returns:
            (N, L', c_cond).
        """
        parts = [self.byt5_mapper(byt5)]
        if clip is not None:
            parts.append(self.clip_mapper(clip).view(len(clip), self.clip_seq_len, self.c_cond))
        if clip_image is not None:
            parts.append(self.clip_image_mapper(clip_image).view(len(clip_image), self.clip_seq_len, self.c_cond))
        return self.seq_norm(torch.cat(parts, dim=1))

    def forward(
        self,
        tokens: Tensor,
        t: Tensor,
        *,
        byt5: Tensor,
        clip: Tensor | None = None,
        clip_image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the clean tokens.

        Args:
            tokens: int64 (N, h, w), h and w multiples of `unit`.
            t: (N,), share of tokens that are noise, in [0, 1].
            byt5: (N, L, byt5_embd).
            clip, clip_image: (N, clip_embd).
            mask: bool (N, L), true where a place of the text is real; None: everywhere.

        Returns:
            (N, K, h, w).
        """
        r = time_features(t, self.c_r)
        sequence = self.sequence(byt5, clip, clip_image)
        hidden = None
        if mask is not None:
            hidden = nn.functional.pad(~mask, (0, sequence.shape[1] - mask.shape[1]), value=False)
        x = self.embedding(self.in_mapper(tokens).permute(0, 3, 1, 2))
        levels = []
        for inside in self.down_blocks:
            for module in inside:  # type: ignore[union-attr]
                x = _through(module, x, r, sequence, hidden)
            levels.append(x)
        for i, inside in enumerate(self.up_blocks):
            for j, module in enumerate(inside):  # type: ignore[arg-type]
                skip = levels[-1 - i] if i and not j else None
                x = _through(module, x, r, sequence, hidden, skip)
        return self.out_mapper(self.clf(x))


def _through(
    module: nn.Module, x: Tensor, r: Tensor, sequence: Tensor, hidden: Tensor | None, skip: Tensor | None = None
) -> Tensor:
    if isinstance(module, ResBlock):
        return module(x, skip)
    if isinstance(module, AttentionBlock):
        return module(x, sequence, hidden)
    return module(x, r) if isinstance(module, TimestepBlock) else module(x)
