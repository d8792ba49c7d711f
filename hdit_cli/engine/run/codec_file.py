"""Files of codecs: written, read, and found for a checkpoint that needs one.

A checkpoint says of its codec the kind and the SHA-256, never where it lies. It is looked for where the user says, else beside
the checkpoint under a name made of both, and is hashed before it is read.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from hdit_cli import catalog, files
from hdit_cli.data.encoded import CODEC_FILE
from hdit_cli.engine.run import header
from hdit_cli.engine.run.assemble import check_tensors
from hdit_cli.engine.run.checkpoint import needs_of, read_announced, read_tensors, serialise
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs.dc_ae import Compressed
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.latents import Absent, Latents, file_name
from hdit_cli.models.codecs.tokens import Tokens
from hdit_cli.recipe.autoencoder import Autoencoder
from hdit_cli.recipe.codec import ANY, CodecSection, made
from hdit_cli.recipe.dc_ae import DCAE
from hdit_cli.recipe.section import first_problem
from hdit_cli.recipe.vq_vae import VQVAE

_HINT = (
    "`hdit convert SRC` makes one of an AutoencoderKL (a folder of the diffusers library, or a file of latent diffusion), of "
    "Paella's VQ model, or of an AutoencoderDC (a folder of the diffusers library)"
)

_OF_A_SET = (
    "`hdit encode data/flowers64 --codec CKPT` makes an encoded set with it inside; CKPT is a codec that a run trained "
    "(flowers64-kl and flowers64-vq are such recipes) or that `hdit convert` made"
)


def write(path: Path, tensors: dict[str, Tensor], section: CodecSection) -> None:
    """Writes a codec's file: the same bytes, and so the same SHA-256, by every version that knows the format."""
    metadata = {
        "format": "pt",
        "hdit.format": header.CODEC_FORMAT,
        "hdit.codec": json.dumps(section.model_dump(mode="json")),
    }
    files.make_folder(path.parent)
    files.write_bytes(path, serialise(tensors, metadata))


def _none_at(path: Path) -> CheckpointError:
    """Of a path that is no file; of a folder, which may be a run or an encoded set, with the file in it that may be meant."""
    inside = [name for name in (CODEC_FILE, "ckpt.safetensors") if (path / name).is_file()]
    if not path.is_dir():
        return CheckpointError(f"no codec {path}", hint=_OF_A_SET if path.name == CODEC_FILE else _HINT)
    hint = f"name the file in it: {path / inside[0]}" if inside else _HINT
    return CheckpointError(f"{path} is a folder, and a codec is a file", hint=hint)


def is_codec(metadata: dict[str, str]) -> bool:
    """Whether the metadata of a safetensors file are those of a codec's own file."""
    return metadata.get("hdit.format") == header.CODEC_FORMAT


def section_of(metadata: dict[str, str], *, where: str) -> CodecSection:
    """What the header of a codec's file says of it.

    Raises:
        CheckpointError: it is no codec, or its header cannot be read.
    """
    if metadata.get("hdit.format") == header.FORMAT:
        return _of_checkpoint(metadata, where=where)
    if not is_codec(metadata):
        raise CheckpointError(f"{where} is no codec", hint=_HINT)
    try:
        value = header.parse_json(metadata.get("hdit.codec", ""), what="hdit.codec")
        return ANY.validate_python(value)
    except header.Garbled as error:
        raise CheckpointError(f"the header of {where} cannot be read: {error}", hint="get it again") from error
    except ValidationError as error:
        place = ".".join(map(str, first_problem(error)[0])) or "type"
        raise CheckpointError(
            f"the header of {where} describes no codec: {place[:100]} is not what it must be", hint="get it again"
        ) from error


def _of_checkpoint(metadata: dict[str, str], *, where: str) -> CodecSection:
    """An autoencoder that a run trained is a codec as it lies there; one of a Gaussian without statistics of its latents."""
    model = header.read_facts(metadata, where=where).recipe.model
    if not isinstance(model, Autoencoder):
        raise CheckpointError(
            f"{where} is no codec: it holds a network of type {model.type}",
            hint='one that task.type = "autoencode" trained, or that `hdit convert` made',
        )
    return model.codec()


def blank(section: CodecSection) -> Any:
    """The network that a section describes, without memory for its weights."""
    with torch.device("meta"):
        return catalog.get("codec", section.type)(**section.arguments())


def outline(section: CodecSection) -> Frozen:
    """The codec that a section describes, without memory for its weights."""
    with torch.device("meta"):
        return _frozen(blank(section), section, sha256="")


