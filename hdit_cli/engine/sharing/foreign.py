"""Files of other programs, looked at and read: safetensors, what torch.save wrote, and folders as the diffusers library saves them.

The one place that reads pickle, through `weights_only=True`, which builds tensors, plain containers and `argparse.Namespace`
and runs no code.
"""

import argparse
import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeVar

import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.engine.run import header
from hdit_cli.engine.run.checkpoint import read_announced, read_tensors
from hdit_cli.engine.run.file_kind import check_pickled, unwrapped
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs.kl_vae_names import is_whole_model, of_whole_model

_WEIGHTS = (
    "model_ema",
    "ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
)  # averages first; k-diffusion's own name, then those of other trainers
_COUNT = "num_batches_tracked"  # of a batch norm: how often it was called, a whole number and no weight
_CONFIGS = ("config", "args")  # under what trainers keep their settings
_STEM = "diffusion_pytorch_model"  # of the files of weights in a folder of the diffusers library
_NETWORK = "transformer"  # the folder of the network in that of a pipeline
T = TypeVar("T")

_COPIES = 2  # how often a file's bytes may stand in its tensors: parts of a network may share weights


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another program, looked at.

    Attributes:
        table: its averaged weights as it announces them.
        config: the configuration that it carries, of whatever type; None where it carries none.
        read: gives the weights.
        ours: the metadata of an inference file of this project, whose names were wrapped by another program.
    """

    table: header.Table
    config: Any
    step: int
    read: Callable[[], dict[str, Tensor]]
    ours: dict[str, str] | None = None


def open_foreign(path: Path) -> Foreign:
    """Looks at a checkpoint, a file or a folder of the diffusers library; its weights are not in memory yet.

    Raises:
        CheckpointError: not such a file, or damaged.
        UsageError: one of this project's own.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint {path}", hint="give a .safetensors or torch file, or a folder of the diffusers library"
        )
    if is_pickled(path):
        found = _open_pickled(path)
    else:
        table, metadata = read_announced(path)
        if metadata.get("hdit.format") == header.FORMAT:
            if any(name != own for own, name in unwrapped(table).items()):
                return Foreign(table, None, 0, lambda: read_tensors(path)[0], ours=metadata)
            raise UsageError(f"{path} is an hdit checkpoint already", hint="`hdit export` writes it in other forms")
        config = _json(metadata["config"], where=path) if "config" in metadata else None
        wanted = of_whole_model if is_whole_model(table) else _is_weight  # what converts of it
        found = Foreign(_weights_of(table), config, 0, lambda: read_tensors(path, wanted=wanted)[0])
    if found.config is None and path.name.startswith(_STEM):
        return replace(found, config=_config_in(path.parent))  # the folder's, of which this file was taken
    return found


def _is_weight(name: object) -> bool:
    return str(name).rpartition(".")[2] != _COUNT


def _weights_of(table: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in table.items() if _is_weight(name)}


def _json(text: str | bytes, *, where: Path) -> Any:
    try:
        return header.parse_json(text, what="its configuration")
    except header.Garbled as error:
        raise CheckpointError(
            f"{where} cannot be read: {error}", hint="give the configuration with --config"
        ) from error


# Folders of the diffusers library


def name_of(source: Path) -> str:
    """What to call what becomes of a checkpoint."""
    if not source.is_dir():
        return source.stem
    whole = source.resolve()
    return whole.parent.name if whole.name == _NETWORK else whole.name


def _open_folder(folder: Path) -> Foreign:
    """A pipeline's folder, or that of its network alone: `config.json` beside one file of weights, or several with an index."""
    folder = folder / _NETWORK if (folder / _NETWORK).is_dir() else folder
    if index := _index_in(folder):
        return _open_shards(folder, index)
    for end in (".safetensors", ".fp16.safetensors", ".bin"):
        if (folder / f"{_STEM}{end}").is_file():
            return open_foreign(folder / f"{_STEM}{end}")
    raise CheckpointError(
        f"{folder} holds no {_STEM}.safetensors",
        hint=f"give a file, or the folder with `{_NETWORK}/` of the diffusers library",
    )


def _config_in(folder: Path) -> Any:
    path = folder / "config.json"
    return _json(files.read_regular(path, most=header.LARGEST), where=path) if path.is_file() else None


def _index_in(folder: Path) -> dict[str, str]:
    """Which tensor lies in which file; empty where no index lies in the folder.

    Raises:
        CheckpointError: it is none, or it names a file that is not in the folder.
    """
    path = folder / f"{_STEM}.safetensors.index.json"
    if not path.is_file():
        return {}
    value = _json(files.read_regular(path, most=header.LARGEST), where=path)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{path} says of no tensor where it lies", hint="download the folder again")
    for place in sorted(set(places.values())):
        if Path(place).name != place or not (folder / place).is_file():
            raise CheckpointError(
                f"{folder} lacks {short(place)}, which its index names", hint="download it again, whole"
            )
    return places


