"""Norms and rotations with backward passes written by hand, for eager mode on a CPU.

There a pass over a map costs as much as a good part of a matrix product, and autograd makes many: a full map for each
factor of a product, copies to put slices together. Here each operation reads and writes as little as it can. Compilers and
GPU kernels fuse by themselves, so everything else keeps to the formulas in `layers`; `by_hand` decides.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable


def by_hand(x: Tensor) -> bool:
    """Whether x is best served here: eager mode on a CPU, float32 or float64, no autocast."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


class ScaledRMSNorm(torch.autograd.Function):
    """x scale rho with rho = 1 / sqrt(mean(x^2) + eps) over the last axis.

    With g the gradient of the result and C the width: dx = rho (g scale - x rho^2 / C sum_c(g scale x)),
    dscale = sum over tokens of g x rho.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:  # (N, T, C), (N, C) => (N, T, C)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rho = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, rho)
        return (x * rho).mul_(scale[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, rho = ctx.saved_tensors
        product = grads[0] * x
        along = product @ scale[:, :, None]  # (N, T, 1)
        grad_scale = (rho.mT @ product)[:, 0]
        grad = torch.mul(grads[0], scale[:, None], out=product)
        grad.addcmul_(x, along.mul_(rho).mul_(rho), value=-1 / x.shape[-1]).mul_(rho)
        return grad, grad_scale, None


def scaled_rms_norm(x: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * scale for a map (N, H, W, C) and a scale for each image, (N, C)."""
    out: Any = ScaledRMSNorm.apply(x.flatten(1, 2), scale, eps)
    return out.view(x.shape)


def pairs_together(weight: Tensor, *, heads: int) -> Tensor:
    """Rows of a projection to q and k such that the two channels of a rotation, (i, i + quarter), come out side by side.

    Scores are sums over channels, so an order of channels that q and k share changes nothing but roundings.
    """
    order = "(t a half pair i) c -> (t a half i pair) c"
    return rearrange(weight, order, t=2, a=heads, half=2, pair=2)


class RotatedCosine(torch.autograd.Function):
    """q and k of one tensor (N, H, W, 2, heads, d), pairs together: x sqrt(scale) / |x|, then the rotation.

    With r = sqrt(scale) rho, rho = 1 / sqrt(sum(x^2) + eps), and g the gradient turned back: dx = r (g - x rho^2 g.x) and
    dscale = sum of rho g.x / (2 sqrt(scale)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, turn: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rho = _inverse_length(x, eps)
        ctx.save_for_backward(x, scale, turn, rho)
        return _turned(x * (rho * scale.sqrt()[:, None]), turn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale, turn, rho = ctx.saved_tensors
        root = scale.sqrt()[:, None]
        grad = torch.stack(grads, dim=3)
        _rotated_pairs(grad).mul_(turn.conj())
        along = (grad * x).sum(-1, keepdim=True).mul_(rho)
        grad_scale = along.sum((0, 1, 2, 3)) / (2 * root)
        grad.addcmul_(x, along.mul_(rho), value=-1).mul_(rho * root)
        return grad, grad_scale[:, 0], None, None


def _inverse_length(x: Tensor, eps: float) -> Tensor:  # (..., d) => (..., 1)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(eps).rsqrt_()


def _turned(x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:  # changes x
    _rotated_pairs(x).mul_(turn)
    q, k = x.unbind(3)
    return q, k


def _rotated_pairs(x: Tensor) -> Tensor:  # a view: (..., d) => complex (..., d / 4), the half that is rotated
    return torch.view_as_complex(x.unflatten(-1, (2, -1, 2))[..., 0, :, :])


def rotated_cosine(qk: Tensor, scale: Tensor, turns: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """q and k, each (N, H, W, heads, d), normalised to sqrt(scale) and rotated.

    Args:
        qk: (N, H, W, 2 * heads * d), of a projection whose weights went through `pairs_together`; without gradients
            its memory is used for the result.
        scale: (heads,).
        turns: exp(i angle), complex (H, W, heads, d / 4).
    """
    x = rearrange(qk, "n h w (t a d) -> n h w t a d", t=2, a=len(scale))
    turn = turns[:, :, None]
    if not (torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)):
        return _turned(x.mul_(_inverse_length(x, eps).mul_(scale.sqrt()[:, None])), turn)
    out: Any = RotatedCosine.apply(x, scale, turn, eps)
    return out
