"""A DiT from another one of its width: another size, patch or depth, other classes, with the variance or without.

Blocks are taken over in order; new ones come after them and are the identity at the start. Positions are integers, whose table is
computed for the new grid and never interpolated. Patches of another side are fitted as in FlexiViT (Beyer et al. 2023,
https://arxiv.org/abs/2212.08013), with resizing by area: each new pixel is the mean of the old ones under it.

Let B (p', p) resize p pixels of one axis to p', B^+ be its pseudo-inverse, w (p, p) the weights of one channel in the patch
embedding, and W (p, p) those of one channel in the last linear. The new ones are

    w' = (B^+)^T w B^+        the least mean of (<x, w> - <B x B^T, w'>)^2 over white patches x
    W' = B W B^T              and the biases alike

So the new network of an image x is B f(B^+ x B^+^T) B^T for each patch, where f is the old one on the new one's grid: where p
divides p', the old network on the averaged picture, its answer repeated. B keeps constants, and so does B^+, as the columns
of B have one sum: where the picture is constant in each patch, tokens are those of the old network, for all p and p'.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from hdit_cli.models.dit import DiT
from hdit_cli.models.growth import CLASSES, Misfit

_INTO = ("x_embedder.proj.weight", "x_embedder.proj.bias")
_OUT = ("final_layer.linear.weight", "final_layer.linear.bias")
_POSITIONS = "pos_embed"


class DiTGrowth:
    """See `models.growth.Growth`."""

    def __init__(self, new: DiT, old: DiT, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        self.new, self.old, self.ours, self.theirs = new, old, ours, theirs
        self.parts = ["conditions", CLASSES, "positions", "patches", "blocks"]
        self.adds_classes = new.final_layer.adaptive  # else the class is a token of its own

    def old_name(self, name: str) -> str:
        """The same: blocks are counted from the first."""
        return name

    def new_name(self, name: str) -> str:
        """The same."""
        return name

    def unit(self, name: str) -> str:
        """A block, the patch embedding, the last linear; else the tensor alone."""
        head, *rest = name.split(".")
        if head == "blocks":
            return f"blocks.{rest[0]}"
        return name.rpartition(".")[0] if name in (*_INTO, *_OUT) else name

    def part(self, name: str) -> str:
        """Conditions, classes, positions, patches (with all of the last layer), or blocks."""
        heads = {"y_embedder": CLASSES, "x_embedder": "patches", "final_layer": "patches", "blocks": "blocks"}
        return "positions" if name == _POSITIONS else heads.get(name.partition(".")[0], "conditions")

    def apart(self) -> set[str]:
        """Positions of another grid, and the ends where the same shape means other pixels, channels, or a variance."""
        new, old = self.new, self.old
        found = {_POSITIONS} if new.grid != old.grid else set()
        if new.patch != old.patch:
            found.add(self.unit(_INTO[0]))
        if (new.patch, new.channels, new.out_channels) != (old.patch, old.channels, old.out_channels):
            found.add(self.unit(_OUT[0]))
        return found

    def misfit(self, copies: Mapping[str, str]) -> Misfit | None:
        """Another kind of block, or blocks of other sizes; heads leave no trace in the shapes."""
        ours, theirs = self.ours, self.theirs
        if ours["block"] != theirs["block"]:
            why = f"model.block is {theirs['block']} there, {ours['block']} here"
            return Misfit("", why, f"--set model.block={theirs['block']}")
        if "blocks.0.mlp.fc1.weight" in copies and ours["heads"] == theirs["heads"]:
            return None
        different = [f"{key} {theirs[key]} there, {ours[key]} here" for key in ("width", "heads", "mlp_ratio")]
        return Misfit("a block", "; ".join(different), "take over these of its recipe (`hdit info` shows them)")

    def fitted(self, copies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """The ends, where the channels are the same."""
        if self.new.channels != self.old.channels:
            return {}
        return {name: (name,) for name in (*_INTO, *_OUT) if name not in copies}

    def fit(self, network: DiT, old: DiT, *, fitted: Mapping[str, tuple[str, ...]]) -> None:
        """Fills in the ends, and silences new blocks."""
        if _INTO[0] in fitted:
            network.x_embedder.proj.weight.copy_(resized_into(old.x_embedder.proj.weight, patch=network.patch))
            _bias(network.x_embedder.proj).copy_(_bias(old.x_embedder.proj))
        if _OUT[0] in fitted:
            sizes = {"patch": (old.patch, network.patch), "channels": old.channels}
            kinds = network.out_channels // network.channels
            linear, was = network.final_layer.linear, old.final_layer.linear
            linear.weight.copy_(resized_out(was.weight, **sizes, kinds=kinds))
            linear.bias.copy_(resized_out(was.bias[:, None], **sizes, kinds=kinds)[:, 0])
        for block in network.blocks[len(old.blocks) :]:
            silence(block)

    def fold(self, network: DiT, vector: Tensor) -> None:
        """Adds a constant to the sum of the conditions: in the last bias of the timestep's embedding."""
        last = network.t_embedder.mlp[-1]
        assert isinstance(last, nn.Linear)
        last.bias.add_(vector)

    def notes(self) -> list[str]:
        """Positions, patches, variance, and blocks."""
        new, old = self.new, self.old
        told = []
        if new.grid != old.grid:
            grids = [" x ".join(map(str, network.grid)) for network in (new, old)]
            told.append(f"positions computed for {grids[0]} tokens ({grids[1]} there), not interpolated")
        if new.patch != old.patch and new.channels == old.channels:
            told.append(
                f"patches of {new.patch} fitted to those of {old.patch}: it starts on the picture resized by area"
            )
        kinds = [network.out_channels // network.channels for network in (new, old)]
        if kinds[0] > kinds[1] and new.channels == old.channels:
            told.append("the outputs for the variance are new, and start at zero")
        elif kinds[0] < kinds[1]:
            told.append("the outputs for the variance are left")
        added, least = len(new.blocks) - len(old.blocks), min(len(new.blocks), len(old.blocks))
        if added:
            end = f"new, {'each ' if added > 1 else ''}the identity at the start" if added > 0 else "left"
            told.append(f"{_numbers(least, least + abs(added))} {end}")
        return told


def area(old: int, new: int) -> Tensor:
    """The matrix float64 (new, old) that resizes `old` pixels to `new`: each is the mean of what lies under it."""
    left, right = torch.arange(old) * new, torch.arange(new)[:, None] * old  # pixel borders, in parts of 1 / (old new)
    covered = torch.minimum(left + new, right + old) - torch.maximum(left, right)
    return covered.clamp(min=0).double() / old


def resized_into(weight: Tensor, *, patch: int) -> Tensor:
    """Weights of a patch embedding (width, C, p, p) for patches of another side, float64; see the top."""
    back = torch.linalg.pinv(area(weight.shape[-1], patch))  # (p, p')
    return torch.einsum("dcij, ia, jb -> dcab", weight.double().cpu(), back, back)


def resized_out(rows: Tensor, *, patch: tuple[int, int], channels: int, kinds: int) -> Tensor:
    """Rows (p p kinds C, n) of the last linear for patches of another side, float64; see the top.

    Args:
        patch: side of the old and of the new patch.
        kinds: outputs of each channel wanted, 1 or 2: a variance that was not there is zero.
    """
    old, new = patch
    rows = rearrange(rows.double().cpu(), "(a b k c) n -> a b k c n", a=old, b=old, c=channels)
    rows = torch.nn.functional.pad(rows[:, :, :kinds], (0, 0, 0, 0, 0, max(0, kinds - rows.shape[2])))
    forth = area(old, new)
    rows = torch.einsum("ai, bj, ijkcn -> abkcn", forth, forth, rows)
    return rearrange(rows, "a b k c n -> (a b k c) n")


def silence(block: Any) -> None:
    """Makes a block the identity: its gates zero, or where it has none, the last linear of each of its branches."""
    if getattr(block, "gates", False):
        last = [block.adaLN_modulation[-1]]
    else:
        last = [getattr(block, name).proj for name in ("attn", "cross_attn") if hasattr(block, name)] + [block.mlp.fc2]
    for linear in last:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _bias(module: nn.Conv2d) -> Tensor:
    assert module.bias is not None
    return module.bias


def _numbers(first: int, end: int) -> str:
    return f"block {first} is" if end - first == 1 else f"blocks {first} ... {end - 1} are"
