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
        tracing: whether the call is being exported: the graph goes to machines that are not known.
        compiling: whether it becomes part of a compiled graph, which runs here.
        deterministic: whether the same input must give the same bits.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    kernel: int
    gradient: bool = True
    tracing: bool = False
    compiling: bool = False
    deterministic: bool = False
