"""[model] with type = "kl-vae" or "vq-vae": an autoencoder that a run trains, with task.type = "autoencode"."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hdit_cli.recipe import kl_vae, vq_vae
from hdit_cli.recipe.network import Size
from hdit_cli.recipe.section import Listed, Problem, Section, nearest_multiple, stop_at


class Autoencoder(Section):
    """What both share: they see pictures, and are told of no noise and no class."""

    told: ClassVar[str] = "nothing"
    takes_augment: ClassVar[bool] = False
    size: Size  # height, width of the pictures
    channels: Literal[3] = 3
    classes: Literal[0] = 0

    @property
    def factor(self) -> int:
        """Pixels on a side of one latent value."""
        raise NotImplementedError

    def codec(self) -> Any:
        """What the file of the codec says that it becomes."""
        raise NotImplementedError

    def start(self) -> dict[str, Any]:
        """Keyword arguments of a new network alone."""
        return {}

    def arguments(self, *, outputs: int) -> dict[str, Any]:
        """Keyword arguments of the network."""
        return self.codec().arguments() | self.start()

    @property
    def unit(self) -> tuple[int, int]:
        """(height, width) of which an image's sides must be multiples, in pixels."""
        return self.factor, self.factor

    @property
    def recomputes(self) -> bool:
        return False

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        return self.codec().least_tensors()

    def lighter(self) -> Iterator[dict[str, Any]]:
        """Switches with which training takes less memory: none but a smaller batch."""
        return iter(())

    def beyond_data(self) -> Iterator[tuple[str, str]]:
        """What the network asks for and no data set holds: nothing."""
        return iter(())

    def facts(self) -> dict[str, Any]:
        """What `hdit info` tells of it, beside what it tells of every network."""
        skipped = {"type", "size", "channels", "classes"}
        return self.model_dump(exclude=skipped) | {"latent": [side // self.factor for side in self.size]}

    def misfits(self, size: tuple[int, int]) -> list[Problem]:
        """Why the network cannot be given images of another (height, width); empty where it can."""
        return [
            (
                ("size", axis),
                f"must be a multiple of the factor {self.factor}, is {side}; the nearest is {nearest_multiple(side, self.factor)}",
            )
            for axis, side in enumerate(size)
            if side % self.factor
        ]

    def misfit_of(
        self, size: tuple[int, int], *, among: Sequence[tuple[int, int]], pixels: int = 1
    ) -> tuple[str, str] | None:
        """Why the network cannot be given the images of one size of a data set, and what helps; None where it can."""
        problems = self.misfits(size)
        if not problems:
            return None
        height, width = (nearest_multiple(side, self.factor) for side in self.size)
        again = f"`hdit prepare SRC --size {height}x{width} --buckets --bucket-step {self.factor}`"
        return f"a side {problems[0][1].partition(';')[0]}", again


class KLVAE(Autoencoder):
    """Widths are multiples of `groups`; the map is halved between levels, so `factor` is 2^(levels - 1)."""

    type: Literal["kl-vae"] = "kl-vae"
    widths: Annotated[tuple[kl_vae.Width, ...], Listed, Field(min_length=1, max_length=8)]  # from the outermost level
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 4
    layers: Annotated[int, Field(ge=1, le=16)] = 2  # blocks of a level; the decoder has one more
    groups: Annotated[int, Field(ge=1, le=1024)] = 32  # of the group norms
    attends: Annotated[tuple[Annotated[int, Field(ge=0, le=7)], ...], Listed, Field(max_length=8)] = ()
    middle_attention: bool = True
    quant: Annotated[tuple[bool, bool], Listed] = (True, True)  # 1 x 1 convolutions around the latent

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)

    def codec(self) -> kl_vae.KLVAE:
        names = ("widths", "layers", "groups", "attends", "middle_attention", "quant")
        return kl_vae.KLVAE(channels=self.latent_channels, **{name: getattr(self, name) for name in names})

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
        stop_at([*problems, *self.misfits(self.size)])
        return self


class VQVAE(Autoencoder):
    """Paella's tokenizer; `factor` is 2^levels. A new codebook begins as N(0, 1), as its latents are."""

    type: Literal["vq-vae"] = "vq-vae"
    levels: Annotated[int, Field(ge=1, le=8)] = 2
    bottleneck_blocks: Annotated[int, Field(ge=0, le=256)] = 12  # of the decoder, on the smallest map
    c_hidden: Annotated[int, Field(ge=1, le=16384)] = 384  # width of the smallest map, halved at each level outwards
    c_latent: Annotated[int, Field(ge=1, le=1024)] = 4
    codebook_size: Annotated[int, Field(ge=2, le=1_048_576)] = 8192
    codebook_start: Literal["normal", "uniform"] = "normal"  # uniform: U(-1/K, 1/K), as the authors'

    @property
    def factor(self) -> int:
        return 2**self.levels

    def codec(self) -> vq_vae.VQVAE:
        names = ("levels", "bottleneck_blocks", "c_hidden", "c_latent", "codebook_size")
        return vq_vae.VQVAE(**{name: getattr(self, name) for name in names})

    def start(self) -> dict[str, Any]:
        return {"codebook_start": self.codebook_start}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems: list[Problem] = []
        if self.c_hidden % 2 ** (self.levels - 1):
            text = f"must be a multiple of {2 ** (self.levels - 1)}, it is halved between {self.levels} levels, is {self.c_hidden}"
            problems.append((("c_hidden",), text))
        stop_at([*problems, *self.misfits(self.size)])
        return self