def _open_shards(folder: Path, index: Mapping[str, str]) -> Foreign:
    paths = [folder / place for place in sorted(set(index.values()))]
    tables = {path: read_announced(path)[0] for path in paths}
    table = {name: entry for found in tables.values() for name, entry in found.items()}
    astray = [name for name, place in index.items() if name not in tables[folder / place]]
    if astray or len(table) != len(index):
        told = f"lacks {astray[0][:200]}" if astray else "holds tensors that its index does not name"
        raise CheckpointError(f"{folder} {told}", hint="download it again, whole")

    def read() -> dict[str, Tensor]:
        return {name: t for path in paths for name, t in read_tensors(path, wanted=_is_weight)[0].items()}

    return Foreign(_weights_of(table), _config_in(folder), 0, read)


# Files of torch.save


def is_pickled(path: Path) -> bool:
    """Whether it is a file of torch.save, of today or, before torch 1.6, without a zip around it. A pipe is none: nothing waits."""
    return path.is_file() and (zipfile.is_zipfile(path) or path.suffix in (".pth", ".pt", ".ckpt", ".bin"))


def read_pickled(path: Path) -> Any:
    """What torch.save wrote; of today's files the tensors are mapped, not read."""
    check_pickled(path)
    zipped = zipfile.is_zipfile(path)
    if zipped and _unpacked_size(path) > path.stat().st_size:
        raise CheckpointError(
            f"{path} unpacks to more bytes than it has, which no file of torch.save does", hint="do not trust it"
        )
    try:
        # a namespace is a plain container: trainers keep their command line in it
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of torch, about its own storages
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever a cut or foreign file makes torch's restricted unpickler trip over
        if not zipped:
            raise CheckpointError(
                f"{path} is not a whole torch file", hint="it may be cut short; copy it again"
            ) from error
        blocked = isinstance(error, pickle.UnpicklingError)  # torch's own words advise to run it
        told = "it holds other objects" if blocked else (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read as tensors and plain values: {told}",
            hint="only files that torch's weights_only mode accepts are read; nothing in it was run",
        ) from error


def _unpacked_size(path: Path) -> int:
    with (
        contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError),
        zipfile.ZipFile(path) as archive,
    ):
        return sum(entry.file_size for entry in archive.infolist())
    return 0  # then torch does not read it either


def _open_pickled(path: Path) -> Foreign:
    stored = read_pickled(path)
    tensors = _weights_in(stored)
    if tensors is None:
        raise CheckpointError(f"{path} holds no weights by name", hint="give a state dict, or a training checkpoint")
    step = stored.get("step", 0) if tensors is not stored else 0
    if not header.is_count(step):
        raise CheckpointError(f"{path}: its step is {short(step)}, no count", hint="it is damaged; get it again")
    tensors = _weights_of(tensors)
    return Foreign(table_of(tensors, where=path), _config_of(stored), step, lambda: tensors)


def _config_of(stored: dict[Any, Any]) -> Any:
    """The settings that a trainer kept beside its weights, a namespace as a dictionary."""
    found = next((stored[key] for key in _CONFIGS if stored.get(key) is not None), None)
    found = vars(found) if isinstance(found, argparse.Namespace) else found
    return None if isinstance(found, Tensor) else found


def _weights_in(stored: Any) -> dict[str, Tensor] | None:
    """The averaged weights of a training checkpoint, else the weights; a dictionary of tensors is these itself."""
    if not isinstance(stored, dict):
        return None
    for found in (*(stored.get(name) for name in _WEIGHTS), stored):
        if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
            return found
    return None


def table_of(tensors: Mapping[Any, Tensor], *, where: Path) -> dict[str, header.Entry]:
    """What unpickled tensors are, as a header would announce them.

    Raises:
        CheckpointError: one is no plain tensor with all its numbers in the file; it is named.
    """
    for name, tensor in tensors.items():
        if problem := "its name is no text" if not isinstance(name, str) else _not_plain(tensor):
            raise CheckpointError(f"{where}: {short(name)} {problem}", hint="save the weights as plain tensors")
    if sum(tensor.nbytes for tensor in tensors.values()) > _COPIES * where.stat().st_size:
        raise CheckpointError(
            f"{where}: its tensors are larger than the file", hint="save the weights as plain tensors"
        )
    return {
        name: header.Entry(
            header.NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape)
        )
        for name, tensor in tensors.items()
    }


def _not_plain(tensor: Tensor) -> str:
    """Why a tensor is not an array of numbers that lie in a file, or ""."""
    if tensor.is_meta:
        return "is a meta tensor: its numbers are not in the file"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is sparse or nested"
    if tensor.is_quantized:
        return "is quantised"
    reach = 1
    for stride, side in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if side > 1 and stride < reach:
            return "is expanded: its numbers stand for several elements each"
        reach = max(reach, stride * side)
    return ""


def without_wrappers(foreign: Foreign, tell: Callable[[str], None]) -> Foreign:
    """The checkpoint with the names that its network gave to its weights."""
    names = unwrapped(foreign.table)
    prefixes = sorted({old.removesuffix(new) for new, old in names.items()} - {""})
    if not prefixes:
        return foreign
    left = len(foreign.table) - len(names)
    rest = f"; {left} other tensors are left out" if left else ""
    tell(f"taken off the names of the tensors: {', '.join(map(repr, prefixes))}{rest}")
    table = {new: foreign.table[old] for new, old in names.items()}

    def read() -> dict[str, Tensor]:
        tensors = foreign.read()
        return {new: tensors[old] for new, old in names.items()}

    return replace(foreign, table=table, read=read)
