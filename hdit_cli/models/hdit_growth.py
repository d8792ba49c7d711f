"""An HDiT from another one: levels are matched from the innermost outwards, layers and tensors by name and shape.

New layers and levels are the identity at the start; `grow` fits what joins new levels, or other patches, to the old network.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.grow import grow, patches_between
from hdit_cli.models.growth import CLASSES, Misfit
from hdit_cli.models.hdit import HDiT

PATCHES = ("patch_in.proj.weight", "patch_out.proj.weight", "out_norm.scale")
_OF_LEVELS = {"down_levels": 2, "up_levels": 2, "mid_level": 1, "splits": 1}  # and the words after it that name a unit


class HDiTGrowth:
    """See `models.growth.Growth`.

    Attributes:
        outside: levels that the new network has around the old one; negative where it lacks as many.
    """

    adds_classes = True

    def __init__(self, new: HDiT, old: HDiT, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        self.new, self.old, self.ours, self.theirs = new, old, ours, theirs
        self.levels = len(ours["levels"])
        self.outside = self.levels - len(theirs["levels"])
        rows = [f"level {i}" for i in range(min(0, self.outside), self.levels)]
        self.parts = ["conditions", CLASSES, "patches", *rows]

    def old_name(self, name: str) -> str:
        """The number of a level is less by the levels outside."""
        return _shifted(name, -self.outside)

    def new_name(self, name: str) -> str:
        """Negative numbers for levels that the new network lacks."""
        return _shifted(name, self.outside)

    def unit(self, name: str) -> str:
        """A layer, a split, the patches; else the tensor alone."""
        head, *rest = name.split(".")
        if name in PATCHES:
            return "patches"
        if name.startswith("mapping.blocks."):
            return ".".join([head, *rest[:2]])
        return ".".join([head, *rest[: _OF_LEVELS[head]]]) if head in _OF_LEVELS else name

    def part(self, name: str) -> str:
        """Conditions, classes, patches, or a level."""
        head, _, rest = name.partition(".")
        if head == "class_emb":
            return CLASSES
        if name in PATCHES:
            return "patches"
        if head == "mid_level":
            return f"level {self.levels - 1}"
        if head in ("down_levels", "up_levels", "merges", "splits"):
            return f"level {rest.partition('.')[0]}"
        return "conditions"

    def apart(self) -> set[str]:
        """The patches, where the same shape lies over other pixels, or other tokens."""
        return {"patches"} if self.outside or list(self.new.patch) != list(self.old.patch) else set()

    def misfit(self, copies: Mapping[str, str]) -> Misfit | None:
        """All norms hang on the mapping network, and all other levels on the innermost one."""
        for key in ("mapping_width", "mapping_d_ff", "mapping_depth"):
            ours, theirs = self.ours[key], self.theirs[key]
            if (ours < theirs) if key == "mapping_depth" else (ours != theirs):
                return Misfit("", f"model.{key} is {theirs} there, {ours} here", f"--set model.{key}={theirs}")
        if any(name.startswith("mid_level.") for name in copies):
            return None
        ours, theirs = self.ours["levels"][-1], self.theirs["levels"][-1]
        different = [f"{key} {theirs[key]} there, {ours[key]} here" for key in ("width", "d_ff", "head_dim")]
        return Misfit(
            "the innermost level", "; ".join(different), "take over these of its recipe (`hdit info` shows them)"
        )

    def fitted(self, copies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """What `grow` computes from the old network."""
        if PATCHES[0] in copies or self.outside < 0 or not self._joins():
            return {}
        if patches_between(self.old.patch, self.new.patch, levels=self.outside) is None:
            return {}
        joints = [f"merges.{i}.proj.weight" for i in range(self.outside)]
        joints += [f"splits.{i}.{name}" for i in range(self.outside) for name in ("proj.weight", "fac")]
        found: dict[str, tuple[str, ...]] = dict.fromkeys(joints, ())
        return found | dict.fromkeys(PATCHES, PATCHES)

    def _joins(self) -> bool:
        """Whether the width at the joint and the channels of the image are those of the old network."""
        new, old = self.new, self.old
        state = new.state_dict()
        join = state[f"merges.{self.outside - 1}.proj.weight" if self.outside else PATCHES[0]]
        channels = new.patch_out.proj.weight.shape[0] * old.patch[0] * old.patch[1]
        same = channels == old.patch_out.proj.weight.shape[0] * new.patch[0] * new.patch[1]
        return same and join.shape[0] == old.out_norm.scale.shape[0]

    def fit(self, network: HDiT, old: HDiT, *, fitted: Mapping[str, tuple[str, ...]]) -> None:
        """See `grow`."""
        if fitted:
            grow(network, old, levels=self.outside)

    def fold(self, network: HDiT, vector: Tensor) -> None:
        """Adds a constant to the sum of the conditions: through the cosines of no augmentation, which are all 1."""
        weight = network.aug_in_proj.weight
        half = weight.shape[1] // 2
        weight[:, :half] += vector[:, None] / half

    def notes(self) -> list[str]:
        """None: the table says it all."""
        return []


def _shifted(name: str, by: int) -> str:
    """A name with the number of its level changed."""
    head, *rest = name.split(".")
    if head in ("down_levels", "up_levels", "merges", "splits"):
        return ".".join([head, str(int(rest[0]) + by), *rest[1:]])
    return name
