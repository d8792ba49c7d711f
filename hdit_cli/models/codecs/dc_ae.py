"""A deep compression autoencoder (Chen et al. 2024, arXiv 2410.10733), as the diffusers library computes it; never trained here.

The library builds it of the settings that its file holds, which were checked before: nothing is downloaded and no code that
came with weights is run.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hdit_cli.errors import UsageError
from hdit_cli.models.codecs.counts import forget_counts
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.latents import OVERLAP, in_tiles

_INSTALL = "pip install 'hdit-cli[latents]'"
_LARGEST = 2048  # pixels on a side that are decoded in one piece, or two tiles' overlap


class DCAE(nn.Module):
    """Encoder and decoder, deterministic: pixels (N, 3, H, W) in [-1, 1] to latents (N, C, h, w), and back.

    Args:
        settings: of the library's `AutoencoderDC`.

    Raises:
        UsageError: the library is not installed, or is too old for these settings.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        try:
            from diffusers import AutoencoderDC  # pyright: ignore[reportMissingImports]
        except (ImportError, RuntimeError) as error:  # it wraps what its own imports raise
            raise UsageError(
                "this codec is a deep compression autoencoder (DC-AE), and the diffusers library, which computes it, cannot be "
                f"imported: {str(error).splitlines()[0][:200]}",
                hint=_INSTALL,
            ) from error
        try:
            whole: Any = AutoencoderDC(in_channels=3, **settings)
        except TypeError as error:
            raise UsageError(
                f"the diffusers library that is installed does not know this autoencoder: {error}", hint=_INSTALL
            ) from error
        self.encoder, self.decoder = whole.encoder, whole.decoder
        self.channels: int = settings["latent_channels"]
        self.factor: int = whole.spatial_compression_ratio
        forget_counts(self)

    def macs_each(self, height: int, width: int) -> tuple[int, int]:
        """Multiply-accumulates of encoding, and of decoding, a picture of this size; its weights are on the meta device."""
        counts = []
        sizes = ((3, height, width), (self.channels, height // self.factor, width // self.factor))
        for part, size in zip((self.encoder, self.decoder), sizes, strict=True):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                part(torch.zeros(1, *size, device="meta"))
            counts.append(counter.get_total_flops() // 2)
        return counts[0], counts[1]


class Compressed(Frozen):
    """A codec: pixels (N, 3, H, W) in [-1, 1] to x0 = z scale, and back; nothing is drawn.

    Args:
        network: the autoencoder; its weights never learn here.
        scale: what its latents are multiplied by.
        sha256: of its file.
    """

    kind = "dc-ae"
    network: DCAE

    def __init__(self, network: DCAE, *, scale: float, sha256: str) -> None:
        super().__init__(network, sha256=sha256)
        self.scale = scale

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of each channel before they are normalised: float32 (C,) each."""
        std = torch.full((self.channels,), 1 / self.scale, device=self.device)
        return torch.zeros_like(std), std

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """x0 and its standard deviation, which is 0, stacked as those of a Gaussian: (N, 2 C, h, w), float32 at least."""
        x0 = self._x0(pixels)
        return torch.cat([x0, torch.zeros_like(x0)], dim=1)

    def latent(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """x0 of what `moments` gave; nothing is drawn."""
        return stored.chunk(2, dim=1)[0]

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """x0 of pixels, in their dtype; nothing is drawn."""
        return self._x0(pixels).to(pixels.dtype)

    def _x0(self, pixels: Tensor) -> Tensor:
        return self.network.encoder(pixels.to(self.dtype)).to(self._wide(pixels)) * self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """Pixels of x0, in its dtype; one image at a time, and a large one in overlapping pieces, so that memory stays flat."""
        z = x0.to(self._wide(x0)) / self.scale
        return torch.cat([self._decoded(each[None].to(self.dtype)) for each in z]).to(x0.dtype)

    def _decoded(self, z: Tensor) -> Tensor:
        tile = max(2 * OVERLAP, _LARGEST // self.factor)
        if max(z.shape[2:]) <= tile:
            return self.network.decoder(z)
        return in_tiles(self.network.decoder, z, factor=self.factor, tile=tile)
