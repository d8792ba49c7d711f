"""What a neighborhood-attention call needs, as the backends see it when they say whether they can serve it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Request:
    """Facts a backend decides on.

    Attributes:
        device: "cpu", "cuda", "mps", ...
        dtype: of q, k and v.
        head_dim: channels of a head.
        kernel: side of the window.
        gradient: whether a backward pass will follow.
        tracing: whether the call is being exported or compiled to a graph.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    kernel: int
    gradient: bool = True
    tracing: bool = False


class Held(NamedTuple):
    """Memory of a call in training, in numbers for each token and head, beyond q, k and v as they came.

    Attributes:
        kept: from the forward to the backward pass.
        work: during the backward pass alone.
    """

    kept: float
    work: float
