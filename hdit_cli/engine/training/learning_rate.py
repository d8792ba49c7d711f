"""The learning rate as a pure function of the step: a linear warm-up, then constant, half a cosine, or inverse square root.

A step is numbered from 0, so that nothing but the recipe and the position of a run decides its rate.
"""

import math
from collections.abc import Callable
from functools import partial

from hdit_cli import catalog
from hdit_cli.recipe import Recipe


def warm_up(step: int, *, warmup: int) -> float:
    """Share of the full rate during a linear warm-up: (step + 1) / warmup, at most 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def constant(step: int) -> float:
    """1 at every step."""
    return 1.0


def cosine(step: int, *, steps: int, warmup: int, final_lr: float) -> float:
    """Half a cosine from 1 at the end of the warm-up to `final_lr` at `steps` (Loshchilov & Hutter 2017, eq. 5, one period).

    Args:
        steps: of the whole run; the curve hangs on it.
        final_lr: share of the full rate at the end, 0 ... 1.
    """
    t = min(max(step - warmup, 0) / max(steps - warmup, 1), 1.0)
    return final_lr + (1 - final_lr) * 0.5 * (1 + math.cos(math.pi * t))


def inverse_sqrt(step: int, *, hold: int) -> float:
    """1 up to step `hold`, then sqrt(hold / step) (Karras et al. 2024, arXiv 2312.02696)."""
    return math.sqrt(hold / max(step, hold))


def learning_rate(recipe: Recipe) -> Callable[[int], float]:
    """The factor on every group's learning rate at a step, warm-up included."""
    section = recipe.optimizer
    options = {
        "constant": {},
        "cosine": {"steps": recipe.train.steps, "warmup": section.warmup, "final_lr": section.final_lr},
        "inverse-sqrt": {"hold": section.hold},
    }[section.schedule]
    curve = partial(catalog.get("learning-rate", section.schedule), **options)
    return lambda step: warm_up(step, warmup=section.warmup) * curve(step)
