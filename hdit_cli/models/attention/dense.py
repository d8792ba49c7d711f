"""Global attention, and attention inside shifted windows (Liu et al. 2021, https://arxiv.org/abs/2103.14030)."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends to every token, softmax scale 1; (N, H, W, heads, d) in and out."""
    height = q.shape[1]
    q, k, v = (rearrange(t, "n h w a d -> n a (h w) d") for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return rearrange(out, "n a (h w) d -> n h w a d", h=height)


def window_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int, shift: int) -> Tensor:
    """Tokens attend inside the window x window square that holds them, softmax scale 1.

    The map is rolled by +shift on both axes first; squares that then join opposite edges of the image stay separate inside.

    Args:
        q, k, v: (N, H, W, heads, d), H and W multiples of `window`.
        window: side of the squares.
        shift: 0 ... window - 1.

    Returns:
        (N, H, W, heads, d).
    """
    height, width, heads = q.shape[1:4]
    if height % window or width % window:
        raise ValueError(f"a map of {height} x {width} tokens does not divide into windows of {window}")
    mask = None
    if shift:
        q, k, v = (torch.roll(t, (shift, shift), dims=(1, 2)) for t in (q, k, v))
        wrapped_y = (torch.arange(height, device=q.device) < shift).long()
        wrapped_x = (torch.arange(width, device=q.device) < shift).long()
        region = 2 * wrapped_y[:, None] + wrapped_x  # (H, W)
        region = rearrange(region, "(ty h) (tx w) -> (ty tx) 1 (h w)", h=window, w=window)
        mask = region[..., :, None] == region[..., None, :]  # (windows, 1, tokens, tokens)
    # windows lead and batch joins heads, so that one mask serves the whole batch
    q, k, v = (rearrange(t, "n (ty h) (tx w) a d -> (ty tx) (n a) (h w) d", h=window, w=window) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    out = rearrange(out, "(ty tx) (n a) (h w) d -> n (ty h) (tx w) a d", ty=height // window, a=heads, h=window)
    return torch.roll(out, (-shift, -shift), dims=(1, 2)) if shift else out
