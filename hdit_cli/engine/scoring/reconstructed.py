"""Pictures as an autoencoder gives them back: what it is scored by, and the best that a model of its latents could make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.data.loader import to_x0
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.generate import to_uint8
from hdit_cli.engine.scoring.picture_sets import Batch, Stored
from hdit_cli.precision import computing


class There(Protocol):
    """The way through an autoencoder and back, of pixels in [-1, 1]."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Trained:
    """An autoencoder as a run has it, perhaps in training: nothing of it is changed.

    Attributes:
        digest: of its weights.
    """

    model: Model
    digest: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels as the network takes them."""
        return pixels.to(self.model.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        """What the network gives back, of the means of its latents."""
        return self.model.network.through(x0, None).picture

    def fingerprint(self) -> str:
        return self.digest


class Reconstructed(Stored):
    """Pictures that an autoencoder has encoded, to the mean of its latents, and decoded.

    Args:
        n: how many; None is all.
    """

    def __init__(self, stored: Stored, codec: There, *, name: str = "", n: int | None = None) -> None:
        super().__init__(stored.reader, name=name or f"{stored.name} through the codec", n=n or stored.count)
        self._codec = codec

    @cached_property
    def fingerprint(self) -> str:
        """Of the pictures and the codec."""
        return files.sha256_of(f"{self.reader.fingerprint} {self._codec.fingerprint()}".encode())

    def batches(self, index: Sequence[int]) -> Iterator[Batch]:
        for numbers, pictures in super().batches(index):
            yield numbers, [self._through(picture) for picture in pictures]

    def _through(self, picture: np.ndarray) -> np.ndarray:
        device = self._codec.device
        x = to_x0(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(device))
        with torch.no_grad(), computing("fp32", device):
            return to_uint8(self._codec.decode(self._codec.encode(x)))[0].numpy()
