"""Diffusion of tokens by uniform noise (Rampas et al. 2022, Paella, arXiv 2211.07292).

A share t of the tokens is replaced by uniformly random ones. A network tells all clean tokens at once; sampling draws them,
puts a smaller share of noise back, and repeats. Tokens are int64 (N, h, w), logits (N, K, h, w), t is (N,) in [0, 1].

No random number is drawn here: whoever samples gives the uniforms, so that a token is a function of the seed and the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTHING = 0.1  # of the labels
KEPT = 0.3  # what a clean token weighs at t = 0; at t = 1 as much as a noised one
_TINY = 1e-20  # keeps the logarithms of a uniform finite

Predict = Callable[[Tensor, Tensor], Tensor]  # tokens, t (N,) => logits (N, K, h, w)


def noised(tokens: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Tokens with those of `noise` where `mask` is true; all (N, h, w)."""
    return torch.where(mask.bool(), noise, tokens)


def loss_weight(mask: Tensor, t: Tensor, *, kept: float = KEPT) -> Tensor:
    """1 where a token was noised, 1 - (1 - kept) (1 - t) where it was kept: (N, h, w)."""
    clean = 1 - mask.to(t.dtype)
    return 1 - clean * (1 - t[:, None, None]) * (1 - kept)


def loss(
    logits: Tensor, tokens: Tensor, mask: Tensor, t: Tensor, *, smoothing: float = SMOOTHING, kept: float = KEPT
) -> Tensor:
    """Cross-entropy with smoothed labels over all places, the weighted mean of each image: (N,)."""
    each = F.cross_entropy(logits, tokens, label_smoothing=smoothing, reduction="none")
    weight = loss_weight(mask, t, kept=kept).to(each.dtype)
    return (each * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _finest(tensor: Tensor) -> torch.dtype:
    """The widest floats of a device."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def drawn(probabilities: Tensor, u: Tensor) -> Tensor:
    """One token for each place by the inverse of the distribution function: how many of its sums are at most u.

    Args:
        probabilities: (N, K, h, w).
        u: (N, h, w), uniform in [0, 1).
    """
    sums = probabilities.to(_finest(probabilities)).cumsum(1)
    return (sums <= u[:, None]).sum(1).clamp(max=probabilities.shape[1] - 1)


def typical(logits: Tensor, *, mass: float, least: int = 1) -> Tensor:
    """Logits whose surprise is near the entropy, the others -inf (Meister et al. 2022, locally typical sampling).

    Tokens are taken in the order of | -ln p - H |, until those taken have more than `mass` of probability.

    Args:
        logits: (N, K, ...), over axis 1.
        mass: in (0, 1).
        least: how many are kept in any case.
    """
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    entropy = -(p * log_p.nan_to_num(neginf=0.0)).sum(1, keepdim=True)
    surprise = (-log_p - entropy).abs()
    ordered, order = surprise.sort(dim=1)
    last = (p.gather(1, order).cumsum(1) < mass).sum(1, keepdim=True).clamp(max=logits.shape[1] - 1)
    hidden = surprise > ordered.gather(1, last)
    if least > 1:
        hidden = hidden.scatter(1, order[:, :least], False)
    return logits.masked_fill(hidden, -math.inf)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a to b on the sphere, by the angle between them; lengths are mixed as they are: (N, D)."""
    cosine = (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle).abs() < 1e-6, torch.lerp(a, b, share), mixed)


@dataclass(frozen=True)
class Steps:
    """How tokens are sampled, Paella's third version.

    Attributes:
        steps: draws.
        t_start, t_end: share of noise at the first step, and after the last.
        temperature: at the first step and at the last, linear between.
        cfg: guidance at the first step and at the last, linear between; 1 is off.
        conditional_steps: how many steps are guided, from the first; None: all.
        renoise_steps: after how many of the draws noise is put back; None: after all but the last.
    """

    steps: int = 12
    t_start: float = 1.0
    t_end: float = 0.0
    temperature: tuple[float, float] = (0.7, 0.3)
    cfg: tuple[float, float] = (8.0, 8.0)
    conditional_steps: int | None = None
    renoise_steps: int | None = None


