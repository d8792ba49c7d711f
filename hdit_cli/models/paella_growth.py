"""A Paella from another one of its levels and blocks: another size, vocabulary or codec, other classes, told of other things.

What is new is as in a new network: the table of other tokens, the maps of what the old one was not told. The second linear of a
T block is zero there, so that a network that learns classes begins as the old one but for the class in its attention.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.growth import CLASSES, Misfit
from hdit_cli.models.paella import Paella

_SHAPE = ("widths", "blocks", "kinds", "patch", "kernel")  # settings of the recipe that blocks hang on
_OWN = "condition_mapper"


class PaellaGrowth:
    """See `models.growth.Growth`."""

    def __init__(self, new: Paella, old: Paella, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        self.new, self.old, self.ours, self.theirs = new, old, ours, theirs
        self.parts = ["conditions", CLASSES, "tokens", "blocks"]
        self.adds_classes = False  # a class is a place of the sequence

    def old_name(self, name: str) -> str:
        """The same."""
        return name

    def new_name(self, name: str) -> str:
        """The same."""
        return name

    def unit(self, name: str) -> str:
        """A block, or the map between two levels; else the tensor alone."""
        head, *rest = name.split(".")
        return ".".join([head, *rest[:2]]) if head.endswith("_blocks") and _OWN not in rest else name

    def part(self, name: str) -> str:
        """Conditions, classes, tokens (what they become and the logits), or blocks."""
        heads = {"class_embedding": CLASSES, "down_blocks": "blocks", "up_blocks": "blocks"}
        told = name.partition(".")[0] in ("byt5_mapper", "clip_mapper", "clip_image_mapper")
        return heads.get(name.partition(".")[0], "conditions" if told else "tokens")

    def apart(self) -> set[str]:
        """None: a table of as many tokens counts as that of the same, and the codec's change is told beside."""
        return set()

    def misfit(self, copies: Mapping[str, str]) -> Misfit | None:
        """Other levels or blocks."""
        for key in _SHAPE:
            ours, theirs = self.ours[key], self.theirs[key]
            if ours != theirs:
                told = "[{}]".format(",".join(map(str, theirs))) if isinstance(theirs, list) else theirs
                if key == "kinds":
                    told = str(theirs).replace("'", '"').replace(" ", "")
                return Misfit("", f"model.{key} is {theirs} there, {ours} here", f"--set 'model.{key}={told}'")
        return None

    def fitted(self, copies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Nothing."""
        return {}

    def fit(self, network: Any, old: Any, *, fitted: Mapping[str, tuple[str, ...]]) -> None:
        """Nothing."""

    def fold(self, network: Any, vector: Tensor) -> None:
        raise AssertionError("a class is a place of the sequence, and no constant takes its place")

    def notes(self) -> list[str]:
        """A vocabulary of its own begins anew."""
        if self.new.vocabulary == self.old.vocabulary:
            return []
        return [
            f"it knew {self.old.vocabulary:,} tokens, and here there are {self.new.vocabulary:,}: what they mean is learnt anew"
        ]
