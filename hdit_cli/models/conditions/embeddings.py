"""What another network made of a text or a picture: vectors, as many as there are places."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """Floats (N, L, width), (N, width) for a single place, or bool (N, L) that says which places are real.

    Absence says "nothing is told": no place at all.
    """

    what: ClassVar[str] = "embeddings of a text or a picture"
    required: ClassVar[bool] = False

    def none_like(self, value: Tensor) -> Tensor:
        """No places: (N, 0, width), or (N, 0) of a mask."""
        single = value.ndim == 2 and value.is_floating_point()
        return (value[:, None] if single else value)[:, :0]
