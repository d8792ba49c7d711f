"""Autoencoders of other programs to codecs: AutoencoderKL of the diffusers library, and files of latent diffusion."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from hdit_cli.engine.run import codec_file, header
from hdit_cli.engine.run.assemble import check_tensors
from hdit_cli.engine.sharing.foreign import Foreign, open_foreign
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs import kl_vae_names as names
from hdit_cli.models.foreign import Misfit, Unsupported
from hdit_cli.recipe.kl_vae import KLVAE

TITLE = "AutoencoderKL (diffusers' and latent diffusion's)"


def is_codec(table: Mapping[str, Any]) -> bool:
    """Whether these are the names of an autoencoder's tensors."""
    return names.is_diffusers(table) or names.is_ldm(table)


def convert_codec(
    source: Path, *, out: Path, config: dict[str, Any] | None, tell: Callable[[str], None] = lambda text: None
) -> KLVAE | None:
    """Converts an autoencoder and writes it as a codec's file in float32; None, and nothing written, where it is none.

    Args:
        source: a file, or a folder of the diffusers library.
        config: the configuration, instead of the one beside the file.
        tell: called with what its user should know.

    Raises:
        CheckpointError: the file cannot be read, or its tensors do not fit their names or the configuration.
        UsageError: a network that is none of these.
    """
    foreign = open_foreign(source)
    if foreign.ours is not None or not is_codec(foreign.table):
        return None
    told = _settings(source, foreign, config)
    try:
        section = _section(source, {n: torch.empty(e.shape, device="meta") for n, e in foreign.table.items()}, told)
        ours = names.tensors(foreign.read())
    except Misfit as error:
        raise CheckpointError(f"{source}: {error}", hint="is the file whole, and is it the right --config?") from error
    except Unsupported as error:
        raise UsageError(
            f"the configuration of {source} has {error}", hint="only autoencoders of this kind convert"
        ) from error
    floats = {name: tensor.float().contiguous() for name, tensor in ours.items()}
    wanted = codec_file.blank(section).state_dict()
    header.check_table({n: t.shape for n, t in wanted.items()}, _table(floats), where=str(source))
    check_tensors(wanted, floats, where=str(source))
    if not told.get("scaling_factor"):
        tell(
            "nothing says how its latents are scaled: they are taken as they are; --config with scaling_factor says it"
        )
    codec_file.write(out, floats, section)
    return section


def _settings(source: Path, foreign: Foreign, config: dict[str, Any] | None) -> dict[str, Any]:
    found = foreign.config if config is None else config
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(
            f"the configuration of {source} describes no network: it is no table", hint="--config FILE.json"
        )
    return found


def _section(source: Path, blank: Mapping[str, Tensor], told: dict[str, Any]) -> KLVAE:
    """The codec's description; `blank` are its tensors without their numbers."""
    shapes = {name: tuple(tensor.shape) for name, tensor in names.tensors(blank).items()}
    arguments = names.arguments_of(shapes, told)
    shift, scale = names.normalisation_of(told, channels=arguments["channels"])
    try:
        return KLVAE.model_validate({"type": "kl-vae", **arguments, "shift": shift, "scale": scale})
    except ValidationError as error:
        first = error.errors()[0]
        place, what = first.get("ctx", {}).get("problems", [(first["loc"], first["msg"])])[0]
        what = f"{'.'.join(map(str, place))} {what}"
        raise Misfit(f"its configuration describes no autoencoder: {what[:200]}") from error


def _table(tensors: Mapping[str, Tensor]) -> header.Table:
    return {name: header.Entry("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
