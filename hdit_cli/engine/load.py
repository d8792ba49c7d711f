"""From what a user calls a checkpoint to a model: a file, or a run folder and which of its weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hdit_cli import files, runtime
from hdit_cli.data.encoded import is_encoded
from hdit_cli.engine.model import Model
from hdit_cli.engine.run import posthoc, snapshots
from hdit_cli.engine.run import weights as names
from hdit_cli.engine.run.assemble import assemble, check_announced, check_is_ours
from hdit_cli.engine.run.checkpoint import (
    BESIDE,
    MANIFEST,
    list_steps,
    read_announced,
    read_header,
    read_tensors,
    step_name,
)
from hdit_cli.engine.run.codec_file import found_for, load_codec
from hdit_cli.engine.run.header import Table, read_facts
from hdit_cli.engine.run.trained import missing
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.latents import Absent
from hdit_cli.recipe.codec import made


@dataclass(frozen=True)
class InFile:
    """Weights that lie in an inference file."""

    file: Path

    def __str__(self) -> str:
        return str(self.file)

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header.

        Raises:
            CheckpointError: not a safetensors file, damaged, or not ours.
        """
        return read_tensors(self.file, check=self._check)

    def look(self) -> None:
        """Raises CheckpointError as `read` does, by the header alone."""
        self._check(*read_announced(self.file))

    def _check(self, tensors: Table, header: dict[str, str]) -> None:
        check_is_ours(tensors, header, where=str(self.file))
        check_announced(tensors, header, where=str(self.file))

    def sha256(self) -> str:
        """Of the file."""
        return files.sha256(self.file)


Source = InFile | posthoc.Plan


def find(path: Path, *, weights: str | float) -> Source:
    """What a CKPT argument means: a file, or the newest of the wanted weights that a run has.

    A width is looked for in the newest checkpoint, which holds those of `ema.stds`; then among the files that `hdit ema`
    wrote, unless the run has a newer snapshot; then it is reconstructed from the snapshots.

    Args:
        weights: "ema", "raw", or a relative standard deviation.

    Raises:
        UsageError: no such weights can be.
        CheckpointError: the run has no checkpoint, or nothing to make the average of.
    """
    name = names.parse(weights)
    if not path.is_dir():
        if not path.exists():
            raise missing(path)
        return InFile(path)
    if is_checkpoint_folder(path):
        return InFile(_in_folder(path, name))
    std, steps = names.std_of(name), list_steps(path)
    if std is not None:
        return _average(path, std, newest=path / "checkpoints" / step_name(steps[-1]) if steps else path)
    if name == "ema" and (path / "ckpt.safetensors").is_file():
        return InFile(path / "ckpt.safetensors")
    if steps:
        file = "ema.safetensors" if name == "ema" else "model.safetensors"
        return InFile(path / "checkpoints" / step_name(steps[-1]) / file)
    raise CheckpointError(f"{path} holds no checkpoint", hint="train there first, or give a .safetensors file")


def is_checkpoint_folder(path: Path) -> bool:
    """Whether this is the folder of a step: of a checkpoint, or of a snapshot of averages."""
    return (path / MANIFEST).is_file() and not is_encoded(path) and bool(weights_in(path))


def weights_in(folder: Path) -> list[Path]:
    """The files of weights directly in a folder, by name; what a desktop or file system left there is none."""
    found = sorted(file for file in folder.glob("*.safetensors") if not files.left_by_others(file.name))
    return [file for file in found if file.name != "optimizer.safetensors" and not file.name.startswith(BESIDE)]


def _in_folder(folder: Path, name: str) -> Path:
    """The file with the wanted weights in the folder of a step.

    Raises:
        CheckpointError: it holds others.
    """
    std = names.std_of(name)
    wanted = {"ema": "ema.safetensors", "raw": "model.safetensors"}.get(name) or names.file_name(std or 0.0)
    if (folder / wanted).is_file():
        return folder / wanted
    there = [file.name for file in weights_in(folder)]
    raise CheckpointError(
        f"{folder} holds no {wanted}", hint=f"name a file in it: {', '.join(there)}" if there else "give the run folder"
    )


def _average(run: Path, std: float, *, newest: Path) -> Source:
    """A power-function average of a run; see `find`."""
    tracked, written = newest / names.file_name(std), run / names.file_name(std)
    if newest != run and tracked.is_file():
        return InFile(tracked)
    steps = snapshots.list_steps(run)
    if written.is_file() and (not steps or read_facts(read_header(written), where=str(written)).step >= steps[-1]):
        return InFile(written)
    return posthoc.plan(run, [std])[0]


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    weights: str | float = "ema",
    dtype: torch.dtype | None = None,
    codec: str | Path | None = None,
) -> Model:
    """Loads a model from an inference file or a run folder.

    Args:
        path: `*.safetensors`, or a run folder (its newest weights).
        device: where to; None chooses CUDA, MPS, or the CPU.
        weights: "ema", "raw", or the relative standard deviation of a power-function average: tracked by the run, or
            reconstructed from its snapshots. A file of such an average counts as "ema" too.
        dtype: of the parameters; None keeps the file's.
        codec: file of the codec of a model of latents; None looks for it beside the checkpoint, by its SHA-256.

    Raises:
        CheckpointError: no file, not a checkpoint, damaged, or of another kind.
        UsageError: the file holds the other weights, or the codec is not the model's.
    """
    path = Path(path)
    model = open_source(find(path, weights=weights), weights=weights, device=device, dtype=dtype)
    with_codec(model, named=None if codec is None else Path(codec), beside=path if path.is_dir() else path.parent)
    return model


def with_codec(model: Model, *, named: Path | None, beside: Path) -> None:
    """Gives a model of latents its codec: the file that the user names, else the one beside the checkpoint.

    A checkpoint that names no codec, as those that were converted, takes any whose latents have its channels.

    Raises:
        UsageError: the file is another codec than the model's, or the model is one of pixels.
        CheckpointError: it cannot be read.
    """
    if isinstance(model.latents, Absent):
        model.latents = found_for(model.latents, named=named, beside=beside)
    elif named is not None and model.latents is None:
        if model.channels == 3:
            raise UsageError("this model works on pixels and needs no codec", hint="leave --codec out")
        model.latents = load_codec(named)
        found = (model.latents.channels, model.latents.vocabulary)
        wanted = (model.channels, model.vocabulary)
        if found != wanted:
            raise UsageError(
                f"{named} makes {made(*found)}, and the network takes {made(*wanted)}",
                hint="give the codec that it was trained with",
            )
    if isinstance(model.latents, Frozen):
        model.latents.to(model.device)


def open_source(
    source: Source,
    *,
    weights: str | float,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Builds the model of what `find` found; see `load`."""
    tensors, header = source.read()
    model = assemble(tensors, header, where=str(source))
    wanted = names.parse(weights)
    if model.weights != wanted and (wanted != "ema" or names.std_of(model.weights) is None):
        raise UsageError(
            f"{source} holds {model.weights} weights, not {wanted}",
            hint=f"say --weights {names.option(model.weights)}, or give the run folder",
        )
    model.origin = str(source)
    model.task.to(device=torch.device(device) if device is not None else runtime.device(), dtype=dtype)
    return model