def _check(table: header.Table, section: CodecSection, *, where: str) -> None:
    if section.least_tensors() > len(table):
        raise CheckpointError(
            f"{where} holds {len(table):,} tensors, and its header asks for a codec of {section.least_tensors():,} or more",
            hint="it does not fit its own header",
        )
    for name, entry in table.items():
        if entry.dtype != "F32":
            raise CheckpointError(
                f"{where}: {name} is of type {entry.dtype}, and a codec's weights are F32",
                hint="`hdit convert` makes a codec of weights of any type",
            )
    header.check_table({name: tensor.shape for name, tensor in blank(section).state_dict().items()}, table, where=where)


def codec_section(path: Path) -> CodecSection:
    """What a codec's file says of it, by its header alone.

    Raises:
        CheckpointError: no file, or no codec.
    """
    if not path.is_file():
        raise _none_at(path)
    status = path.stat()
    return _section_at(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _section_at(path: Path, changed: int, size: int) -> CodecSection:
    table, metadata = read_announced(path)
    section = section_of(metadata, where=str(path))
    _check(table, section, where=str(path))
    return section


def codec_sha256(path: Path) -> str:
    """SHA-256 of a codec's file, its fingerprint; read once as long as the file stays the same.

    Raises:
        CheckpointError: no file.
    """
    if not path.is_file():
        raise _none_at(path)
    status = path.stat()
    return _sha256_at(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _sha256_at(path: Path, changed: int, size: int) -> str:
    return files.sha256(path)


def load_codec(path: str | Path, *, device: str | torch.device | None = None) -> Frozen:
    """Loads a codec that `hdit convert` made.

    Args:
        device: where to; None is the CPU.

    Returns:
        its `encode(pixels)` and `decode(latents)`; of latents also their `statistics`, of tokens how many there are, `vocabulary`.

    Raises:
        CheckpointError: no file, no codec, damaged, or with NaN in it.
    """
    path = Path(path)
    if not path.is_file():
        raise _none_at(path)
    sha256 = files.sha256(path)
    tensors, metadata = read_tensors(
        path, check=lambda table, told: _check(table, section_of(told, where=str(path)), where=str(path))
    )
    section = section_of(metadata, where=str(path))
    network = blank(section)
    check_tensors(network.state_dict(), tensors, where=str(path))
    network.load_state_dict(tensors, assign=True)
    found = _frozen(network, section, sha256=sha256)
    found.file = str(path)
    return found.to(torch.device(device)) if device is not None else found


def _frozen(network: Any, section: CodecSection, *, sha256: str) -> Frozen:
    """The codec around its network."""
    if isinstance(section, VQVAE):
        return Tokens(network, sha256=sha256)
    if isinstance(section, DCAE):
        return Compressed(network, scale=section.scaling_factor, sha256=sha256)
    return Latents(network, shift=section.shift, scale=section.scale, sha256=sha256)


# What a checkpoint needs


def found_for(wanted: Absent, *, named: Path | None, beside: Path) -> Frozen | Absent:
    """The codec that a checkpoint needs: the file that the user names, else the one beside the checkpoint.

    Args:
        beside: the folder of the checkpoint; of a step's folder in a run, also the run's.

    Raises:
        UsageError: the named file is another codec.
        CheckpointError: it cannot be read, the file beside has other bytes than its name says, or it makes other latents than
            the checkpoint says.
    """
    if named is not None:
        if not named.is_file():
            raise _none_at(named)
        if (sha256 := files.sha256(named)) != wanted.sha256:
            raise UsageError(
                f"{named} is another codec than the one this model was trained with: its SHA-256 begins with {sha256[:8]}, "
                f"not {wanted.sha256[:8]}",
                hint=f"give that one, or put it beside the checkpoint as {wanted.name}",
            )
        return _fitting(load_codec(named), wanted)
    for folder in (beside, beside.parent, beside.parent.parent):
        place = folder / wanted.name
        if place.is_file():
            if files.sha256(place) != wanted.sha256:
                raise CheckpointError(f"{place} has other bytes than its name says", hint="get it again")
            return _fitting(load_codec(place), wanted)
    return wanted


def _fitting(codec: Frozen, wanted: Absent) -> Frozen:
    """The codec of that SHA-256, if its latents are what the checkpoint says of them: a header may say anything."""
    if needs_of(codec) != needs_of(wanted):
        raise CheckpointError(
            f"the checkpoint needs {_told(wanted)}, and the codec that it names, {codec.file}, makes {_told(codec)}",
            hint="the checkpoint's header is wrong: get it again from where it was trained",
        )
    return codec


def _told(codec: Frozen | Absent) -> str:
    return f"{made(codec.channels, codec.vocabulary)} at 1/{codec.factor} of the size"


def keep_beside(codec: Frozen, folder: Path) -> Path:
    """Copies a codec's file into a folder under the name by which a checkpoint finds it; nothing where it is there."""
    place = folder / file_name(codec.kind, codec.fingerprint())
    if not place.is_file() or files.sha256(place) != codec.fingerprint():
        files.write_bytes(place, Path(codec.file).read_bytes())
    return place
