"""Neighborhood attention by its definition, slow on purpose: every query gathers its own window. The judge of the other backends.

The window of a query holds kernel * kernel tokens. It is centred where it fits and moved inward at an edge; nothing is
padded (Hassani et al. 2023, https://arxiv.org/abs/2204.07143). An even kernel reaches one token further back than forward.
"""

import torch
from einops import rearrange
from torch import Tensor

from hdit_cli.models.attention.request import Request


def refuse(request: Request) -> str:
    """Why this backend is not chosen by itself."""
    return "the slow reference; it runs only when asked for by name"


def window_index(length: int, kernel: int, *, device: torch.device) -> Tensor:
    """Token numbers of the window of each position along one axis: int64 (length, kernel)."""
    start = (torch.arange(length, device=device) - kernel // 2).clamp(0, length - kernel)
    return start[:, None] + torch.arange(kernel, device=device)


def attend(q: Tensor, k: Tensor, v: Tensor, *, kernel: int) -> Tensor:
    """Neighborhood attention with softmax scale 1.

    Args:
        q, k, v: (N, H, W, heads, d).
        kernel: side of the window in tokens, at most H and W.

    Returns:
        (N, H, W, heads, d).
    """
    height, width = q.shape[1:3]
    rows = window_index(height, kernel, device=q.device)
    columns = window_index(width, kernel, device=q.device)
    k = k[:, rows][:, :, :, columns]  # (N, H, kernel, W, kernel, heads, d)
    v = v[:, rows][:, :, :, columns]
    scores = torch.einsum("n h w a d, n h i w j a d -> n h w a i j", q, k)
    weights = rearrange(scores, "n h w a i j -> n h w a (i j)").softmax(-1)
    weights = rearrange(weights, "n h w a (i j) -> n h w a i j", i=kernel)
    return torch.einsum("n h w a i j, n h i w j a d -> n h w a d", weights, v)
