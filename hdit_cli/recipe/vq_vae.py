"""What a file of Paella's tokenizer says of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hdit_cli.recipe.section import Section, stop_at


class VQVAE(Section):
    """A tokenizer: a network sees one whole number below `vocabulary` in each place."""

    type: Literal["vq-vae"] = "vq-vae"
    levels: Annotated[int, Field(ge=1, le=8)] = 2  # of the map, each half as large as the one before
    bottleneck_blocks: Annotated[int, Field(ge=1, le=256)] = 12  # of the decoder on the smallest map
    c_hidden: Annotated[int, Field(ge=1, le=8192)] = 384  # width of the smallest map, halved at each level outwards
    c_latent: Annotated[int, Field(ge=1, le=1024)] = 4  # numbers of a code
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20)] = 8192
    scale_factor: Annotated[float, Field(gt=1e-6, le=1e6)] = 0.3764  # codes are divided by it for a network of latents

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.c_hidden % 2 ** (self.levels - 1):
            times = 2 ** (self.levels - 1)
            text = f"must be a multiple of {times}, since it is halved between {self.levels} levels, is {self.c_hidden}"
            stop_at([(("c_hidden",), text)])
        return self

    @property
    def factor(self) -> int:
        """How much smaller than a picture the map of tokens is."""
        return 2**self.levels

    @property
    def channels(self) -> int:
        """Of what a network sees: a token in each place."""
        return 1

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.codebook_size

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        return self.model_dump(exclude={"type"})

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        return 7 * (2 * self.levels + self.bottleneck_blocks - 1)
