"""Latents of a frozen KL autoencoder as the network sees them: normalised, (N, C, h, w)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.kl_vae import KLVAE, Gaussian
from hdit_cli.recipe.codec import made

TILE, OVERLAP = 96, 16  # of latents that are decoded in one piece; larger maps are decoded in pieces


class Latents(Frozen):
    """A codec: pixels (N, 3, H, W) in [-1, 1] to x0 = (z - shift) scale, and back.

    Args:
        network: the autoencoder; its weights never learn here.
        shift, scale: one number, or one for each channel.
        sha256: of its file.
    """

    kind = "kl-vae"
    draws = True
    shift: Tensor
    scale: Tensor

    def __init__(self, network: KLVAE, *, shift: Sequence[float], scale: Sequence[float], sha256: str) -> None:
        super().__init__(network, sha256=sha256)
        for name, values in (("shift", shift), ("scale", scale)):
            each = torch.tensor(values, dtype=torch.float32).expand(network.channels)
            self.register_buffer(name, each.clone().view(-1, 1, 1))

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of each channel before they are normalised: float32 (C,) each."""
        return self.shift.flatten(), 1 / self.scale.flatten()

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """What an encoded set keeps, mean and standard deviation of z as it is: (N, 2 C, h, w), float32 at least."""
        gaussian = Gaussian(self.network.moments(pixels.to(self.dtype)).to(self._wide(pixels)))
        return torch.cat([gaussian.mean, gaussian.std], dim=1)

    def latent(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """x0 of what `moments` gave: drawn by `noise` (N, C, h, w), or its mean."""
        mean, std = stored.chunk(2, dim=1)
        mean, std = (mean - self.shift) * self.scale, std * self.scale
        return mean if noise is None else mean + std * noise

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """x0 of pixels, in their dtype."""
        return self.latent(self.moments(pixels), noise).to(pixels.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """Pixels of x0, in its dtype; one image at a time, and a large one in overlapping pieces, so that memory stays flat."""
        z = x0.to(self._wide(x0)) / self.scale + self.shift
        return torch.cat([self._decoded(each[None].to(self.dtype)) for each in z]).to(x0.dtype)

    def _decoded(self, z: Tensor) -> Tensor:
        if max(z.shape[2:]) <= TILE:
            return self.network.decode(z)
        return in_tiles(self.network.decode, z, factor=self.factor)


def in_tiles(decode: Callable[[Tensor], Tensor], z: Tensor, *, factor: int, tile: int = TILE) -> Tensor:
    """A map decoded in overlapping tiles, which fade into each other: (1, C, h, w) to (1, 3, factor h, factor w).

    The decoder's norms and its attention see a tile at a time, so the result is near that in one piece, not equal.
    """
    height, width = (side * factor for side in z.shape[2:])
    total = z.new_zeros(1, 3, height, width)
    weights = z.new_zeros(1, 1, height, width)
    for top in _starts(z.shape[2], tile):
        for left in _starts(z.shape[3], tile):
            part = decode(z[:, :, top : top + tile, left : left + tile])
            fade = _fade(part.shape[2], OVERLAP * factor, like=part)[:, None] * _fade(
                part.shape[3], OVERLAP * factor, like=part
            )
            rows = slice(top * factor, top * factor + part.shape[2])
            columns = slice(left * factor, left * factor + part.shape[3])
            total[:, :, rows, columns] += part * fade
            weights[:, :, rows, columns] += fade
    return total / weights


def _starts(length: int, tile: int) -> Iterator[int]:
    """Where tiles begin: at equal steps that overlap by OVERLAP at least, the last one ends at the end."""
    if length <= tile:
        yield 0
        return
    count = -(-(length - OVERLAP) // (tile - OVERLAP))
    yield from (round(i * (length - tile) / (count - 1)) for i in range(count))


def _fade(length: int, edge: int, *, like: Tensor) -> Tensor:
    """Weights along an axis: they rise over `edge` pixels at both ends, and never reach 0."""
    place = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return (torch.minimum(place, length - place) / edge).clamp(max=1.0)


@dataclass(frozen=True)
class Absent:
    """A codec that is needed and not at hand.

    Attributes:
        type: its name in the catalog.
        sha256: of its file.
        factor: how much smaller latents are than pictures.
        channels: of what the network sees; 1 of tokens.
        vocabulary: how many tokens there are; 0 of latents.
    """

    type: str
    sha256: str
    factor: int
    channels: int
    vocabulary: int = 0

    @property
    def kind(self) -> str:
        """Its name in the catalog."""
        return self.type

    def pictures(self) -> str:
        """Why there are no pictures, one sentence."""
        return f"it works on {made(self.channels, self.vocabulary)}, and its codec {self.name} is not at hand"

    @property
    def name(self) -> str:
        """What its file is called where it is looked for."""
        return file_name(self.kind, self.sha256)

    def fingerprint(self) -> str:
        """SHA-256 of its file."""
        return self.sha256

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        raise ValueError(self.pictures())

    def decode(self, x0: Tensor) -> Tensor:
        raise ValueError(self.pictures())


def file_name(kind: str, sha256: str) -> str:
    """What a codec's file is called beside a checkpoint that needs it."""
    return f"{kind}-{sha256[:8]}.safetensors"
