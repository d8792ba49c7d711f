"""A codec for checks: networks of tokens are to be tried where there is no tokenizer."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Shades:
    """A token is how bright a pixel is, 0 ... vocabulary - 1."""

    kind: ClassVar[str] = "vq-vae"
    factor: ClassVar[int] = 1
    channels: ClassVar[int] = 1
    vocabulary: int

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to int64 (N, H, W)."""
        return ((pixels.mean(1) + 1) / 2 * (self.vocabulary - 1)).round().long()
