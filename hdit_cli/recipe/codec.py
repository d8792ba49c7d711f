"""[codec]: what stands between pictures and the network."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from hdit_cli import catalog
from hdit_cli.recipe.dc_ae import DCAE
from hdit_cli.recipe.kl_vae import KLVAE
from hdit_cli.recipe.section import PathText, Section
from hdit_cli.recipe.vq_vae import VQVAE

# What a codec's file says of it, by its `type`
CodecSection = KLVAE | VQVAE | DCAE
ANY: TypeAdapter[CodecSection] = TypeAdapter(Annotated[CodecSection, Field(discriminator="type")])


def made(channels: int, vocabulary: int) -> str:
    """What a network sees, in words.

    Args:
        vocabulary: 0 where it sees no tokens.
    """
    return f"tokens below {vocabulary:,}" if vocabulary else f"latents of {channels} channels"


def kept(folder: Path) -> list[Path]:
    """Copies of codecs that a run of latents or tokens keeps, by kind and SHA-256, sorted."""
    return sorted(path for kind in catalog.names("codec") for path in folder.glob(f"{kind}-????????.safetensors"))


class Codec(Section):
    """Nothing: the network sees pixels. With `path` it sees the latents or tokens of that codec, and `model.size` is theirs."""

    path: PathText = ""  # a file that `hdit convert` made of an autoencoder
    sample: bool = True  # training draws each latent anew from the codec's Gaussian; false takes its mean
