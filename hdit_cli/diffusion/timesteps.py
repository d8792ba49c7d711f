"""Gaussian diffusion in discrete timesteps (Ho et al. 2020; Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672).

x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, with t = 0 already one step of noise. Images are (N, C, H, W). The network sees the
timesteps of the full process, `table.timesteps`; everything here is told the place i in the table, which is the same thing until
the process is respaced. All tables are float64 and are cast to float32 (float64 for float64 images) where they are gathered.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hdit_cli.errors import UsageError

TIMESTEPS = 1000


def respace(text: str | Sequence[int], *, total: int = TIMESTEPS) -> list[int]:
    """Timesteps to sample at, ascending.

    Args:
        text: "250", evenly spaced from the first to the last; "10,20,30", so many in each of three equal sections; or "ddim50",
            the smallest whole stride from 0 that gives exactly 50. "1" is the first timestep alone.
        total: timesteps of the full process.

    Raises:
        UsageError: not one of these, more than a section holds, or no stride that gives so many.
    """
    words = [str(count) for count in text] if not isinstance(text, str) else text.strip().lower().split(",")
    strided = words[0].startswith("ddim")
    numbers = [word.removeprefix("ddim") if strided else word.strip() for word in words]
    if not all(number.isascii() and number.isdecimal() and len(number) < 7 for number in numbers) or len(words) > total:
        raise UsageError(f"timesteps {text!r} cannot be read", hint='for example "250", "10,20,30" or "ddim50"')
    counts = [int(number) for number in numbers]
    if strided:
        return _strided(counts, total)
    return _sections(counts, total)


def _strided(counts: list[int], total: int) -> list[int]:
    for stride in range(1, total):
        steps = list(range(0, total, stride))
        if [len(steps)] == counts:
            return steps
    possible = {len(range(0, total, stride)) for stride in range(1, total)}
    near = min(possible, key=lambda count: (abs(count - counts[0]), count))
    raise UsageError(f"no whole stride gives {counts[0]} of {total} timesteps", hint=f"the nearest is ddim{near}")


def _sections(counts: list[int], total: int) -> list[int]:
    start, steps = 0, []
    for index, count in enumerate(counts):
        size = total // len(counts) + (index < total % len(counts))
        if count > size:
            raise UsageError(f"a section of {size} timesteps has no {count}", hint=f"at most {size} in each section")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):  # summed up, not multiplied: the roundings are those of the published samples
            steps.append(start + round(place))
            place += stride
        start += size
    if not steps:
        raise UsageError("no timesteps at all", hint="at least 1")
    return steps


class Prediction(NamedTuple):
    """What the network says about the step before: its mean and log variance, and the clean image, each (N, C, H, W)."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class Bits(NamedTuple):
    """Variational bound in bits per dimension: total (N,), the prior's share (N,), and (N, steps) from the largest t down."""

    total: Tensor
    prior: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Table:
    """A noise schedule and all that follows from it.

    Attributes:
        betas: float64 (steps,), variance added at each step.
        timesteps: int64 (steps,), what the network is told, ascending.
        abar: prod(1 - beta), the share of the image in the variance; abar_before and abar_after of the step before and after,
            1 before the first and 0 after the last.
        posterior_variance: of q(x_(t-1) | x_t, x0), 0 at the first step.
        posterior_log_variance: its log, the first entry that of the second, since log 0 is none.
        sigmas: sqrt((1 - abar) / abar), the noise level of x_t / sqrt(abar_t).
    """

    betas: Tensor
    timesteps: Tensor
    abar: Tensor = field(init=False)
    abar_before: Tensor = field(init=False)
    abar_after: Tensor = field(init=False)
    posterior_variance: Tensor = field(init=False)
    posterior_log_variance: Tensor = field(init=False)
    sigmas: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """At once: what is first computed while the code is traced would be a tensor of the tracer for good."""
        betas = self.betas
        abar = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        variance = betas * (1 - before) / (1 - abar)
        made = {
            "abar": abar,
            "abar_before": before,
            "abar_after": torch.cat([abar[1:], abar.new_zeros(1)]),
            "posterior_variance": variance,
            "posterior_log_variance": torch.cat([variance[1:2] if len(self) > 1 else betas[:1], variance[1:]]).log(),
            "sigmas": ((1 - abar) / abar).sqrt(),
        }
        for name, values in made.items():
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.betas)

    def at(self, values: Tensor, i: Tensor, *, like: Tensor) -> Tensor:
        """Entries i (N,) of a table, ready to multiply `like`: (N, 1, 1, 1), float32, or float64 for float64 images."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return values.to(dtype).to(i.device)[i].view(-1, *[1] * (like.ndim - 1))

    def respaced(self, timesteps: Sequence[int]) -> "Table":
        """The process that visits these timesteps alone, its betas such that abar is the same at each of them."""
        kept = self.abar[list(timesteps)]
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        return Table(1 - kept / before, self.timesteps[list(timesteps)])

    # Forward

    def noised(self, x0: Tensor, i: Tensor, noise: Tensor) -> Tensor:
        """x_t (Ho et al., eq. 4)."""
        abar = functools.partial(self.at, i=i, like=x0)
        return abar(self.abar.sqrt()) * x0 + abar((1 - self.abar).sqrt()) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, i: Tensor) -> Tensor:
        """Mean of q(x_(t-1) | x_t, x0) (Ho et al., eq. 7)."""
        of_x0 = self.betas * self.abar_before.sqrt() / (1 - self.abar)
        of_x = (1 - self.abar_before) * (1 - self.betas).sqrt() / (1 - self.abar)
        return self.at(of_x0, i, like=x) * x0 + self.at(of_x, i, like=x) * x

    # Backward

    def clean(self, x: Tensor, i: Tensor, eps: Tensor, *, clip: bool) -> Tensor:
        """x0 from x_t and the noise in it; with `clip` clamped to [-1, 1]."""
        x0 = self.at((1 / self.abar).sqrt(), i, like=x) * x - self.at((1 / self.abar - 1).sqrt(), i, like=x) * eps
        return x0.clamp(-1, 1) if clip else x0

    def noise_in(self, x: Tensor, i: Tensor, x0: Tensor) -> Tensor:
        """The noise in x_t, given x0."""
        scaled = self.at((1 / self.abar).sqrt(), i, like=x) * x
        return (scaled - x0) / self.at((1 / self.abar - 1).sqrt(), i, like=x)

    def predicted(self, out: Tensor, x: Tensor, i: Tensor, *, clip: bool = False) -> Prediction:
        """p(x_(t-1) | x_t) from a network's output.

        Args:
            out: (N, C, H, W), the noise; or (N, 2C, H, W), with the place v of the log variance in its range: -1 the posterior's,
                1 the forward step's (Nichol & Dhariwal, eq. 15). v is not squashed.
            x: (N, C, H, W), x_t.
            i: int64 (N,), places in the table.
            clip: clamp x0 to [-1, 1] before the mean; for pixels, not for latents.
        """
        out = out.to(torch.promote_types(x.dtype, torch.float32))
        eps = out[:, : x.shape[1]]
        low = self.at(self.posterior_log_variance, i, like=x)
        if out.shape[1] == 2 * x.shape[1]:
            share = (out[:, x.shape[1] :] + 1) / 2
            log_variance = share * self.at(self.betas.log(), i, like=x) + (1 - share) * low
        else:
            log_variance = low.expand_as(x)
        x0 = self.clean(x, i, eps, clip=clip)
        return Prediction(self.posterior_mean(x0, x, i), log_variance, x0)

    # The bound

    def bound(self, out: Tensor, x0: Tensor, x: Tensor, i: Tensor, *, clip: bool = False) -> Tensor:
        """The variational term of a step in bits per dimension (N,): a KL divergence, at the first step a likelihood."""
        mean, log_variance, _ = self.predicted(out, x, i, clip=clip)
        true_log = self.at(self.posterior_log_variance, i, like=x)
        kl = normal_kl(self.posterior_mean(x0, x, i), true_log, mean, log_variance)
        first = -discretised_log_likelihood(x0, mean, log_std=0.5 * log_variance)
        kl, first = (term.flatten(1).mean(1) / math.log(2) for term in (kl, first))
        return torch.where(i == 0, first, kl)

    def prior_bound(self, x0: Tensor) -> Tensor:
        """KL of x_T to the standard normal distribution, in bits per dimension (N,)."""
        last = torch.full((len(x0),), len(self) - 1, device=x0.device)
        mean = self.at(self.abar.sqrt(), last, like=x0) * x0
        log_variance = self.at((1 - self.abar).log(), last, like=x0)
        zero = torch.zeros((), dtype=mean.dtype, device=mean.device)
        return normal_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2)


def linear_table(total: int = TIMESTEPS) -> Table:
    """Betas evenly from 1e-4 to 2e-2, both ends included; for another number of steps scaled so that the noise is the same."""
    scale = TIMESTEPS / total
    betas = torch.linspace(scale * 1e-4, scale * 2e-2, total, dtype=torch.float64)
    return Table(betas, torch.arange(total))


def normal_kl(mean: Tensor, log_variance: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N(mean, exp log_variance) || N(mean_2, exp log_variance_2)) of each value, in nats."""
    ratio = log_variance - log_variance_2
    # the order of the sum is that of the published values: near 0, where float32 keeps few digits, it shows
    return 0.5 * (-1 - ratio + ratio.exp() + (mean - mean_2).square() * torch.exp(-log_variance_2))


def discretised_log_likelihood(x: Tensor, mean: Tensor, *, log_std: Tensor) -> Tensor:
    """Log of the normal distribution's mass in the bin of a pixel, in nats.

    Bins are 2/255 wide and open below -0.999 and above 0.999. The distribution function is the tanh formula, a probability is at
    least 1e-12 (Ho et al., eq. 13).

    Args:
        x: pixels in [-1, 1]; others count as the open ends.
    """

    def mass_below(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    precision = torch.exp(-log_std)
    above, below = mass_below(precision * (x - mean + 1 / 255)), mass_below(precision * (x - mean - 1 / 255))
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()
