"""[task]: what is learnt, and how pictures come of it."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from hdit_cli import catalog
from hdit_cli.recipe.diffusion import Diffusion
from hdit_cli.recipe.network import NetworkSection
from hdit_cli.recipe.section import Problem, Section
from hdit_cli.recipe.sections import Sample

DEFAULT_TASK = "denoise"


class Denoise(Section):
    """Karras et al. 2022: the clean image from one with noise of any level sigma. `[diffusion]` says how."""

    outputs: ClassVar[int] = 1
    cfg_channels: ClassVar[int] = 0
    type: Literal["denoise"] = "denoise"

    def problems(self, *, model: NetworkSection, diffusion: Diffusion, sample: Sample) -> Iterator[Problem]:
        """What of the rest of a recipe does not go with the task; arguments as in `Ddpm.problems`."""
        if sample.sampler in catalog.OVER_TIMESTEPS:
            fitting = ", ".join(name for name in catalog.names("sampler") if name not in catalog.OVER_TIMESTEPS)
            yield ("sample", "sampler"), f'is {sample.sampler!r}, which is for task.type = "ddpm"; one of: {fitting}'

    def facts(self, diffusion: Diffusion) -> dict[str, Any]:
        """What `hdit info` tells of it."""
        names = ("sigma_data", "sigma_min", "sigma_max", "weighting")
        told = {name: getattr(diffusion, name) for name in names}
        return {"task": self.type, **told, "density": diffusion.density.model_dump()}

    def arguments(self, diffusion: Diffusion) -> dict[str, Any]:
        """Keyword arguments of the task, beside its network."""
        names = ("sigma_data", "sigma_min", "sigma_max", "weighting", "gamma", "class_dropout")
        density = diffusion.density
        return {name: getattr(diffusion, name) for name in names} | {"density": (density.type, density.options())}


class Ddpm(Section):
    """Ho et al. 2020 with learned variance (Nichol & Dhariwal 2021), as DiT was trained: the noise at a timestep.

    Its own table of betas takes the place of `[diffusion]`, of which `class_dropout` alone is read.
    """

    type: Literal["ddpm"] = "ddpm"
    timesteps: Annotated[int, Field(ge=21, le=100_000)] = 1000  # the last beta, 20 / timesteps, must stay below 1
    learned_variance: bool = True  # the loss is then the squared error plus the variational bound in bits
    cfg_channels: Annotated[int, Field(ge=0, le=64)] = 0  # channels, from the first, that guidance acts on; 0 = all
    clip: bool = False  # sampling clamps what it takes for the clean image to [-1, 1]; for pixels, never for latents

    @property
    def outputs(self) -> int:
        """Values that the network returns for each channel."""
        return 2 if self.learned_variance else 1

    def problems(self, *, model: NetworkSection, diffusion: Diffusion, sample: Sample) -> Iterator[Problem]:
        """What of the rest of a recipe does not go with the task.

        Args:
            model, sample: the sections.
            diffusion: the section, complete.
        """
        if self.cfg_channels > model.channels:
            what = f"is {self.cfg_channels}, and an image has {model.channels} channels; 0 is all"
            yield ("task", "cfg_channels"), what
        if model.told != "timestep":
            yield ("task", "type"), 'is "ddpm", which is for a network that is told timesteps: model.type = "dit"'
        usual, found = Diffusion().chosen(), diffusion.chosen()
        for key in Diffusion.model_fields:
            if key != "class_dropout" and found[key] != usual[key]:
                yield ("diffusion", key), "is of the task denoise; ddpm has a table of its own, so leave it out"
        if sample.sampler in catalog.OVER_TIMESTEPS and sample.steps > self.timesteps:
            text = (
                f"must be at most task.timesteps {self.timesteps}, which {sample.sampler} goes over, is {sample.steps}"
            )
            yield ("sample", "steps"), text

    def facts(self, diffusion: Diffusion) -> dict[str, Any]:
        """What `hdit info` tells of it."""
        return {"task": self.type, **self.model_dump(exclude={"type"})}

    def arguments(self, diffusion: Diffusion) -> dict[str, Any]:
        """Keyword arguments of the task, beside its network."""
        return self.model_dump(exclude={"type", "cfg_channels"}) | {"class_dropout": diffusion.class_dropout}


def _task_type(value: Any) -> Any:
    return value.get("type", DEFAULT_TASK) if isinstance(value, dict) else getattr(value, "type", None)


AnyTask = Annotated[
    Annotated[Denoise, Tag("denoise")] | Annotated[Ddpm, Tag("ddpm")],
    Discriminator(_task_type),
]
