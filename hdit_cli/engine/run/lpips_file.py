"""Files of the weights of LPIPS: written, checked and read.

Like a codec's file it is hashed before it is read, and its header names nothing that is opened: it tells the SHA-256 of the
files that it was made from.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.engine.run import header
from hdit_cli.engine.run.checkpoint import read_announced, read_tensors, serialise
from hdit_cli.errors import CheckpointError
from hdit_cli.models.lpips import LPIPS
from hdit_cli.models.lpips_names import HEADS_URL, VGG16, VGG16_URL

_SOURCES = "hdit.sources"  # of the metadata: "vgg16" and "heads" => SHA-256


def how_to_make(path: str | Path) -> str:
    """What to type for a file of these weights."""
    return (
        f"download {VGG16_URL} and {HEADS_URL}, then `hdit convert {VGG16} --heads vgg.pth --out {path}`; "
        "without --heads every channel counts the same"
    )


def write(path: Path, tensors: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
    """Writes the weights; the same bytes for the same tensors and sources.

    Args:
        sources: "vgg16" and "heads" => the SHA-256 of the file that they come from.
    """
    metadata = {"format": "pt", "hdit.format": header.LPIPS_FORMAT, _SOURCES: json.dumps(dict(sources), sort_keys=True)}
    files.make_folder(path.parent)
    files.write_bytes(path, serialise(tensors, metadata))


def is_lpips(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a safetensors file are those of such weights."""
    return metadata.get("hdit.format") == header.LPIPS_FORMAT


def wanted(*, heads: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by name of all that a file holds."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LPIPS(heads=heads).state_dict().items()}


def announced(path: Path) -> tuple[bool, dict[str, str]]:
    """What a file says of itself by its header alone: whether it has heads, and what it was made from.

    Raises:
        CheckpointError: no file, or no such weights.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights of LPIPS at {path}", hint=how_to_make(path))
    table, metadata = read_announced(path)
    _check_table(table, metadata, where=path)
    return _has_heads(table), _sources(metadata, where=path)


def load_lpips(path: str | Path, *, device: str | torch.device | None = None) -> LPIPS:
    """Loads the weights that `hdit convert` made of VGG16 and the heads of LPIPS.

    Args:
        device: where to; None is the CPU.

    Raises:
        CheckpointError: no file, no such weights, damaged, or with NaN in them.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights of LPIPS at {path}", hint=how_to_make(path))
    sha256 = files.sha256(path)
    tensors, _ = read_tensors(path, check=lambda table, told: _check_table(table, told, where=path))
    check_values(tensors, where=path)
    found = LPIPS(heads=_has_heads(tensors))
    found.load_state_dict(tensors)
    found.file, found.sha256 = str(path), sha256
    return found.to(torch.device(device)) if device is not None else found


def check_values(tensors: Mapping[str, Tensor], *, where: Path) -> None:
    """Raises CheckpointError, naming the tensor, unless every number is finite and no head's is below zero."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: {name} holds NaN or infinity", hint="it is damaged: get it again")
        if name.startswith("lin") and bool((tensor < 0).any()):
            raise CheckpointError(
                f"{where}: {name} holds numbers below 0, and no channel makes two pictures more alike by differing",
                hint=f"the heads of LPIPS are those of {HEADS_URL}",
            )


def _has_heads(names: Mapping[str, object]) -> bool:
    return any(name.startswith("lin") for name in names)


def _check_table(table: header.Table, metadata: Mapping[str, str], *, where: Path) -> None:
    if not is_lpips(metadata):
        raise CheckpointError(f"{where} holds no weights of LPIPS as hdit keeps them", hint=how_to_make(where))
    shapes = wanted(heads=_has_heads(table))
    header.check_table(shapes, table, where=str(where))
    for name, entry in table.items():
        if entry.dtype != "F32":
            raise CheckpointError(
                f"{where}: {name} is of type {entry.dtype}, and these weights are F32",
                hint="`hdit convert` makes them of weights of any type",
            )


def _sources(metadata: Mapping[str, str], *, where: Path) -> dict[str, str]:
    try:
        told = header.parse_json(metadata.get(_SOURCES, ""), what=_SOURCES)
        header.expect(isinstance(told, dict) and told.keys() <= {"vgg16", "heads"}, f"{_SOURCES} is no table of these")
        header.expect(all(map(header.is_sha256, told.values())), f"{_SOURCES} holds no SHA-256")
        return told
    except header.Garbled as error:
        raise CheckpointError(f"the header of {where} cannot be read: {error}", hint="get it again") from error
