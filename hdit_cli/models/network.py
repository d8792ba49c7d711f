"""What every backbone offers. The rest of the house asks a network these questions and knows none of its inner words."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from hdit_cli.models.conditions import Condition


class Role(NamedTuple):
    """How a parameter learns: at the smaller rate of what shapes the conditions, and with weight decay."""

    slow: bool
    decays: bool


class Neighbourhood(NamedTuple):
    """A local attention inside a network: where, on which map, and how far it sees.

    Attributes:
        place: number of the level it stands on.
        shape: (H, W, heads, d) of queries, keys and values.
        kernel: side of the neighborhood in tokens.
    """

    place: int
    shape: tuple[int, int, int, int]
    kernel: int


class Network(Protocol):
    """A backbone: an `nn.Module` from a noisy image and its level to an answer.

    Attributes:
        told: what it is told of the noise: "sigma", "timestep", or "share", of tokens that are noise.
        title, paper: its name in words, and the arXiv number that tells of it.
        architecture: what the header of a file calls it (`modelspec.architecture`).
        channels: of the image; 1 of tokens.
        classes: number of classes; 0 for none.
        unit: (height, width) of which an image's sides must be multiples.
        seams: (height, width) in pixels of what it makes as one piece; between them seams may show.
    """

    told: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    architecture: ClassVar[str]
    channels: int
    classes: int

    @property
    def unit(self) -> tuple[int, int]: ...

    @property
    def seams(self) -> tuple[int, int]: ...

    def __call__(self, x: Tensor, level: Tensor, **conditions: Any) -> Tensor:
        """(N, C, H, W), (N,) and conditions by name to (N, C or 2C, H, W); tokens int64 (N, h, w) to logits (N, K, h, w)."""
        ...

    def wants(self) -> dict[str, Condition]:
        """The conditions that it takes, by keyword."""
        ...

    def parameter_groups(self) -> dict[str, Role]:
        """The role of each trainable parameter, by name."""
        ...

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Weights of the linears inside layers, by name, and the rows of each of the matrices that they are made of."""
        ...

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image."""
        ...

    def fits(self, height: int, width: int) -> str:
        """Why it cannot be given images of this size, one sentence; "" where it can."""
        ...

    def layers(self) -> Iterator[nn.Module]:
        """Its repeated layers, which hold most of its weights; each is called whole, and its weights are used nowhere else.

        Where weights are divided among processes, one of them at a time is put together.
        """
        ...

    def timed_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Modules of which `hdit bench` tells the time, each with the name of its part."""
        ...

    def neighbourhoods(self, height: int, width: int) -> list[Neighbourhood]:
        """Its local attentions on an image of this size."""
        ...
