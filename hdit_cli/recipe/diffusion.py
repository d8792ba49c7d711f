"""[diffusion]: noise range, loss weighting, and the density that training noise levels are drawn from."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from hdit_cli.recipe.section import Probability, Problem, Section, Sigma, WeightingName, stop_at

DEFAULT_DENSITY = "cosine-interpolated"

Location = Annotated[float, Field(ge=-100.0, le=100.0)]
Scale = Annotated[float, Field(gt=0.0, le=100.0)]
Side = Annotated[float, Field(gt=0.0, le=1e6)]


class Density(Section):
    """A density by its type and options. An option left out is filled in by `Recipe` from the rest of the recipe."""

    fill: ClassVar[tuple[str, ...]] = ()  # options taken from the rest of the recipe

    def options(self) -> dict[str, float]:
        """The options as keyword arguments: everything but the type."""
        return self.model_dump(exclude={"type"}, exclude_none=True)


class Cosine(Density):
    fill: ClassVar[tuple[str, ...]] = ("sigma_data", "sigma_min", "sigma_max")
    type: Literal["cosine"] = "cosine"
    sigma_data: Sigma | None = None
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None


class CosineInterpolated(Density):
    """Hoogeboom et al. 2023 (arXiv 2301.11093), between two reference resolutions; sizes in pixels."""

    fill: ClassVar[tuple[str, ...]] = ("image_size", "noise_d_high", "sigma_data", "sigma_min", "sigma_max")
    type: Literal["cosine-interpolated"] = "cosine-interpolated"
    image_size: Side | None = None
    noise_d_low: Side = 32.0
    noise_d_high: Side | None = None
    sigma_data: Sigma | None = None
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None


class Lognormal(Density):
    """Defaults of EDM (Karras et al. 2022, arXiv 2206.00364, table 1)."""

    type: Literal["lognormal"] = "lognormal"
    loc: Location = -1.2
    scale: Scale = 1.2


class Loglogistic(Density):
    fill: ClassVar[tuple[str, ...]] = ("loc", "sigma_min", "sigma_max")
    type: Literal["loglogistic"] = "loglogistic"
    loc: Location | None = None
    scale: Scale = 0.5
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None


class Loguniform(Density):
    type: Literal["loguniform"] = "loguniform"
    fill: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max")
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None


class SplitLognormal(Density):
    type: Literal["split-lognormal"] = "split-lognormal"
    loc: Location
    scale_1: Scale
    scale_2: Scale


def _density_type(value: Any) -> Any:
    return value.get("type", DEFAULT_DENSITY) if isinstance(value, dict) else getattr(value, "type", None)


AnyDensity = Annotated[
    Annotated[Cosine, Tag("cosine")]
    | Annotated[CosineInterpolated, Tag("cosine-interpolated")]
    | Annotated[Lognormal, Tag("lognormal")]
    | Annotated[Loglogistic, Tag("loglogistic")]
    | Annotated[Loguniform, Tag("loguniform")]
    | Annotated[SplitLognormal, Tag("split-lognormal")],
    Discriminator(_density_type),
]


class Diffusion(Section):
    """`sigma_min`..`sigma_max` is the range of sampling; training covers the range of its density."""

    sigma_data: Sigma = 0.5
    sigma_min: Sigma = 1e-2
    sigma_max: Sigma = 80.0
    weighting: WeightingName = "soft-min-snr"
    gamma: Annotated[float, Field(gt=0.0, le=1e6)] = 5.0  # read by min-snr
    density: AnyDensity = CosineInterpolated()
    class_dropout: Probability = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        stop_at(_range_problems((), self.sigma_min, self.sigma_max))
        return self

    def chosen(self) -> dict[str, Any]:
        """All values but those options of the density that follow from the rest of a recipe."""
        filled = set(self.density.fill)
        return {**dict(self), "density": self.density.model_dump(exclude=filled)}

    def resolved(self, *, image_size: int) -> Self:
        """The same section with every option of the density filled in.

        Training reaches at least [1e-3, 1e3], beyond the range of sampling, as HDiT's does; log-uniform keeps the
        range of sampling.

        Args:
            image_size: the longer side in pixels.

        Raises:
            PydanticCustomError: the density's range is empty.
        """
        wide = not isinstance(self.density, Loguniform)
        defaults = {
            "image_size": float(image_size),
            "noise_d_high": float(image_size),
            "sigma_data": self.sigma_data,
            "loc": math.log(self.sigma_data),
            "sigma_min": min(self.sigma_min, 1e-3) if wide else self.sigma_min,
            "sigma_max": max(self.sigma_max, 1e3) if wide else self.sigma_max,
        }
        missing = [key for key in self.density.fill if getattr(self.density, key) is None]
        density = self.density.model_copy(update={key: defaults[key] for key in missing})
        low, high = getattr(density, "sigma_min", None), getattr(density, "sigma_max", None)
        if low is not None and high is not None:
            stop_at(_range_problems(("diffusion", "density"), low, high))
        return self.model_copy(update={"density": density})


def _range_problems(path: tuple[str, ...], low: float, high: float) -> Iterator[Problem]:
    if low >= high:
        yield (*path, "sigma_min"), f"must be below sigma_max {high:g}, is {low:g}"
