"""What an autoencoder says of starting from another one's weights: tensors of the same name and shape are taken over."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.growth import Misfit


class AutoencoderGrowth:
    """See `models.growth.Growth`: nothing is computed, and there are no classes."""

    adds_classes = False
    parts = ("the encoder", "around the latent", "the decoder")

    def __init__(self, new: Any, old: Any, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        self._gaussian = new.gaussian

    def old_name(self, name: str) -> str:
        return name

    def new_name(self, name: str) -> str:
        return name

    def unit(self, name: str) -> str:
        return name

    def part(self, name: str) -> str:
        first = name.partition(".")[0]
        if first in ("encoder", "in_block", "down_blocks"):
            return self.parts[0]
        return self.parts[2] if first in ("decoder", "up_blocks", "out_block") else self.parts[1]

    def apart(self) -> set[str]:
        return set()

    def misfit(self, copies: Mapping[str, str]) -> Misfit | None:
        if any(self.part(name) != self.parts[1] for name in copies):
            return None
        return Misfit("", "no layer has the same shape", "give both the same widths and latent")

    def fitted(self, copies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        return {}

    def fit(self, network: Any, old: Any, *, fitted: Mapping[str, tuple[str, ...]]) -> None:
        return None

    def fold(self, network: Any, vector: Tensor) -> None:
        raise NotImplementedError("an autoencoder has no classes")

    def notes(self) -> list[str]:
        return []
