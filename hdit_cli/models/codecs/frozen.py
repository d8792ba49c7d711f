"""What all codecs that are at hand have in common: a network that never learns, read from a file."""

from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A codec: pixels (N, 3, H, W) in [-1, 1] to what a network sees, and back.

    Args:
        network: its weights never learn here.
        sha256: of its file.

    Attributes:
        kind: its name in the catalog.
        file: where it was read, where that is known.
        draws: whether what a network sees may be drawn by noise.
        vocabulary: how many tokens there are; 0 where a network sees latents.
    """

    kind = ""
    file = ""
    vocabulary = 0
    draws = False

    def __init__(self, network: Any, *, sha256: str) -> None:
        super().__init__()
        self.network, self.sha256 = network.requires_grad_(False), sha256
        self.eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Nothing: it is always used as it was read."""
        return super().train(False)

    @property
    def factor(self) -> int:
        """How much smaller than a picture the map is that a network sees."""
        return self.network.factor

    @property
    def channels(self) -> int:
        """Of what a network sees."""
        return self.network.channels

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def moments(self, pixels: Tensor) -> Tensor:
        """What is kept of pixels, of which `latent` makes what a network sees."""
        raise NotImplementedError

    def latent(self, stored: Tensor, noise: Tensor | None) -> Tensor:
        """What a network sees, of what `moments` gave."""
        raise NotImplementedError

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """What a network sees of pixels."""
        raise NotImplementedError

    def decode(self, x0: Tensor) -> Tensor:
        """Pixels of what a network sees."""
        raise NotImplementedError

    def _wide(self, x: Tensor) -> torch.dtype:
        """What it computes around its network in, of the dtype of x: float32 at least."""
        return torch.promote_types(x.dtype, torch.float32)

    def pictures(self) -> str:
        """Why what it decodes is no picture: it is one."""
        return ""

    def fingerprint(self) -> str:
        """SHA-256 of its file."""
        return self.sha256
