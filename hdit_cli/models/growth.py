"""What a network tells of starting from the weights of another one of its kind, which may be of another size or depth.

`engine/training/init.py` asks these questions of the catalog's "growth" of the network's type, and knows nothing of its inner
words itself. Names are those of state dicts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

CLASSES = "classes"  # the row of the table for embeddings of classes, which are matched by name


class Misfit(NamedTuple):
    """Why nothing useful could be taken over.

    Attributes:
        part: what of the old network does not fit, as in "the innermost level"; "" for all of it.
        why: what differs.
        hint: what makes it fit, in the imperative.
    """

    part: str
    why: str
    hint: str


class Growth(Protocol):
    """From an old network to a new one. Made of both, of which it looks at shapes alone, and of their [model] sections as dicts.

    Attributes:
        parts: rows of the table of what comes from where, in order; one of them is `CLASSES`.
        adds_classes: the embedding of a class is added to the other conditions, so that a constant can take its place.
    """

    parts: list[str]
    adds_classes: bool

    def __init__(self, new: Any, old: Any, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None: ...

    def old_name(self, name: str) -> str:
        """The name that a tensor of the new network has in the old one, whether there is such a tensor or not."""
        ...

    def new_name(self, name: str) -> str:
        """The other way."""
        ...

    def unit(self, name: str) -> str:
        """What a tensor of the new network is loaded together with or not at all; its own name where it stands alone."""
        ...

    def part(self, name: str) -> str:
        """The row of the table that a tensor stands in, by its name in the new network."""
        ...

    def apart(self) -> set[str]:
        """Units that are not loaded even where their shapes agree, as they mean something else."""
        ...

    def misfit(self, copies: Mapping[str, str]) -> Misfit | None:
        """What stops everything, told the names that would be loaded, new => old."""
        ...

    def fitted(self, copies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Names in the new network that are computed instead, each with the names in the old one that are used for it."""
        ...

    def fit(self, network: Any, old: Any, *, fitted: Mapping[str, tuple[str, ...]]) -> None:
        """Fills in what is fitted, and makes the identity of what is new where it is not already, once the rest is loaded."""
        ...

    def fold(self, network: Any, vector: Tensor) -> None:
        """Adds a constant to the conditions, as the embedding of a class was; only where `adds_classes`."""
        ...

    def notes(self) -> list[str]:
        """What else a user should know, in words."""
        ...
