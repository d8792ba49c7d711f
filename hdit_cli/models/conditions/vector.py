"""A free condition vector, which a network that was made for one cannot do without."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Vector:
    """Floats (N, length). It is never dropped: guidance leaves it as it is."""

    what: ClassVar[str] = "a condition vector"
    required: ClassVar[bool] = True
    length: int

    def none_like(self, value: Tensor) -> Tensor:
        """The vector itself: there is no other."""
        return value
