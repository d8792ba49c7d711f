"""What was done to a training picture (Karras et al. 2022, appendix F.2), so that it does not leak into samples."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

INPUTS = 9  # numbers that describe the augmentation


@dataclass(frozen=True)
class Augment:
    """Floats (N, 9); zeros say that the picture is as it was."""

    what: ClassVar[str] = "an augmentation"
    required: ClassVar[bool] = False

    def none_like(self, value: Tensor) -> Tensor:
        """No augmentation."""
        return torch.zeros_like(value)
