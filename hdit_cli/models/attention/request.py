"""What a neighborhood-attention call needs, as the backends see it when they say whether they can serve it."""

from dataclasses import dataclass

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
