"""What a picture is to a network: codecs turn float pixels into what it sees, and back."""

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Pixels to what the network sees, and back; floats inside, uint8 only at the very end.

    Attributes:
        factor: pixels on a side of one value.
        channels: of what the network sees.
    """

    factor: int
    channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Float (N, C, H, W) in [-1, 1] to x0 (N, channels, H / factor, W / factor)."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """The way back, differentiable; a little beyond [-1, 1] where x0 is."""
        ...

    def pictures(self) -> str:
        """Why what it decodes is no picture, one sentence; "" where it is one."""
        ...

    def fingerprint(self) -> str:
        """What tells this codec from others; "" for none."""
        ...
