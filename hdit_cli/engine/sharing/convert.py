"""Foreign checkpoints to ours: k-diffusion's slim `.safetensors` and its training `.pth`; and pytorch-fid's weights.

The one place that reads pickle, through `weights_only=True`, which builds tensors and plain containers and runs no code.
"""

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.engine.model import Model, build_network, build_task, class_count
from hdit_cli.engine.run import header
from hdit_cli.engine.run.assemble import assemble
from hdit_cli.engine.run.checkpoint import metadata_of, read_announced, read_tensors, save_inference
from hdit_cli.engine.run.file_kind import check_pickled, unwrapped
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.metrics import fid_inception
from hdit_cli.models.convert import Unsupported, kdiffusion_recipe
from hdit_cli.recipe import Recipe, plain_name

_LARGEST_NET = 1 << 28  # pytorch-fid's file has 95 MB; a larger one is not read twice
_WEIGHTS = ("model_ema", "ema", "state_dict", "model")  # k-diffusion's own name, then those of other trainers
_COPIES = 2  # how often a file's bytes may stand in its tensors: parts of a network may share weights


@dataclass(frozen=True)
class Foreign:
    """A k-diffusion checkpoint, looked at.

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
    """Looks at a k-diffusion checkpoint; its weights are not in memory yet.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}", hint="give a k-diffusion .safetensors or .pth file")
    if is_pickled(path):
        return _open_training(path)
    table, metadata = read_announced(path)
    if metadata.get("hdit.format") == header.FORMAT:
        if any(name != own for own, name in unwrapped(table).items()):
            return Foreign(table, None, 0, lambda: read_tensors(path)[0], ours=metadata)
        raise UsageError(f"{path} is an hdit checkpoint already", hint="`hdit export` writes it in other forms")
    config = None
    if "config" in metadata:
        try:
            config = header.parse_json(metadata["config"], what="its configuration")
        except header.Garbled as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", hint="give the configuration with --config"
            ) from error
    return Foreign(table, config, 0, lambda: read_tensors(path)[0])


def is_pickled(path: Path) -> bool:
    """Whether it is a file of torch.save, of today or, before torch 1.6, without a zip around it."""
    return zipfile.is_zipfile(path) or path.suffix in (".pth", ".pt", ".ckpt", ".bin")


def _read_pickled(path: Path) -> Any:
    """What torch.save wrote; of today's files the tensors are mapped, not read."""
    check_pickled(path)
    zipped = zipfile.is_zipfile(path)
    if zipped and _unpacked_size(path) > path.stat().st_size:
        raise CheckpointError(
            f"{path} unpacks to more bytes than it has, which no file of torch.save does", hint="do not trust it"
        )
    try:
        with warnings.catch_warnings():
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


def _open_training(path: Path) -> Foreign:
    stored = _read_pickled(path)
    tensors = _weights_in(stored)
    if tensors is None:
        raise CheckpointError(f"{path} has no model_ema", hint="give a training checkpoint of k-diffusion")
    step = stored.get("step", 0) if tensors is not stored else 0
    if not header.is_count(step):
        raise CheckpointError(f"{path}: its step is {short(step)}, no count", hint="it is damaged; get it again")
    return Foreign(table_of(tensors, where=path), stored.get("config"), step, lambda: tensors)


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


def convert_feature_net(source: Path, *, out: Path) -> bool:
    """Writes pytorch-fid's Inception weights as safetensors; False, and nothing written, where the file is another one.

    Raises:
        CheckpointError: a torch file that cannot be read, or that holds something else under the names of these weights.
    """
    if not source.is_file() or not is_pickled(source) or source.stat().st_size > _LARGEST_NET:
        return False
    stored = _read_pickled(source)
    shapes = fid_inception.shapes()
    if not isinstance(stored, dict) or not fid_inception.parameter_names() <= stored.keys():
        return False
    tensors = {name: value for name, value in stored.items() if name in shapes and isinstance(value, Tensor)}
    table = table_of(tensors, where=source)
    weights = {name: table[name] for name in fid_inception.parameter_names() if name in table}
    header.check_table({name: shapes[name] for name in fid_inception.parameter_names()}, weights, where=str(source))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files.make_folder(out.parent)
    files.write_bytes(out, safetensors.torch.save(kept, {fid_inception.SOURCE: files.sha256(source)}))
    return True


def convert(
    source: Path, *, out: Path, config: dict[str, Any] | None, tell: Callable[[str], None] = lambda text: None
) -> Model:
    """Converts a k-diffusion checkpoint and writes it as an inference file in float32.

    What wrappers put before every name ("module.", "_orig_mod.") is taken off, also of a file of ours.

    Args:
        config: the configuration, instead of the one the file carries.
        tell: called with what was done besides.

    Raises:
        CheckpointError: the file cannot be read, or its tensors do not fit its configuration.
        UsageError: no configuration, or one that asks for what we do not have.
    """
    foreign = _unwrapped(open_foreign(source), tell)
    if foreign.ours is not None:
        model = assemble(foreign.read(), foreign.ours, where=str(source))
        files.make_folder(out.parent)
        save_inference(out, model)
        return model
    recipe = _described(source, foreign, config)
    classes = [str(i) for i in range(int(recipe.model.classes))]
    header.check_layers(recipe, foreign.table, where=str(source))
    with torch.device("meta"):
        network = build_network(recipe, classes=class_count(recipe, classes=classes))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    header.check_table(shapes, foreign.table, where=str(source))
    blank = Model(build_task(network, recipe), recipe.to_dict(), classes, weights="ema", step=foreign.step)
    floats = {name: tensor.float() for name, tensor in foreign.read().items()}
    model = assemble(floats, metadata_of(blank), where=str(source))
    files.make_folder(out.parent)
    save_inference(out, model)
    return model


def _unwrapped(foreign: Foreign, tell: Callable[[str], None]) -> Foreign:
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


def _described(source: Path, foreign: Foreign, config: dict[str, Any] | None) -> Recipe:
    """The recipe that the configuration of a checkpoint stands for.

    Raises:
        UsageError: there is none, the user's is wrong, or it asks for what we do not have.
        CheckpointError: the one inside the file is wrong.
    """
    own = config is None
    config = foreign.config if own else config
    if config is None:
        raise UsageError(f"{source} carries no configuration", hint="--config FILE.json, the one it was trained with")
    wrong = CheckpointError if own else UsageError
    try:
        values = kdiffusion_recipe(config)
        return Recipe.from_dict({**values, "name": plain_name(source.stem) or "converted"})
    except Unsupported as error:
        raise UsageError(f"the configuration of {source} has {error}", hint="only HDiT checkpoints convert") from error
    except UsageError as error:
        raise wrong(
            f"the configuration of {source} describes no network: {error.message}", hint="--config FILE.json"
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise wrong(
            f"the configuration of {source} is not complete: {type(error).__name__} {str(error)[:200]}",
            hint="give it with --config",
        ) from error
