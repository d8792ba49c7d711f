"""What a network is told besides the noisy image: how each condition is dropped in training, and what "none" is."""

from typing import ClassVar, Protocol

from torch import Tensor


class Condition(Protocol):
    """One keyword of a network's call.

    Attributes:
        what: in words, for messages.
        required: whether the network cannot do without it.
    """

    what: ClassVar[str]
    required: ClassVar[bool]

    def none_like(self, value: Tensor) -> Tensor:
        """What says "nothing is told", shaped like a value for N images."""
        ...
