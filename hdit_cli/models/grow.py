"""A trained network inside a larger one: levels put around it, so that at first it works on the picture made smaller.

The new outermost levels are the identity at the start, as every new layer is. What joins them to the old network is linear:
patches in, merges, splits, patches out. These are solved for, so that the old network sees the picture averaged over `factor`
pixels, and its answer is spread over them again. Averaging divides the noise by `factor` too: the old network is told a noise
level smaller by as much, which is a rotation of its Fourier features.

Features of a patch are ordered (row, column, channel); widths are written w, the old network's outermost, and k, the new one's.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from hdit_cli.models.hdit import HDiT

# of the old network's answer in a new split. At 1 the skip has no gradient; 0.5, as in a new split, starts higher. On 32x32
# pictures around a 16x16 model: mean loss of the first 8 steps 0.036 at 1, 0.039 at 0.7, 0.044 at 0.5 (new: 0.063), and of
# steps 95 ... 110 0.030, 0.026, 0.024 (new: 0.035)
_MIX = 0.7


@dataclass(frozen=True)
class Ends:
    """What a network does between pixels and its outermost tokens.

    Attributes:
        patch: (rows, columns) of pixels.
        into: (w, rows columns C).
        out: (rows columns C, w), the scale of the last norm in it.
    """

    patch: tuple[int, int]
    into: Tensor
    out: Tensor


def ends_of(network: HDiT) -> Ends:
    """The ends of a network."""
    out = network.patch_out.proj.weight * network.out_norm.scale
    return Ends(network.patch, network.patch_in.proj.weight.detach().double(), out.detach().double())


def patches_between(old: tuple[int, int], new: tuple[int, int], *, levels: int) -> list[tuple[int, int]] | None:
    """The patch after each of `levels` new levels, the last one `new`; None where they do not lie over each other.

    Every level but the last keeps the patch and so doubles the picture; the last takes the rest.
    """
    times = 2 if levels else 1
    if any((times * n) % o for n, o in zip(new, old, strict=True)):
        return None
    return [*[old] * (levels - 1), new]


def averaging(patch: tuple[int, int], factor: tuple[int, int], *, channels: int) -> Tensor:
    """The matrix that averages over `factor` pixels: (rows columns C, rows factor columns factor C)."""
    rows, columns = (
        torch.kron(torch.eye(p, dtype=torch.float64), torch.full((1, f), 1 / f, dtype=torch.float64))
        for p, f in zip(patch, factor, strict=True)
    )
    return torch.kron(torch.kron(rows, columns), torch.eye(channels, dtype=torch.float64))


def rescaled(old: Ends, new: tuple[int, int], *, times: int) -> tuple[Tensor, Tensor, float]:
    """Ends for patches that cover `new` times `times` pixels, of a picture larger by a factor.

    The preconditioner scales the larger picture, and the answer, by up to `factor` otherwise than the old network knows them,
    depending on the noise level; their square roots are the middle.

    Returns:
        into (w, P), out (P, w), and the factor, where P counts the pixels of the larger patch.
    """
    size = (new[0] * times, new[1] * times)
    factor = (size[0] // old.patch[0], size[1] // old.patch[1])
    channels = old.into.shape[1] // (old.patch[0] * old.patch[1])
    mean = averaging(old.patch, factor, channels=channels)
    larger = math.sqrt(factor[0] * factor[1])
    spread = mean.mT * factor[0] * factor[1]
    return old.into @ mean * larger**0.5, spread @ old.out / larger**0.5, larger


def put_around(old: Ends, patch: tuple[int, int], *, into: Tensor, merge: Tensor, split: Tensor) -> tuple[Ends, float]:
    """Joins one new level around a network: fills `merge` (w, 4 k) and `split` (4 k, w), given the new patches `into` (k, P).

    Exact where k is at least the number of pixel values of a patch; else the nearest in least squares.

    Returns:
        the ends of the larger network, and the factor by which its pictures are larger.
    """
    wanted_in, wanted_out, factor = rescaled(old, patch, times=2)
    fresh = into.detach().double()
    shape = {"a": 2, "b": 2, "i": patch[0], "j": patch[1]}
    quarters_in = rearrange(wanted_in, "w (a i b j c) -> a b w (i j c)", **shape)
    merge.copy_(rearrange(quarters_in @ torch.linalg.pinv(fresh), "a b w k -> w (a b k)"))

    quarters_out = rearrange(wanted_out, "(a i b j c) w -> a b (i j c) w", **shape)
    k, w = fresh.shape[0], old.out.shape[1]
    basis, sizes, _ = torch.linalg.svd(rearrange(quarters_out, "a b p w -> p (a b w)"), full_matrices=False)
    rank = min(k, int((sizes > sizes[0] * 1e-9).sum()))
    basis = basis[:, :rank]  # (P, rank): what the answer of one patch can be
    code = basis.mT @ quarters_out  # (2, 2, rank, w)
    size = code.square().sum(-1).mean().sqrt().clamp(min=1e-12)
    places = torch.linalg.qr(torch.randn(k, rank, dtype=torch.float64)).Q  # (k, rank)
    rest = torch.randn(2, 2, k, w, dtype=torch.float64) / w**0.5  # keeps the length of a token for the last norm
    filled = places @ (code / size) + rest - places @ (places.mT @ rest)
    split.copy_(rearrange(filled, "a b k w -> (a b k) w"))
    return Ends(patch, fresh, size * basis @ places.mT), factor


@torch.no_grad()
def grow(network: HDiT, old: HDiT, *, levels: int) -> float:
    """Fills what joins `levels` new outer levels of `network` to the old network inside; with 0 levels, its patches.

    The parts of the old network itself must have been copied before. Random directions come from torch's own generator.

    Returns:
        how many times larger the pictures are.
    """
    ends, state = ends_of(old), network.state_dict()
    steps = patches_between(old.patch, network.patch, levels=levels)
    assert steps is not None, "the caller has asked"
    total = 1.0
    if not levels:
        into, out, total = rescaled(ends, network.patch, times=1)
        ends = Ends(network.patch, into, out)
    for level, patch in zip(reversed(range(levels)), steps, strict=False):
        merge, split = state[f"merges.{level}.proj.weight"], state[f"splits.{level}.proj.weight"]
        into = state["patch_in.proj.weight"]
        if level:
            pixels = math.prod(patch) * ends.into.shape[1] // math.prod(ends.patch)
            into = torch.randn(split.shape[0] // 4, pixels, dtype=torch.float64) / pixels**0.5
        ends, factor = put_around(ends, patch, into=into, merge=merge, split=split)
        state[f"splits.{level}.fac"].fill_(_MIX)
        total *= factor
    state["patch_in.proj.weight"].copy_(ends.into)
    state["patch_out.proj.weight"].copy_(ends.out)
    state["out_norm.scale"].fill_(1.0)
    lower_noise(network, total)
    return total


def lower_noise(network: HDiT, factor: float) -> None:
    """Makes a network take a noise level for one `factor` times smaller: features at ln(sigma) / 4 - ln(factor) / 4."""
    weight = network.time_in_proj.weight
    angle = 2 * math.pi * network.time_emb.weight[:, 0].double() * (math.log(factor) / 4)
    cosines, sines = weight.double().chunk(2, dim=1)
    turned = [cosines * angle.cos() - sines * angle.sin(), cosines * angle.sin() + sines * angle.cos()]
    weight.copy_(torch.cat(turned, dim=1))
