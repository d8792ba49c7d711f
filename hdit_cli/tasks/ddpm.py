"""The noise at a timestep, with learned variance (Ho et al. 2020; Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hdit_cli import runtime
from hdit_cli.diffusion.samplers import sampler as find_sampler
from hdit_cli.diffusion.sigma_view import SigmaView
from hdit_cli.diffusion.timesteps import Table, linear_table, respace
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import Sampling
from hdit_cli.tasks.task import (
    Drawn,
    Losses,
    Noise,
    Place,
    Plain,
    Wrap,
    blank_conditions,
    drawn_conditions,
    guided,
    in_own_dtype,
    refuse_tokens,
    run_sigmas,
    sigmas_of,
)


class DDPM(Plain, nn.Module):
    """A network that is told timesteps, as DiT's authors trained theirs.

    Args:
        network: (x_t, t, **conditions) to the noise, with learned variance twice the channels.
        timesteps: of the full process.
        learned_variance: the loss has the variational bound beside the squared error.
        clip: sampling clamps the predicted image to [-1, 1].
        class_dropout: share of labels that training replaces by "no class".
    """

    paints: ClassVar[bool] = False
    usual: ClassVar[Sampling] = Sampling()
    measures: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(
        self, network: nn.Module, *, timesteps: int, learned_variance: bool, clip: bool, class_dropout: float
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {
            "timesteps": timesteps,
            "learned_variance": learned_variance,
            "clip": clip,
            "class_dropout": class_dropout,
        }
        self.learned_variance, self.clip, self.class_dropout = learned_variance, clip, class_dropout
        self.table = linear_table(timesteps)
        self.denoiser = SigmaView(network, self.table)
        self.losses = self.loss  # may be replaced by a compiled one, which then serves training alone

    @property
    def network(self) -> Any:
        return self.denoiser.network

    def kept(self, shape: tuple[int, int, int]) -> int:
        """Numbers that a sampler keeps of an image: x, the next x, three denoised ones, noise, and what lies between."""
        return 8 * math.prod(shape)

    @property
    def called(self) -> nn.Module:
        """What a step of sampling calls; over timesteps it is the network inside."""
        return self.denoiser

    def with_network(self, network: nn.Module) -> "DDPM":
        """The same task of another network."""
        return DDPM(network, **self._settings)

    # Training

    def draw(self, x0: Tensor, label: Tensor, place: Place, *, told: Mapping[str, Tensor]) -> Drawn:
        """Noise, and timesteps that are uniform over the process."""
        noise = place.normal(place.seed, "noise", place.index, x0.shape[1:], like=x0)
        t = (runtime.uniform(place.seed, "timestep", place.index)[:, 0] * len(self.table)).long()
        conditions = drawn_conditions(self.network, label, place, like=x0, dropout=self.class_dropout, told=told)
        return Drawn(x0, noise, t.to(x0.device, non_blocking=True), conditions)

    def blank(self, images: int, size: tuple[int, int], *, like: Tensor, told: Mapping[str, Tensor]) -> Drawn:
        """A batch of zeros at the second timestep."""
        image = like.new_zeros(images, self.network.channels, *size)
        conditions = blank_conditions(self.network, images, like=like, told=told)
        return Drawn(image, image, torch.ones(images, dtype=torch.int64, device=like.device), conditions)

    def example(self, images: int, shape: tuple[int, int, int], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros at noise level 1."""
        x = torch.zeros((images, *shape), device=like.device, dtype=like.dtype)
        return x, x.new_ones(images)

    def forward(self, drawn: Drawn) -> Losses:
        """The loss of each image, and the noise level that its timestep stands for."""
        loss = self.losses(drawn.x0, drawn.noise, drawn.level, **drawn.conditions)
        return Losses(loss, self.table.at(self.table.sigmas, drawn.level, like=loss).view(-1))

    def loss(self, x0: Tensor, noise: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Mean squared error of the noise; with learned variance plus the bound in bits, whose mean does not learn from it.

        Args:
            x0, noise: (N, C, H, W).
            t: int64 (N,), 0 ... timesteps - 1.

        Returns:
            (N,) (Nichol & Dhariwal 2021, eq. 16, the bound's one term standing for the sum of all).
        """
        x = self.table.noised(x0, t, noise)
        out = self.network(x, self.table.timesteps.to(t.device)[t], **conditions).to(x.dtype)
        eps = out[:, : x.shape[1]]
        mse = (noise - eps).square().flatten(1).mean(1)
        if not self.learned_variance:
            return mse
        frozen = torch.cat([eps.detach(), out[:, x.shape[1] :]], dim=1)
        return mse + self.table.bound(frozen, x0, x, t)

    # Validation

    def once(self, x: Tensor) -> None:
        self.denoiser(x, x.new_ones(len(x)))

    def levels(self, n: int) -> Tensor:
        """The noise levels of the timesteps in the middles of n equal shares of the process."""
        return self.table.sigmas[((torch.arange(n) + 0.5) / n * len(self.table)).long()]

    def loss_at(self, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """As in training, at the timesteps whose noise levels are nearest."""
        t = self._nearest(sigma)
        return self.loss(x0, noise, t, **conditions)

    def _nearest(self, sigma: Tensor) -> Tensor:  # (N,) => int64 (N,)
        return self.denoiser.timestep(sigma).round().long()

    def noise(self, seed: int, stream: str, index: Any, *, like: Tensor) -> Tensor:
        """Standard normal, like x0 (N, C, H, W)."""
        return runtime.normal(seed, stream, index, like.shape[1:], like=like)

    def measured(self, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss."""
        return {"loss": self.loss_at(x0, noise, sigma, conditions)}

    # Sampling

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError for more steps than there are timesteps, and for a sampler of tokens."""
        refuse_tokens(sampling)
        total = len(self.table)
        if sampling.by_timesteps and sampling.steps > total:
            raise UsageError(
                f"{sampling.steps} steps of {sampling.sampler}, and the model has {total} timesteps",
                hint=f"at most {total}, or a sampler of noise levels such as dpmpp-3m-sde",
            )

    def process(self, sampling: Sampling) -> Table:
        """The respaced process; from a picture, its part from the first timestep on."""
        chosen = self.table.respaced(respace(str(sampling.steps), total=len(self.table)))
        run = sampling.steps_run
        return Table(chosen.betas[:run], chosen.timesteps[:run])

    def sigmas(self, sampling: Sampling) -> Tensor:  # => (steps run + 1,), descending to 0
        """The noise levels of a sampling, between the first and the last of the table."""
        return sigmas_of(sampling, sigma_min=self.denoiser.sigma_min, sigma_max=self.denoiser.sigma_max)

    def _within(self, low: float, high: float) -> tuple[float, float]:
        """The first and the last timestep whose noise levels lie in an interval; of none, an interval that holds nothing."""
        found = ((self.table.sigmas >= low) & (self.table.sigmas <= high)).nonzero().view(-1)
        return (float(found[0]), float(found[-1])) if len(found) else (math.inf, -math.inf)

    def steps(self, sampling: Sampling) -> int:
        """One for each timestep, or noise level."""
        return len(self.process(sampling)) if sampling.by_timesteps else len(self.sigmas(sampling)) - 1

    def sample(
        self,
        sampling: Sampling,
        *,
        noise: Noise,
        conditions: Mapping[str, Tensor],
        x0: Tensor | None,
        on_step: Callable[[int], None] | None,
        wrap: Wrap,
    ) -> Tensor:
        """Runs a sampler of timesteps on the network, or one of noise levels on its sigma view."""
        x = noise("sample/start")
        x0 = None if x0 is None else x0.to(x.device)
        dtype = next(self.parameters()).dtype
        if sampling.by_timesteps:
            process, interval = self.process(sampling), None
            if sampling.cfg_interval is not None:
                interval = self._within(*sampling.cfg_interval)
            if x0 is not None:
                last = torch.full((len(x),), len(process) - 1, device=x.device)
                x = process.noised(x0.expand_as(x), last, x)
            call = in_own_dtype(wrap(self.network), dtype=dtype)
            options: dict[str, Any] = {"eta": sampling.eta} if sampling.sampler == "ddim" else {}
            return find_sampler(sampling.sampler)(
                guided(call, self.network, conditions, sampling, interval=interval),
                x,
                process,
                noise=lambda i: noise(f"sample/step-{i}"),
                clip=self.clip,
                callback=on_step,
                **options,
            )
        sigmas = self.sigmas(sampling)
        start = float(sigmas[0])
        # scaled to the network, the noise of the last timestep alone is standard normal, as it is in training's sampling
        x = x * (1 + start**2) ** 0.5 if x0 is None else x0 + x * start
        call = in_own_dtype(wrap(self.denoiser), dtype=dtype)
        denoise = guided(call, self.network, conditions, sampling, interval=sampling.cfg_interval)
        return run_sigmas(denoise, x, sigmas, sampling, noise=noise, on_step=on_step)
