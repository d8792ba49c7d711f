"""Foreign checkpoints to ours: k-diffusion's slim `.safetensors` and its training `.pth`; and pytorch-fid's weights.

The one place that reads pickle, through `weights_only=True`, which builds tensors and plain containers and runs no code.
"""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.engine.checkpoint import FORMAT, assemble, metadata_of, read_header, read_tensors, save_inference
from hdit_cli.engine.model import Model, build_network, class_count, precondition
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.metrics import fid_inception
from hdit_cli.models.convert import Unsupported, kdiffusion_recipe
from hdit_cli.recipe import Recipe

# what torch's restricted unpickler trips over in a cut or foreign file
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AssertionError,
    TypeError,
    struct.error,
)
_LARGEST_NET = 1 << 28  # pytorch-fid's file has 95 MB; a larger one is not read twice


def read_foreign(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, int]:
    """Tensors (averaged weights), configuration if the file carries one, and step of a k-diffusion checkpoint.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}", hint="give a k-diffusion .safetensors or .pth file")
    if is_pickled(path):
        return _read_training(path)
    header = read_header(path)
    if header.get("hdit.format") == FORMAT:
        raise UsageError(f"{path} is an hdit checkpoint already", hint="`hdit export` writes it in other forms")
    tensors, _ = read_tensors(path)
    try:
        config = json.loads(header["config"]) if "config" in header else None
    except ValueError as error:
        raise CheckpointError(f"the configuration inside {path} is not JSON", hint="give it with --config") from error
    return tensors, config, 0


def is_pickled(path: Path) -> bool:
    """Whether it is a file of torch.save, of today or, before torch 1.6, without a zip around it."""
    return zipfile.is_zipfile(path) or path.suffix in (".pth", ".pt", ".ckpt", ".bin")


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} is not a whole torch file", hint="it may be cut short; copy it again"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as tensors and plain values: {str(error).splitlines()[0]}",
            hint="only files that torch's weights_only mode accepts are read; nothing in it was run",
        ) from error


def _read_training(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, int]:
    stored = _read_pickled(path)
    tensors = stored.get("model_ema") if isinstance(stored, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise CheckpointError(f"{path} has no model_ema", hint="give a training checkpoint of k-diffusion")
    return tensors, stored.get("config"), int(stored.get("step", 0))


def convert_feature_net(source: Path, *, out: Path) -> bool:
    """Writes pytorch-fid's Inception weights as safetensors; False, and nothing written, where the file is another one.

    Raises:
        CheckpointError: a torch file that cannot be read.
    """
    if not source.is_file() or not is_pickled(source) or source.stat().st_size > _LARGEST_NET:
        return False
    stored = _read_pickled(source)
    if not isinstance(stored, dict) or not fid_inception.parameter_names() <= stored.keys():
        return False
    tensors = {name: tensor.contiguous() for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    files.make_folder(out.parent)
    files.write_bytes(out, safetensors.torch.save(tensors, {fid_inception.SOURCE: files.sha256(source)}))
    return True


def convert(source: Path, *, out: Path, config: dict[str, Any] | None) -> Model:
    """Converts a k-diffusion checkpoint and writes it as an inference file in float32.

    Args:
        config: the configuration, instead of the one the file carries.

    Raises:
        CheckpointError: the file cannot be read, or its tensors do not fit its configuration.
        UsageError: no configuration, or one that asks for what we do not have.
    """
    tensors, own, step = read_foreign(source)
    config = config if config is not None else own
    if config is None:
        raise UsageError(f"{source} carries no configuration", hint="--config FILE.json, the one it was trained with")
    try:
        values = kdiffusion_recipe(config)
    except Unsupported as error:
        raise UsageError(f"the configuration of {source} has {error}", hint="only HDiT checkpoints convert") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the configuration of {source} is not complete: {type(error).__name__} {error}",
            hint="give it with --config",
        ) from error
    recipe = Recipe.from_dict({**values, "name": source.stem or "converted"})
    classes = [str(i) for i in range(int(recipe.model.classes))]
    with torch.device("meta"):
        network = build_network(recipe, classes=class_count(recipe, classes=classes))
    blank = Model(precondition(network, recipe), recipe.to_dict(), classes, weights="ema", step=step)
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model = assemble(floats, metadata_of(blank), where=str(source))
    files.make_folder(out.parent)
    save_inference(out, model)
    return model
