"""How to sample: what every task reads of it."""

from dataclasses import dataclass

from hdit_cli import catalog

STOCHASTIC = ("euler-ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde")
WITH_ETA = (*STOCHASTIC, "ddim")


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        eta: noise put back by stochastic samplers, 0 ... 1.
        rho: of the Karras schedule.
        cfg: strength of classifier-free guidance; 1 is off.
        cfg_interval: (low, high) noise levels within which guidance acts; None everywhere.
        cfg_channels: how many channels, from the first, are guided; 0 is all.
        size: (height, width) in pixels; None is the size the model was trained at.
        batch_size: images denoised together.
        strength: share of the steps that are run, 0 ... 1, where images start from a picture; 1 without one.
        compile: whole batches run as one compiled graph.
        precision: "fp32", "tf32" or "bf16" of float32 weights; "auto" is what the device takes by itself.
    """

    seed: int = 0
    steps: int = 50
    sampler: str = "dpmpp-3m-sde"
    schedule: str = "karras"
    eta: float = 1.0
    rho: float = 7.0
    cfg: float = 1.0
    cfg_interval: tuple[float, float] | None = None
    cfg_channels: int = 0
    size: tuple[int, int] | None = None
    batch_size: int = 16
    strength: float = 1.0
    compile: bool = False
    precision: str = "auto"

    @property
    def steps_run(self) -> int:
        """The last steps, `strength` of them and at least one; all where images start from noise."""
        return max(1, round(self.steps * self.strength))

    @property
    def by_timesteps(self) -> bool:
        """Whether the sampler goes over timesteps and not over noise levels."""
        return self.sampler in catalog.OVER_TIMESTEPS


def usual_eta(sampler: str) -> float:
    """Noise of a sampler where nobody says: none for DDIM, which is known for that."""
    return 0.0 if sampler == "ddim" else 1.0
