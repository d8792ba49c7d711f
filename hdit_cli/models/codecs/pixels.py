"""No codec: the network sees the pixels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hdit_cli.recipe.codec import made


@dataclass(frozen=True)
class Pixels:
    """Pixels as they are, (N, channels, H, W) in [-1, 1].

    Attributes:
        vocabulary: how many tokens there are, where the network sees tokens, whose codec is not known; else 0.
    """

    kind: ClassVar[str] = "pixels"
    factor: ClassVar[int] = 1
    channels: int = 3
    vocabulary: int = 0

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """The pixels; nothing is drawn."""
        return pixels

    def decode(self, x0: Tensor) -> Tensor:
        """The pixels."""
        return x0

    def pictures(self) -> str:
        """Why what it decodes is no picture, one sentence; "" where it is one."""
        if self.channels in (1, 3) and not self.vocabulary:
            return ""
        what = made(self.channels, self.vocabulary)
        return f"it works on {what}, and the codec that turns pictures into them and back is missing"

    def fingerprint(self) -> str:
        """Nothing: there are no weights."""
        return ""
