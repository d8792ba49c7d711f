"""Samplers: from noise to images along a schedule. x is (N, C, H, W), sigmas (n + 1,) descending to 0.

`denoise(x, sigma (N,))` returns the denoised images. `noise(i)` returns the i-th draw of a stochastic sampler, like x; draw i
belongs to step i; None uses torch's own source. `callback(i)` is told after step i. The step to sigma 0 draws nothing.
"""

from collections.abc import Callable

from torch import Tensor

from hdit_cli import catalog


def sampler(name: str) -> Callable[..., Tensor]:
    """The sampler of that name: (denoise, x, sigmas, *, noise=None, callback=None, ...) to images like x.

    Those of `catalog.OVER_TIMESTEPS` take a network and a `diffusion.timesteps.Table` in the place of `denoise` and `sigmas`.

    Raises:
        UsageError: no such name.
    """
    return catalog.get("sampler", name)
