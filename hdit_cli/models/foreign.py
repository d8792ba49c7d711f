"""Checkpoints of other programs: what a file with their names has to say, so that `hdit convert` can make one of ours of it.

Each format is a module beside the network that its weights are for, and a line in the catalog.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from hdit_cli import catalog


class Unsupported(ValueError):
    """A network, or a part of one, that this project does not have."""


class Misfit(ValueError):
    """Tensors that are not what their names or their configuration say."""


class Unknown(ValueError):
    """What neither the tensors nor a configuration says, and nothing can be built without."""


class Described(NamedTuple):
    """A checkpoint in our terms.

    Attributes:
        values: of a recipe, as plain Python.
        notes: what its user should know of it, a sentence each.
    """

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """A module that reads one format.

    Attributes:
        TITLE: what it is, for messages: "k-diffusion's HDiT".
        NEEDS_CONFIG: whether the tensors alone never say enough.
    """

    TITLE: str
    NEEDS_CONFIG: bool

    def knows(self, names: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
        """Whether these are its names, or this its configuration."""
        ...

    def tensors(self, named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
        """The tensors under our names; those on the meta device give what they can without their numbers.

        Raises:
            Misfit: they are not those of a whole network.
            Unknown: see there.
        """
        ...

    def recipe(self, named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Described:
        """The recipe that trains such a network.

        Args:
            named: its tensors, on the meta device too.

        Raises:
            Misfit, Unsupported, Unknown: see there.
            LookupError, TypeError, ValueError, AttributeError, ArithmeticError: a configuration that is not complete.
        """
        ...

    def remarks(self, named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> tuple[str, ...]:
        """What its user should know of the numbers, a sentence each.

        Args:
            named: the tensors under our names.

        Raises:
            Misfit: they cannot be those of such a network.
        """
        ...


def format_of(names: Mapping[str, Any], config: Mapping[str, Any] | None) -> Format | None:
    """The format that knows these names of tensors or this configuration; None where there is none."""
    for name in catalog.names("foreign"):
        found: Format = catalog.get("foreign", name)
        if found.knows(names, config):
            return found
    return None
