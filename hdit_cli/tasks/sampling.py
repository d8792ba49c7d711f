"""How to sample: what every task reads of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hdit_cli import catalog
from hdit_cli.recipe.sections import OF_TOKENS, not_acting

STOCHASTIC = ("euler-ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde")
WITH_ETA = (*STOCHASTIC, "ddim")


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        eta: noise put back by stochastic samplers, 0 ... 1.
        rho: of the Karras schedule.
        cfg: strength of classifier-free guidance; 1 is off. Samplers of tokens take a pair too: at the first step and at the last.
        cfg_interval: (low, high) noise levels within which guidance acts; None everywhere.
        cfg_channels: how many channels, from the first, are guided; 0 is all.
        size: (height, width) in pixels; None is the size the model was trained at.
        batch_size: images denoised together.
        strength: share of the steps that are run, 0 ... 1, where images start from a picture; 1 without one.
        compile: whole batches run as one compiled graph.
        precision: "fp32", "tf32" or "bf16" of float32 weights; "auto" is what the device takes by itself.
        temperature: of tokens, at the first step and at the last.
        typical: of tokens by paella-v1, the mass of probability of those that may be drawn; 0 is off.
        renoise: of tokens by paella-v1, what noise is put back: that of the "start", the "prev" tokens, or new, "rand".
        renoise_steps: of tokens, after how many of the draws noise is put back; -1 is all but the last.
    """

    seed: int = 0
    steps: int = 50
    sampler: str = "dpmpp-3m-sde"
    schedule: str = "karras"
    eta: float = 1.0
    rho: float = 7.0
    cfg: float | tuple[float, float] = 1.0
    cfg_interval: tuple[float, float] | None = None
    cfg_channels: int = 0
    size: tuple[int, int] | None = None
    batch_size: int = 16
    strength: float = 1.0
    compile: bool = False
    precision: str = "auto"
    temperature: tuple[float, float] = (0.7, 0.3)
    typical: float = 0.2
    renoise: str = "start"
    renoise_steps: int = -1

    @property
    def steps_run(self) -> int:
        """The last steps, `strength` of them and at least one; all where images start from noise."""
        return max(1, round(self.steps * self.strength))

    @property
    def by_timesteps(self) -> bool:
        """Whether the sampler goes over timesteps and not over noise levels."""
        return self.sampler in catalog.OVER_TIMESTEPS

    @property
    def of_tokens(self) -> bool:
        """Whether the sampler draws tokens."""
        return self.sampler in catalog.OVER_TOKENS

    @property
    def cfg_ramp(self) -> tuple[float, float]:
        """The guidance at the first step and at the last."""
        return self.cfg if isinstance(self.cfg, tuple) else (self.cfg, self.cfg)

    @property
    def guides(self) -> bool:
        """Whether there is guidance."""
        return self.cfg_ramp != (1, 1)

    @property
    def strongest(self) -> float:
        """The guidance where there is most of it."""
        return max(self.cfg_ramp)

    def told(self) -> dict[str, Any]:
        """The fields as JSON has them, without those that do not act with such a sampler."""
        return {name: value for name, value in asdict(self).items() if acts(name, sampler=self.sampler)}


def acts(setting: str, *, sampler: str) -> bool:
    """Whether a setting of a sampling, by its name, does anything with a sampler."""
    if setting in ("cfg_interval", "cfg_channels"):
        return sampler not in catalog.OVER_TOKENS
    return setting not in not_acting(sampler)


_SETTINGS = ("steps", "sampler", "schedule", "eta", "rho", "cfg", *OF_TOKENS)


def of_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a [sample] section, as a dict, says of a sampling."""
    return {
        name: tuple(section[name]) if isinstance(section[name], list) else section[name]
        for name in _SETTINGS
        if name in section
    }


def usual_temperature(sampler: str) -> tuple[float, float]:
    """Of a sampler of tokens where nobody says, as its authors had it."""
    return (1.0, 1.0) if sampler == "paella-v1" else (0.7, 0.3)


def usual_eta(sampler: str) -> float:
    """Noise of a sampler where nobody says: none for DDIM, which is known for that."""
    return 0.0 if sampler == "ddim" else 1.0


def in_words(cfg: Any) -> str:
    """A strength of guidance as people read it: 4, or 8 to 4."""
    return f"{cfg:g}" if isinstance(cfg, float | int) else "{:g} to {:g}".format(*cfg)
