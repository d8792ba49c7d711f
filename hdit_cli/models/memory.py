"""How much memory a training step of an hourglass needs at its fullest, by a formula.

A step is walked through in the order of the forward pass, one `Piece` for each attention and each feed-forward block.
Each keeps tensors for the backward pass; the backward pass takes the pieces in reverse, drops what they kept, and leaves
the gradients of their parameters. So the most that is held while the piece i runs backward is

    kept_1 + ... + kept_i + work_i + gradients of the pieces after i,

and the peak of the step is the largest of these. A piece that is computed again (Chen et al. 2016, arXiv 1604.06174)
keeps its layer's input alone, and while it runs backward the whole of its layer is there once more.

In what follows C is the width of a level, F its d_ff, all per token; each term is a tensor that autograd saves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hdit_cli import catalog
from hdit_cli.models.attention.dispatch import choose
from hdit_cli.models.attention.request import Held, Request
from hdit_cli.models.hdit import HDiT, Layer, Level, Stack


@dataclass(frozen=True)
class Setting:
    """What decides the bytes of a tensor.

    Attributes:
        images: of one micro-batch on one device.
        size: (height, width) of an image in pixels.
        weights: dtype of the parameters.
        autocast: whether the forward pass runs in bfloat16 (the weights then are copied in it too).
        device: "cpu", "cuda", "mps".
        accumulating: whether gradients of an earlier micro-batch are there.
        inference: no backward pass follows.
    """

    images: int
    size: tuple[int, int]
    weights: torch.dtype = torch.float32
    autocast: bool = False
    device: str = "cpu"
    accumulating: bool = False
    inference: bool = False

    @property
    def by_hand(self) -> bool:
        """Whether norms, rotations and gates are those of `fused`."""
        return self.device == "cpu" and not self.autocast

    @property
    def in_place(self) -> bool:
        """Whether they use the memory of what they read."""
        return self.inference and self.by_hand and self.weights.itemsize >= 4

    @property
    def dtype(self) -> torch.dtype:
        """Of maps inside the network."""
        return torch.bfloat16 if self.autocast else self.weights

    @property
    def item(self) -> int:
        """Bytes of a number of a map."""
        return self.dtype.itemsize

    @property
    def wide(self) -> int:
        """Bytes that norms keep for each number in the wider dtype of their statistics; 0 where it is the map's own."""
        return 4 if self.autocast else 0

    @property
    def mask(self) -> int:
        """Bytes of a number of a dropout mask."""
        return 1 if self.device == "cuda" else self.item


@dataclass(frozen=True)
class Piece:
    """A part of the forward pass, in bytes.

    Attributes:
        kept: held from here to this part's turn in the backward pass.
        work: held only while this part runs backward.
        gradients: of its parameters, held from then on.
        again: kept anew when the backward pass comes here, by the layer's earlier pieces and this one.
        carried: gradients of skips that wait for their turn while this piece runs backward.
    """

    kept: float
    work: float = 0.0
    gradients: float = 0.0
    again: float = 0.0
    carried: float = 0.0


@dataclass(frozen=True)
class Peak:
    """The fullest moment of forward and backward, in bytes, without weights and whatever else is always there."""

    activations: int
    gradients: int


def peak(network: HDiT, setting: Setting) -> Peak:
    """The fullest moment of a forward and backward pass.

    Args:
        network: may be on the meta device: its values are not looked at.
    """
    pieces = list(_pieces(network, setting))
    gradients = sum(p.numel() for p in network.parameters()) * setting.weights.itemsize
    kept, later = sum(piece.kept for piece in pieces), 0.0
    pixels = setting.images * 3 * setting.size[0] * setting.size[1] * setting.weights.itemsize
    moments = [(kept + _PICTURES_FORWARD * pixels, 0.0)]
    kept += _PICTURES_KEPT * pixels
    for piece in reversed(pieces):
        moments.append((kept + piece.again + piece.work + piece.carried, later + piece.gradients))
        kept -= piece.kept
        later += piece.gradients
    if setting.accumulating:
        moments = [(activations, gradients) for activations, _ in moments]
    activations, there = max(moments, key=sum)
    return Peak(int(activations), int(there))


def inference_peak(network: HDiT, setting: Setting) -> int:
    """The fullest moment of a forward pass alone, in bytes, without weights: the skips, and all that one piece makes.

    A piece is counted with everything that it would keep for a backward pass, part of which is freed before its end: 0.8 to 1.2
    times what tensors really take.

    Args:
        network: may be on the meta device: its values are not looked at.
        setting: of inference.
    """
    pixels = setting.images * 3 * setting.size[0] * setting.size[1] * setting.weights.itemsize
    return int(max(piece.carried + piece.kept for piece in _pieces(network, setting)) + _PICTURES_SAMPLED * pixels)


# pictures of a batch that a denoiser holds: noisy, scaled, cut into tokens, output, and the result
_PICTURES_SAMPLED = 5