def sample(
    predict: Predict,
    noise: Tensor,
    plan: Steps,
    *,
    uniform: Callable[[str, int], Tensor],
    unconditional: Predict | None = None,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Tokens from noise: every place is drawn at every step, and a share of them becomes the first noise again.

    Args:
        noise: uniformly random tokens, (N, h, w).
        uniform: (what, step) to (N, h, w) in [0, 1); what is "token" or "renoise".
        unconditional: the network without condition; None: no guidance.
        start: tokens to begin with, at the noise of `t_start`; None: `noise`.
        mask: (N, h, w), true where tokens are drawn; the others stay those of `start`.
        on_step: told the number of each step done, from 1.
    """
    first = x = noise if start is None else start
    levels = torch.linspace(plan.t_start, plan.t_end, plan.steps + 1).tolist()
    temperatures = torch.linspace(*plan.temperature, plan.steps).tolist()
    scales = torch.linspace(*plan.cfg, plan.steps).tolist()
    guided = plan.steps if plan.conditional_steps is None else plan.conditional_steps
    renoised = plan.steps - 1 if plan.renoise_steps is None else plan.renoise_steps
    for i in range(plan.steps):
        t = torch.full((len(x),), levels[i], device=x.device)
        logits = predict(x, t)
        if unconditional is not None and i < guided:
            logits = logits * scales[i] + unconditional(x, t) * (1 - scales[i])
        x = drawn(torch.softmax(logits.to(_finest(logits)) / temperatures[i], dim=1), uniform("token", i))
        if i < renoised:
            x = noised(x, noise, uniform("renoise", i) <= levels[i + 1])
        if mask is not None:
            x = noised(first, x, mask)
        if on_step:
            on_step(i + 1)
    return x


@dataclass(frozen=True)
class Edit:
    """How tokens are edited, as Paella's first version samples: the level of step i of T is cos(pi / 2 i / T).

    Attributes:
        steps: T.
        first: the step to begin with; tokens then have its share of noise.
        cfg: guidance from the unconditional logits to the conditional ones, one number, or at step 0 and at the last, linear
            between; None is off.
        mass: of typical filtering; None is off.
        temperature: at step 0 and at the last, linear between.
        renoise_steps: noise is put back after steps below this; None: after all but the last.
        renoise: which tokens it is: "start" those that the first step had, "prev" those before the draw, "rand" new ones.
    """

    steps: int = 12
    first: int = 0
    cfg: float | tuple[float, float] | None = 6.0
    mass: float | None = 0.2
    temperature: tuple[float, float] = (1.0, 1.0)
    renoise_steps: int | None = None
    renoise: Literal["start", "prev", "rand"] = "start"

    def level(self, step: int) -> float:
        """The share of noise at a step."""
        return math.cos(math.pi / 2 * step / self.steps)


def edit(
    predict: Predict,
    start: Tensor,
    plan: Edit,
    *,
    uniform: Callable[[str, int], Tensor],
    unconditional: Predict | None = None,
    mask: Tensor | None = None,
    fresh: Callable[[int], Tensor] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Tokens drawn anew from `start`, all of them or those under a mask.

    Args:
        start: (N, h, w), with the noise of the first step in it: under the mask, or everywhere.
        uniform: (what, step) to uniforms in [0, 1): "gumbel" (N, h, w, K) and "renoise" (N, h, w).
        mask: (N, h, w), true where tokens are drawn; the others stay those of `start`.
        fresh: step to random tokens (N, h, w), for `renoise` "rand".
        on_step: told the number of each step done, from 1.
    """
    x = start
    temperatures = torch.linspace(*plan.temperature, plan.steps).tolist()
    scales = torch.linspace(*plan.cfg, plan.steps).tolist() if isinstance(plan.cfg, tuple) else [plan.cfg] * plan.steps
    renoised = plan.steps - 1 if plan.renoise_steps is None else plan.renoise_steps
    for i in range(plan.first, plan.steps):
        before, t = x, torch.full((len(x),), plan.level(i), device=x.device)
        logits = predict(x, t)
        scale = scales[i]
        if unconditional is not None and scale is not None:
            logits = torch.lerp(unconditional(x, t), logits, scale)
        if plan.mass is not None:
            logits = typical(logits, mass=plan.mass)
        u = uniform("gumbel", i).movedim(-1, 1)
        x = (logits / temperatures[i] - torch.log(-torch.log(u + _TINY) + _TINY)).argmax(1)
        if mask is not None:
            x = noised(start, x, mask)
        if i < renoised:
            other = before if plan.renoise == "prev" else start
            if plan.renoise == "rand":
                if fresh is None:
                    raise ValueError('renoise "rand" needs fresh tokens')
                other = fresh(i)
            x = noised(x, other, uniform("renoise", i) < plan.level(i + 1))
        if on_step:
            on_step(i + 1 - plan.first)
    return x
