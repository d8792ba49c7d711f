"""What a file of a deep compression autoencoder says of it: the settings that the diffusers library builds it of."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hdit_cli.recipe.kl_vae import LEAST_SCALE, Number, Width
from hdit_cli.recipe.section import Listed, Problem, Section, stop_at

_LEVELS = Field(min_length=2, max_length=8)
_Kernels = Annotated[tuple[Annotated[int, Field(ge=1, le=63)], ...], Listed, Field(max_length=8)]
Widths = Annotated[tuple[Width, ...], Listed, _LEVELS]
Counts = Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Listed, _LEVELS]
Blocks = Annotated[tuple[Literal["ResBlock", "EfficientViTBlock"], ...], Listed, _LEVELS]
Norms = Annotated[tuple[Literal["rms_norm", "batch_norm"], ...], Listed, _LEVELS]
Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
Activations = Annotated[tuple[Activation, ...], Listed, _LEVELS]
Kernels = Annotated[tuple[_Kernels, ...], Listed, _LEVELS]
_SIDES = ("encoder", "decoder")
_YOUNGER = {"encoder_out_shortcut": True, "decoder_in_shortcut": True, "decoder_conv_act_fn": "relu"}


class DCAE(Section):
    """The autoencoder of Chen et al. 2024 (arXiv 2410.10733): one latent for a picture, times `scaling_factor` for a network.

    Levels from the outermost; names as in the library's `AutoencoderDC`.
    """

    type: Literal["dc-ae"] = "dc-ae"
    latent_channels: Annotated[int, Field(ge=1, le=8192)]
    attention_head_dim: Annotated[int, Field(ge=1, le=8192)] = 32
    encoder_block_types: Blocks
    decoder_block_types: Blocks
    encoder_block_out_channels: Widths
    decoder_block_out_channels: Widths
    encoder_layers_per_block: Counts
    decoder_layers_per_block: Counts
    encoder_qkv_multiscales: Kernels
    decoder_qkv_multiscales: Kernels
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    downsample_block_type: Literal["pixel_unshuffle", "conv"] = "pixel_unshuffle"
    decoder_norm_types: Norms
    decoder_act_fns: Activations
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: Activation = "relu"
    scaling_factor: Number = 1.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        lengths = list(self._length_problems())
        stop_at(lengths or [*self._level_problems(), *self._shortcut_problems()])
        if abs(self.scaling_factor) < LEAST_SCALE:
            text = f"is nearer to 0 than {LEAST_SCALE:g}, and latents are divided by it"
            stop_at([(("scaling_factor",), text)])
        return self

    def _length_problems(self) -> Iterator[Problem]:
        levels = len(self.encoder_block_out_channels)
        for name in (
            *_of("block_types"),
            *_of("block_out_channels"),
            *_of("layers_per_block"),
            *_of("qkv_multiscales"),
        ):
            if len(getattr(self, name)) != levels:
                yield (name,), f"has {len(getattr(self, name))} entries for {levels} levels"
        for name in ("decoder_norm_types", "decoder_act_fns"):
            if len(getattr(self, name)) != levels:
                yield (name,), f"has {len(getattr(self, name))} entries for {levels} levels"

    def _level_problems(self) -> Iterator[Problem]:
        """Each level halves or doubles the map, and is one that can be computed."""
        for side in _SIDES:
            widths, kinds, layers, kernels = self._of_side(side)
            for i, width in enumerate(widths):
                if not layers[i] and i:
                    yield (f"{side}_layers_per_block", i), "is 0, and only the outermost level may be without layers"
                if layers[i] and kinds[i] == "EfficientViTBlock" and width < self.attention_head_dim:
                    yield (f"{side}_block_out_channels", i), f"is {width}, less than attention_head_dim"
                if even := [size for size in kernels[i] if size % 2 == 0]:
                    yield (f"{side}_qkv_multiscales", i), f"has the even size {even[0]}"

    def _shortcut_problems(self) -> Iterator[Problem]:
        """Past every change of the map channels are averaged or repeated, so that their numbers divide."""
        for side in _SIDES:
            widths, _, layers, _ = self._of_side(side)
            down = side == "encoder"
            inner = list(enumerate(pairwise(widths), start=1))[0 if layers[0] else 1 :]
            for i, (outer, width) in inner:
                if 4 * outer % width:
                    yield (f"{side}_block_out_channels", i), f"{width} does not divide 4 times {outer}"
            first = widths[0 if layers[0] else 1]
            entered = [width for _, (_, width) in inner] + ([] if layers[0] else [first])
            if down and self.downsample_block_type == "pixel_unshuffle" and (odd := [w for w in entered if w % 4]):
                yield (f"{side}_block_out_channels",), f"{odd[0]} is no multiple of 4"
            shortcut = self.encoder_out_shortcut if down else self.decoder_in_shortcut
            if shortcut and widths[-1] % self.latent_channels:
                yield (f"{side}_block_out_channels",), f"{widths[-1]} is no multiple of latent_channels"

    def _of_side(
        self, side: str
    ) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
        names = ("block_out_channels", "block_types", "layers_per_block", "qkv_multiscales")
        widths, kinds, layers, kernels = (getattr(self, f"{side}_{name}") for name in names)
        return widths, kinds, layers, kernels

    @property
    def factor(self) -> int:
        """How much smaller than a picture a map of latents is."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.latent_channels

    @property
    def vocabulary(self) -> int:
        """None: a network sees latents, no tokens."""
        return 0

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network; of those that older versions of the library lack, what differs from these alone."""
        found = {
            name: getattr(self, name) for name in type(self).model_fields if name not in ("type", "scaling_factor")
        }
        return {name: value for name, value in found.items() if _YOUNGER.get(name, ...) != value}

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        return 4 * (sum(self.encoder_layers_per_block) + sum(self.decoder_layers_per_block))


def _of(name: str) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for side in _SIDES)