# pictures of the batch that the loss holds: clean, noise, noisy, scaled, cut, output, target, difference; then what is saved
_PICTURES_FORWARD, _PICTURES_KEPT = 8, 2


def _pieces(network: HDiT, setting: Setting) -> Iterator[Piece]:
    """All pieces, in the order of the forward pass."""
    height, width = (side // patch for side, patch in zip(setting.size, network.patch, strict=True))
    sides: list[Any] = [*zip(network.down_levels, network.up_levels, network.merges, network.splits, strict=True)]
    downs, ups, carried = [], [], 0.0
    for down, up, merge, split in sides:
        tokens = setting.images * height * width
        skip = tokens * down.level.width * setting.item
        downs += [*_stack(down, height, width, setting, carried=carried)]
        downs.append(replace(_with_parameters(merge, setting, kept=skip), carried=carried))
        # the skip itself, the coarser map spread out, and what the projection reads
        kept = 2 * skip + tokens / 4 * split.proj.in_features * setting.item
        ups.insert(0, [replace(_with_parameters(split, setting, kept=kept, work=2 * skip), carried=carried)])
        ups[0] += [*_stack(up, height, width, setting, carried=carried)]
        carried += skip
        height, width = height // 2, width // 2
    middle = [*_stack(network.mid_level, height, width, setting, carried=carried)]
    tokens = setting.images * setting.size[0] * setting.size[1] // (network.patch[0] * network.patch[1])
    last = tokens * network.patch_out.proj.in_features * (3 * setting.item + setting.wide)
    yield _with_parameters(network.patch_in, setting)
    yield from downs
    yield from middle
    for up in ups:
        yield from up
    yield _with_parameters(network.patch_out, setting, kept=last, work=last)


def _stack(stack: Stack, height: int, width: int, setting: Setting, *, carried: float) -> Iterator[Piece]:
    """The pieces of a level's layers on one side."""
    x = setting.images * height * width * stack.level.width * setting.item
    layers: Sequence[Any] = [*stack]
    for layer in layers:
        again, kept = 0.0, x
        for block in _layer(layer, height, width, setting):
            if stack.level.checkpoint and not setting.inference:
                again += block.kept
                yield replace(block, kept=kept, again=again - x, carried=carried)
                kept = 0.0
            else:
                yield replace(block, carried=carried)


def _layer(layer: Layer, height: int, width: int, setting: Setting) -> Iterator[Piece]:
    """Attention, where there is one, and feed-forward."""
    tokens = setting.images * height * width
    item = setting.item
    if layer.has_attention:
        level, heads = layer.self_attn.level, layer.self_attn.heads
        held = _attention(level, heads, height, width, setting)
        # q, k and v in one; q and k normalised, or in their place; their lengths and scales
        normalised = 0 if setting.in_place else 2 * setting.wide
        projected = level.width * (3 * item + normalised) + 6 * heads * (item + setting.wide) / 2
        dropped = level.width * setting.mask if level.dropout else 0
        kept = _norm(level.width, setting) + projected + held.kept * item + dropped
        work = max(held.work * item, 4 * level.width * (item + setting.wide))  # one after the other
        yield _with_parameters(layer.self_attn, setting, kept=tokens * kept, work=tokens * work)
    C, F = layer.ff.down_proj.out_features, layer.ff.down_proj.in_features
    dropped = F * setting.mask if layer.ff.dropout.p else 0
    gated = (2 if setting.in_place else 4) * F * item  # value and gate, GELU of the gate, their product
    kept = _norm(C, setting) + gated + dropped
    yield _with_parameters(layer.ff, setting, kept=tokens * kept, work=tokens * (2 * F + 2 * C) * item)


def _norm(width: int, setting: Setting) -> float:
    """RMS norm of one token and what reads it: the map, the scaled map; by formula also its square's argument."""
    return width * ((2 if setting.by_hand else 3) * setting.item + setting.wide)


def _attention(level: Level, heads: int, height: int, width: int, setting: Setting) -> Held:
    """What attention itself holds for one token, in numbers."""
    if level.attention == "neighborhood":
        request = Request(setting.device, setting.dtype, level.head_dim, level.kernel, gradient=not setting.inference)
        held = catalog.get("attention", choose(request)).held(request, height=height, width=width)
        return Held(held.kept * heads, held.work * heads)
    copies = 2 if level.attention == "shifted-window" else 0  # v and the result, cut into windows and put together
    dropped = level.width if level.dropout and not copies else 0
    return Held((3 + copies) * level.width + heads + dropped, 0.0)  # q, k, result and the softmax's logarithm


def _with_parameters(module: nn.Module, setting: Setting, *, kept: float = 0.0, work: float = 0.0) -> Piece:
    """A piece with the gradients of its parameters and, under autocast, the copies of its weights."""
    count = sum(p.numel() for p in module.parameters())
    copies = count * setting.item if setting.autocast else 0
    return Piece(kept + copies, work, gradients=count * setting.weights.itemsize)
