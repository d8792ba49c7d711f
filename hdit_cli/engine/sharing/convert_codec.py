"""Autoencoders of other programs to codecs. Which there are, and what their names mean, is told beside each network."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from hdit_cli.engine.run import codec_file, header
from hdit_cli.engine.run.assemble import check_tensors
from hdit_cli.engine.sharing.foreign import Foreign, open_foreign, without_wrappers
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs import dc_ae_names, kl_vae_names, vq_vae_names
from hdit_cli.models.foreign import Misfit, Unknown, Unsupported
from hdit_cli.recipe.codec import ANY, CodecSection
from hdit_cli.recipe.section import first_problem


class Format(Protocol):
    """A module that reads the files of one kind of codec."""

    @property
    def TITLE(self) -> str:
        """What it is, for messages."""
        ...

    @property
    def SETTINGS(self) -> frozenset[str]:
        """Keys of a configuration that mean something."""
        ...

    def knows(self, names: Mapping[str, Any]) -> bool:
        """Whether these are its names."""
        ...

    def tensors(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under our names; those on the meta device too.

        Raises:
            Misfit: they are not those of a whole network.
        """
        ...

    def section_of(self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Any]:
        """What a codec's file says of the network whose tensors, under our names, have these shapes.

        Raises:
            Misfit: they are of no such network, or the configuration says otherwise.
            Unsupported: a part that this project does not have.
            Unknown: what nothing can be built without is in neither.
        """
        ...


FORMATS: tuple[Format, ...] = (kl_vae_names, vq_vae_names, dc_ae_names)
TITLES = ", ".join(each.TITLE for each in FORMATS)


def convert_codec(
    source: Path, *, out: Path, config: dict[str, Any] | None, tell: Callable[[str], None] = lambda text: None
) -> CodecSection | None:
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
    if foreign.ours is not None:
        return None
    if _format_of(foreign) is None:
        notes: list[str] = []
        foreign = without_wrappers(foreign, notes.append)
        if _format_of(foreign) is not None:
            for note in notes:
                tell(note)
    found = _format_of(foreign)
    if found is None:
        return None
    told = _settings(source, foreign, config)
    if config and not found.SETTINGS & config.keys():
        tell("the configuration says nothing of such an autoencoder: the tensors alone were read")
    try:
        section = _section(source, found, foreign, told)
        floats = {name: tensor.float().contiguous() for name, tensor in found.tensors(foreign.read()).items()}
    except Misfit as error:
        raise CheckpointError(f"{source}: {error}", hint="is the file whole, and is it the right --config?") from error
    except Unknown as error:
        raise UsageError(f"{source} {error}", hint="--config FILE.json: its config.json") from error
    except Unsupported as error:
        raise UsageError(
            f"the configuration of {source} has {error}", hint="only autoencoders of this kind convert"
        ) from error
    check_tensors(codec_file.blank(section).state_dict(), floats, where=str(source))
    if not section.vocabulary and not told.get("scaling_factor"):
        tell(
            "nothing says how its latents are scaled: they are taken as they are; --config with scaling_factor says it"
        )
    codec_file.write(out, floats, section)
    return section


def _format_of(foreign: Foreign) -> Format | None:
    return next((each for each in FORMATS if each.knows(foreign.table)), None)


def _settings(source: Path, foreign: Foreign, config: dict[str, Any] | None) -> dict[str, Any]:
    found = foreign.config if config is None else config
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(
            f"the configuration of {source} describes no network: it is no table", hint="--config FILE.json"
        )
    return found


def _section(source: Path, found: Format, foreign: Foreign, told: dict[str, Any]) -> CodecSection:
    """The codec's description; tensors that are not the network's are told before any is read."""
    try:
        whole = {n: torch.empty(e.shape, dtype=_dtype(e.dtype), device="meta") for n, e in foreign.table.items()}
    except (RuntimeError, OverflowError) as error:
        raise Misfit("a tensor has a shape that cannot be") from error
    blank = found.tensors(whole)
    shapes = {name: tuple(tensor.shape) for name, tensor in blank.items()}
    try:
        section = ANY.validate_python(found.section_of(shapes, told))
    except ValidationError as error:
        path, what = first_problem(error)
        what = f"{'.'.join(map(str, path))} {what}"
        raise Misfit(f"its configuration describes no autoencoder: {what[:200]}") from error
    if section.least_tensors() > len(shapes):
        raise Misfit(
            f"it holds {len(shapes):,} tensors, and an autoencoder of its kind {section.least_tensors():,} or more"
        )
    wanted = codec_file.blank(section).state_dict()
    types = {name: header.NAMES.get(t.dtype, str(t.dtype).removeprefix("torch.")) for name, t in blank.items()}
    table = {name: header.Entry(types[name], shape) for name, shape in shapes.items()}
    header.check_table({name: tensor.shape for name, tensor in wanted.items()}, table, where=str(source))
    return section


def _dtype(told: str) -> torch.dtype:
    """The type that a table names: "F32", "I8", or as torch does."""
    found = header.DTYPES.get(told) or getattr(torch, told.replace("I", "int").replace("U", "uint").lower(), None)
    return found if isinstance(found, torch.dtype) else torch.uint8
