"""All clean tokens from ones of which a share is noise (Rampas et al. 2022, Paella, https://arxiv.org/abs/2211.07292).

The level is t, the share of tokens that noise has replaced. Where the rest of the house speaks of a noise level sigma, this task
says t / (1 - t): how many noised tokens there are for each clean one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hdit_cli import catalog, runtime
from hdit_cli.diffusion import tokens
from hdit_cli.errors import NonFiniteError, UsageError
from hdit_cli.tasks.sampling import Sampling
from hdit_cli.tasks.task import Drawn, Losses, Noise, Place, Plain, Wrap, blank_conditions, drawn_conditions, uniforms

_KEPT = -1  # in the place of a noise token: the clean one was kept


class Tokens(Plain, nn.Module):
    """A network that is told the share of noise, and answers with logits of the clean tokens.

    Args:
        network: (tokens int64 (N, h, w), t (N,), **conditions) to logits (N, K, h, w).
        smoothing: of the labels.
        t_min: the least share of noise that training draws.
        kept_weight: what a clean token weighs in the loss at t = 0; at t = 1 as much as a noised one.
        class_dropout: share of labels that training replaces by "no class".
    """

    paints: ClassVar[bool] = True
    usual: ClassVar[Sampling] = Sampling(sampler="paella", steps=12)
    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __init__(
        self, network: nn.Module, *, smoothing: float, t_min: float, kept_weight: float, class_dropout: float
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {
            "smoothing": smoothing,
            "t_min": t_min,
            "kept_weight": kept_weight,
            "class_dropout": class_dropout,
        }
        self.network: Any = network
        self.smoothing, self.t_min, self.kept_weight, self.class_dropout = smoothing, t_min, kept_weight, class_dropout
        self.losses = self.loss  # may be replaced by a compiled one, which then serves training alone

    def kept(self, shape: tuple[int, int, int]) -> int:
        """Numbers that a sampler keeps of an image: logits, with and without condition, in float64 their softmax and its sums."""
        return 8 * math.prod(shape) * self.network.vocabulary

    @property
    def called(self) -> nn.Module:
        """What a step of sampling calls."""
        return self.network

    def with_network(self, network: nn.Module) -> "Tokens":
        """The same task of another network."""
        return Tokens(network, **self._settings)

    # Training

    def draw(self, x0: Tensor, label: Tensor, place: Place, *, told: Mapping[str, Tensor]) -> Drawn:
        """Shares of noise, which tokens are replaced, and by which: `noise` holds these, and -1 where a token is kept."""
        like = next(self.network.parameters())
        u = runtime.uniform(place.seed, "noise-share", place.index)[:, 0]
        t = (1 - u + self.t_min).clamp(self.t_min, 1).to(like.dtype).to(x0.device, non_blocking=True)
        noise = self._replaced(self.noise(place.seed, "noise", place.index, like=x0), t)
        conditions = drawn_conditions(self.network, label, place, like=x0, dropout=self.class_dropout, told=told)
        return Drawn(x0, noise, t, conditions)

    def noise(self, seed: int, stream: str, index: Any, *, like: Tensor) -> Tensor:
        """Uniforms of which those up to t replace a token, and what the replaced ones become: float (N, 2, h, w)."""
        mask, other = (
            uniforms(seed, f"{stream}/{part}", index, like.shape[1:], like=like) for part in ("mask", "token")
        )
        return torch.stack([mask, other], dim=1)

    def _replaced(self, noise: Tensor, t: Tensor) -> Tensor:
        """Random tokens where the first uniform is at most t, -1 elsewhere: int64 (N, h, w)."""
        mask, other = noise.unbind(1)
        return torch.where(mask <= t[:, None, None], self._token(other), _KEPT)

    def _token(self, u: Tensor) -> Tensor:
        """A token for each uniform."""
        return (u * self.network.vocabulary).long().clamp(max=self.network.vocabulary - 1)  # float32 may round up to 1

    def random(self, seed: int, stream: str, index: Any, shape: tuple[int, int, int], *, like: Tensor) -> Tensor:
        """Uniformly random tokens of so many images (1, h, w), each a function of (seed, stream, its number): int64 (N, h, w)."""
        return self._token(uniforms(seed, stream, index, shape[1:], like=like))

    def blank(self, images: int, size: tuple[int, int], *, like: Tensor, told: Mapping[str, Tensor]) -> Drawn:
        """A batch of zeros, half of it noise."""
        x0 = torch.zeros((images, *size), dtype=torch.int64, device=like.device)
        conditions = blank_conditions(self.network, images, like=like, told=told)
        return Drawn(x0, x0, like.new_full((images,), 0.5), conditions)

    def example(self, images: int, shape: tuple[int, int, int], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and shares of noise, as a step of sampling calls the network with."""
        return torch.zeros((images, *shape[1:]), dtype=torch.int64, device=like.device), like.new_ones(images)

    def forward(self, drawn: Drawn) -> Losses:
        """The loss of each image, and t / (1 - t) as its noise level."""
        loss = self.losses(drawn.x0, drawn.noise, drawn.level, **drawn.conditions)
        return Losses(loss, drawn.level / (1 - drawn.level))

    def loss(self, x0: Tensor, noise: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels over all places, weighted: (N,).

        Args:
            x0: int64 (N, h, w).
            noise: int64 (N, h, w), -1 where a token is kept.
            t: (N,), share of noise.
        """
        return self._loss(self._logits(x0, noise, t, conditions), x0, noise, t)

    def _logits(self, x0: Tensor, noise: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        x = tokens.noised(x0, noise, noise != _KEPT)
        return self.network(x, t, **conditions).to(t.dtype)  # of bf16 no softmax of thousands

    def _loss(self, logits: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return tokens.loss(logits, x0, noise != _KEPT, t, smoothing=self.smoothing, kept=self.kept_weight)

    # Validation

    def once(self, x: Tensor) -> None:
        """Calls the network with as many tokens as x (N, 1, h, w) has places."""
        channels, height, width = x.shape[1:]
        self.network(*self.example(len(x), (channels, height, width), like=x))

    def levels(self, n: int) -> Tensor:
        """t / (1 - t) of the middles of n equal shares of [0, 1]."""
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return t / (1 - t)

    def measured(self, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """At noise levels (N,) of `levels`: the loss of each image, and which share of its tokens is told right."""
        t = sigma / (1 + sigma)
        replaced = self._replaced(noise, t)
        logits = self._logits(x0, replaced, t, conditions)
        right = (logits.argmax(1) == x0).to(logits.dtype).flatten(1).mean(1)
        return {"loss": self._loss(logits, x0, replaced, t), "accuracy": right}

    # Sampling

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError for a sampler of anything but tokens."""
        if not sampling.of_tokens:
            fitting = " or ".join(catalog.OVER_TOKENS)
            raise UsageError(
                f"{sampling.sampler} makes numbers of noise, and this model makes tokens",
                hint=f"--sampler {fitting}, or leave it out",
            )

    def steps(self, sampling: Sampling) -> int:
        """One for each draw of all tokens."""
        return sampling.steps_run

    def sample(
        self,
        sampling: Sampling,
        *,
        noise: Noise,
        conditions: Mapping[str, Tensor],
        x0: Tensor | None,
        on_step: Callable[[int], None] | None,
        wrap: Wrap,
        mask: Tensor | None = None,
        negative: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens int64 (N, h, w) from random ones, or from those of a picture (1, h, w) of which the strength's share is replaced.

        Args:
            mask: bool (1, h, w), true where a picture's tokens are drawn anew; the others stay. None: all are.
            negative: conditions that guidance goes away from; None: that nothing is told.

        Raises:
            NonFiniteError: the network returned NaN or infinity.
        """
        start = self._token(noise.uniform("sample/start"))
        predict, unconditional, finite = self._predictors(sampling, conditions, negative, wrap)
        run = sampling.steps_run
        first = sampling.steps - run
        if x0 is not None:
            share = run / sampling.steps if sampling.sampler == "paella" else self._edit(sampling).level(first)
            x0 = x0.to(start.device).expand_as(start)
            replaced = noise.uniform("sample/strength") <= share
            x0 = tokens.noised(x0, start, replaced if mask is None else replaced & mask)
        how: dict[str, Any] = {"unconditional": unconditional, "mask": mask, "on_step": on_step}
        if sampling.sampler == "paella":
            x = tokens.sample(
                predict,
                start,
                self._plan(sampling),
                uniform=lambda what, step: noise.uniform(f"sample/{what}-{step + first}"),
                start=x0,
                **how,
            )
        else:
            k = self.network.vocabulary
            x = tokens.edit(
                predict,
                start if x0 is None else x0,
                self._edit(sampling),
                uniform=lambda what, step: noise.uniform(f"sample/{what}-{step}", *((k,) if what == "gumbel" else ())),
                fresh=lambda step: self._token(noise.uniform(f"sample/fresh-{step}")),
                **how,
            )
        if not all(map(bool, finite)):
            raise NonFiniteError(
                "the model returned NaN or infinity",
                hint="the weights diverged, or --cfg is too large; try an older checkpoint or --cfg 1",
            )
        return x

    def _predictors(
        self, sampling: Sampling, conditions: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None, wrap: Wrap
    ) -> tuple[tokens.Predict, tokens.Predict | None, list[Tensor]]:
        """The network with its conditions, the same without, None where nothing is guided, and whether answers were finite."""
        call, dtype = wrap(self.network), next(self.parameters()).dtype
        wide = torch.promote_types(dtype, torch.float32)
        finite: list[Tensor] = []

        def told(conditions: Mapping[str, Tensor]) -> tokens.Predict:
            own = {name: value.to(dtype) if value.is_floating_point() else value for name, value in conditions.items()}

            def predict(x: Tensor, t: Tensor) -> Tensor:
                logits = call(x, t.to(wide), **own).float()
                finite.append(logits.isfinite().all())
                return logits

            return predict

        if not sampling.guides or not (conditions or negative):
            return told(conditions), None, finite
        wants = self.network.wants()
        none = {name: wants[name].none_like(value) for name, value in conditions.items()}
        return told(conditions), told(none if negative is None else {**none, **negative}), finite

    def _plan(self, sampling: Sampling) -> tokens.Steps:
        """The last steps of the sampling that are run, all of them where images start from noise."""
        steps, run = sampling.steps, sampling.steps_run
        renoised = None if sampling.renoise_steps < 0 else max(0, sampling.renoise_steps - (steps - run))
        return tokens.Steps(
            steps=run,
            t_start=run / steps,
            temperature=_last_part(sampling.temperature, steps, run),
            cfg=_last_part(sampling.cfg_ramp, steps, run),
            renoise_steps=renoised,
        )

    def _edit(self, sampling: Sampling) -> tokens.Edit:
        renoise: Any = sampling.renoise
        return tokens.Edit(
            steps=sampling.steps,
            first=sampling.steps - sampling.steps_run,
            cfg=sampling.cfg_ramp,
            mass=sampling.typical or None,
            temperature=sampling.temperature,
            renoise_steps=None if sampling.renoise_steps < 0 else sampling.renoise_steps,
            renoise=renoise,
        )


def _last_part(ramp: tuple[float, float], steps: int, run: int) -> tuple[float, float]:
    """The ramp over the last `run` of so many steps."""
    share = (steps - run) / max(1, steps - 1)
    return ramp[0] + (ramp[1] - ramp[0]) * share, ramp[1]
