"""What a file of a KL autoencoder says of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hdit_cli.recipe.section import Listed, Problem, Section, stop_at

Width = Annotated[int, Field(ge=1, le=8192)]
LEAST_SCALE = 1e-6
Number = Annotated[float, Field(ge=-1e6, le=1e6)]


class KLVAE(Section):
    """The autoencoder of latent diffusion; latents for a network are (z - shift) scale."""

    type: Literal["kl-vae"] = "kl-vae"
    widths: Annotated[tuple[Width, ...], Listed, Field(min_length=1, max_length=8)]  # of the levels, from the outermost
    channels: Annotated[int, Field(ge=1, le=1024)]  # of a latent
    layers: Annotated[int, Field(ge=1, le=16)] = 2  # blocks of a level; the decoder has one more
    groups: Annotated[int, Field(ge=1, le=1024)] = 32  # of the group norms
    attends: Annotated[tuple[Annotated[int, Field(ge=0, le=7)], ...], Listed, Field(max_length=8)] = ()
    middle_attention: bool = True
    quant: Annotated[tuple[bool, bool], Listed] = (
        True,
        True,
    )  # 1 x 1 convolutions after the encoder, before the decoder
    pictures: Literal[3] = 3  # channels of a picture
    shift: Annotated[tuple[Number, ...], Listed, Field(min_length=1, max_length=1024)] = (0.0,)
    scale: Annotated[tuple[Number, ...], Listed, Field(min_length=1, max_length=1024)] = (1.0,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems: list[Problem] = [
            (("widths", i), f"must be a multiple of groups {self.groups}, is {width}")
            for i, width in enumerate(self.widths)
            if width % self.groups
        ]
        problems += [
            (("attends",), f"names level {i} of {len(self.widths)}") for i in self.attends if i >= len(self.widths)
        ]
        for name in ("shift", "scale"):
            if len(getattr(self, name)) not in (1, self.channels):
                problems.append(((name,), f"has {len(getattr(self, name))} numbers for {self.channels} channels"))
        if any(abs(scale) < LEAST_SCALE for scale in self.scale):
            problems.append((("scale",), f"is nearer to 0 than {LEAST_SCALE:g}, and latents are divided by it"))
        stop_at(problems)
        return self

    @property
    def factor(self) -> int:
        """How much smaller than a picture a map of latents is."""
        return 2 ** (len(self.widths) - 1)

    @property
    def vocabulary(self) -> int:
        """None: a network sees latents, no tokens."""
        return 0

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in ("type", "shift", "scale")}

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        return 16 * self.layers * len(self.widths)
