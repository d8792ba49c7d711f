"""Samplers over the timesteps of a discrete process: DDPM (Ho et al. 2020), DDIM and its reverse (Song et al. 2021).

A network is called as (x, t (N,)) and returns the noise, with learned variance twice the channels. `noise(j)` is the draw of step
j, counted from the largest timestep; the last step draws too and does not use it, so that a sampling of fewer steps does not
shift the draws of another.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hdit_cli.diffusion.samplers.steps import Callback, Noise, noise_source, told
from hdit_cli.diffusion.timesteps import Bits, Table

Network = Callable[[Tensor, Tensor], Tensor]  # (x, t (N,)) => (N, C or 2C, H, W)
OnStep = Callable[[int, Tensor], None]  # the step, counted from the largest timestep, and x after it


def _places(x: Tensor, i: int) -> Tensor:
    return torch.full((len(x),), i, device=x.device)


def _output(network: Network, x: Tensor, i: Tensor, table: Table) -> Tensor:
    return network(x, table.timesteps.to(x.device)[i])


def ddpm(
    network: Network,
    x: Tensor,
    table: Table,
    *,
    noise: Noise | None = None,
    clip: bool = False,
    callback: Callback | None = None,
    on_state: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling: a draw from p(x_(t-1) | x_t) at each step, down to its mean at the first timestep.

    Args:
        x: (N, C, H, W), standard normal noise.
        table: the (respaced) process.
        clip: clamp the predicted image to [-1, 1]; for pixels, not for latents.
        callback: told the number of each finished step.
        on_state: told that and x after it.

    Returns:
        (N, C, H, W).
    """
    draw = noise_source(noise, x)
    for j, i in enumerate(reversed(range(len(table)))):
        places = _places(x, i)
        mean, log_variance, _ = table.predicted(_output(network, x, places, table), x, places, clip=clip)
        fresh = draw(j)
        x = mean + torch.exp(0.5 * log_variance) * fresh if i else mean
        _tell(j, x, callback, on_state)
    return x


def ddim(
    network: Network,
    x: Tensor,
    table: Table,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    clip: bool = False,
    callback: Callback | None = None,
    on_state: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12): eta 0 is deterministic, 1 has DDPM's noise. Learned variances play no role.

    Args and result as in `ddpm`.
    """
    draw = noise_source(noise, x)
    for j, i in enumerate(reversed(range(len(table)))):
        places = _places(x, i)
        x0 = table.predicted(_output(network, x, places, table), x, places, clip=clip).x0
        eps = table.noise_in(x, places, x0)  # of the image as it was clipped
        abar, before = (table.at(values, places, like=x) for values in (table.abar, table.abar_before))
        spread = eta * ((1 - before) / (1 - abar)).sqrt() * (1 - abar / before).sqrt()
        fresh = draw(j)
        left = (1 - before - spread.square()).clamp(
            min=0
        )  # nothing is left at eta 1 after a long step, and rounding goes below
        x = before.sqrt() * x0 + left.sqrt() * eps
        if i:
            x = x + spread * fresh
        _tell(j, x, callback, on_state)
    return x


def ddim_reversed(network: Network, x0: Tensor, table: Table, *, clip: bool = False) -> Tensor:
    """The deterministic way back: from an image to the noise that DDIM with eta 0 makes it of."""
    x = x0
    for i in range(len(table)):
        places = _places(x, i)
        clean = table.predicted(_output(network, x, places, table), x, places, clip=clip).x0
        after = table.at(table.abar_after, places, like=x)
        x = after.sqrt() * clean + (1 - after).sqrt() * table.noise_in(x, places, clean)
    return x


@torch.no_grad()
def bits_per_dimension(
    network: Network, x0: Tensor, table: Table, *, noise: Noise | None = None, clip: bool = True
) -> Bits:
    """The variational bound of images over all steps of the process, from the largest timestep down.

    Args:
        x0: (N, C, H, W) in [-1, 1].
        noise: the draw that makes x_t, by step.
    """
    draw, steps = noise_source(noise, x0), []
    for j, i in enumerate(reversed(range(len(table)))):
        places = _places(x0, i)
        x = table.noised(x0, places, draw(j))
        steps.append(table.bound(_output(network, x, places, table), x0, x, places, clip=clip))
    terms, prior = torch.stack(steps, dim=1), table.prior_bound(x0)
    return Bits(terms.sum(dim=1) + prior, prior, terms)


def _tell(j: int, x: Tensor, callback: Callback | None, on_state: OnStep | None) -> None:
    told(callback)(j)
    if on_state is not None:
        on_state(j, x)
