"""What an autoencoder offers while it is trained: the questions that the rest asks of every network, and one call."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from hdit_cli.models.conditions import Condition
from hdit_cli.models.network import Neighbourhood, Role


class Through(NamedTuple):
    """What became of pictures on their way through an autoencoder.

    Attributes:
        picture: (N, 3, H, W), about in [-1, 1].
        penalty: (N,), what the latent is charged for, as its kind of latent counts it.
        latent: (N, C, h, w), before any quantising; of a Gaussian its mean.
        detail: the standard deviation of each latent value, or int64 (N, h, w), which code it became.
    """

    picture: Tensor
    penalty: Tensor
    latent: Tensor
    detail: Tensor


class Autoencoder(nn.Module):
    """Pictures to a latent and back, as a network that a run trains. It is told of no noise and of no condition.

    Attributes:
        factor: pixels on a side of one latent value.
        latents: (C,) channels of the latent.
        gaussian: whether a latent is drawn, from a mean and a standard deviation.
    """

    told: ClassVar[str] = "nothing"
    gaussian: ClassVar[bool]
    classes = 0
    pictures = 3
    factor: int
    latents: int

    def through(self, pixels: Tensor, noise: Tensor | None) -> Through:
        """Pixels (N, 3, H, W) in [-1, 1] to what they come back as; `noise` (N, C, h, w) draws the latent, None takes its mean."""
        raise NotImplementedError

    @property
    def last(self) -> Tensor:
        """The weight of the layer that makes the pixels."""
        raise NotImplementedError

    def macs_each(self, height: int, width: int) -> tuple[int, int]:
        """Multiply-accumulates of encoding, and of decoding, a picture of this size."""
        raise NotImplementedError

    def macs(self, height: int, width: int) -> int:
        """Of both ways."""
        return sum(self.macs_each(height, width))

    @property
    def unit(self) -> tuple[int, int]:
        return self.factor, self.factor

    @property
    def seams(self) -> tuple[int, int]:
        return self.factor, self.factor

    def wants(self) -> dict[str, Condition]:
        return {}

    def parameter_groups(self) -> dict[str, Role]:
        """Weights of linear and convolutional layers decay."""
        learn = {name: each for name, each in self.named_parameters() if each.requires_grad}
        return {name: Role(slow=False, decays=each.ndim > 1) for name, each in learn.items()}

    def matrices(self) -> dict[str, tuple[int, ...]]:
        return {}

    def fits(self, height: int, width: int) -> str:
        bad = [side for side in (height, width) if side % self.factor]
        return f"{bad[0]} is no multiple of {self.factor}, the factor of the autoencoder" if bad else ""

    def layers(self) -> Iterator[nn.Module]:
        return iter(())

    def timed_parts(self) -> Iterator[tuple[nn.Module, str]]:
        return iter(())

    def neighbourhoods(self, height: int, width: int) -> list[Neighbourhood]:
        return []
