"""What the [model] sections of all networks share: the types of their fields, and what the rest asks of them.

The section of a network is the class of the network's own name in `recipe/TYPE.py`, where TYPE is its name in the catalog.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from hdit_cli import catalog
from hdit_cli.recipe.section import Listed, Problem, Section

_MAX_CLASSES = 1_000_000
TRAINED_CODECS = ("kl-vae", "vq-vae")  # codecs that are networks too: those that a run can train


def _classes(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value == "data" or (is_number and 0 <= value <= _MAX_CLASSES):
        return value
    text = f'must be 0 (no classes), a number of classes up to {_MAX_CLASSES}, or "data" (as many as the data has)'
    raise PydanticCustomError("sentence", "{text}", {"text": text})


Side = Annotated[int, Field(ge=1, le=16384)]
Size = Annotated[tuple[Side, Side], Listed]
Channels = Annotated[int, Field(ge=1, le=64)]
PatchSide = Annotated[int, Field(ge=1, le=256)]
Width = Annotated[int, Field(ge=1, le=16384)]
Classes = Annotated[int | Literal["data"], PlainValidator(_classes)]


class NetworkSection(Protocol):
    """A [model] section.

    Attributes:
        told: what the network is told of the noise: "sigma", "timestep", or "share", of tokens that are noise; "nothing" for an
            autoencoder.
        takes_augment: whether it can be told what was done to a picture.
        unit: (height, width) of which an image's sides must be multiples.
        recomputes: whether training computes something a second time instead of keeping it.
        lighter: switches, as `--set` takes them, with which training takes less memory.
    """

    told: ClassVar[str]
    takes_augment: ClassVar[bool]

    @property
    def type(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    @property
    def classes(self) -> int | Literal["data"]: ...

    @property
    def unit(self) -> tuple[int, int]: ...

    @property
    def recomputes(self) -> bool: ...

    def arguments(self, *, outputs: int) -> dict[str, Any]: ...

    def least_tensors(self) -> int: ...

    def lighter(self) -> Iterator[dict[str, Any]]: ...

    def beyond_data(self) -> Iterator[tuple[str, str]]: ...

    def facts(self) -> dict[str, Any]: ...

    def misfits(self, size: tuple[int, int]) -> list[Problem]: ...

    def misfit_of(
        self, size: tuple[int, int], *, among: Sequence[tuple[int, int]], pixels: int = 1
    ) -> tuple[str, str] | None: ...

    def model_copy(self, *, update: dict[str, Any]) -> Any: ...


def sections() -> dict[str, type[Section]]:
    """The [model] section of each network of the catalog, by type."""
    found = {}
    for name in catalog.names("model"):
        attribute = catalog.CATALOG["model"][name].partition(":")[2]
        found[name] = getattr(import_module(f"hdit_cli.recipe.{name}"), attribute)
    for name in TRAINED_CODECS:
        attribute = catalog.CATALOG["codec"][name].partition(":")[2]
        found[name] = getattr(import_module("hdit_cli.recipe.autoencoder"), attribute)
    return found
