"""Checkpoints: inference files (`*.safetensors`) and the folders a run resumes from. No pickle, every file hashed.

A checkpoint folder `step-00001000/` holds `model.safetensors` (raw weights), `ema.safetensors` and `ema-0.050.safetensors`
for each width of `ema.stds`, all inference files; `optimizer.safetensors` (state keyed by parameter name), `state.json`, and
`manifest.json` with the SHA-256 of the rest. It appears under its name only when it is whole and on the disk.
"""

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hdit_cli import __version__, catalog, files
from hdit_cli.engine.model import Model
from hdit_cli.engine.run import header
from hdit_cli.engine.run.file_kind import not_safetensors
from hdit_cli.engine.run.header import FORMAT
from hdit_cli.errors import CheckpointError, NonFiniteError, StorageError
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.latents import Absent

MANIFEST = "manifest.json"
BESIDE = "beside-"  # how files begin that hold what is trained beside the network
_STEP = re.compile(r"step-(\d{8})")
_DAMAGE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.ELOOP,
    errno.EINVAL,
    errno.EFBIG,
)  # errors that another try will not mend


# Inference files


def metadata_of(model: Model) -> dict[str, str]:
    """The header of an inference file: all that sample, eval-fid, export and info need besides the tensors."""
    height, width = model.image_size
    network = catalog.network(model.recipe["model"]["type"])
    needs = {} if model.latents is None else {"hdit.needs_codec": json.dumps(needs_of(model.latents))}
    return {
        "format": "pt",
        "hdit.format": FORMAT,
        "hdit.recipe": json.dumps(model.recipe, ensure_ascii=False),
        "hdit.step": str(model.step),
        "hdit.images_seen": str(model.images_seen),
        "hdit.classes": json.dumps(model.classes, ensure_ascii=False),
        "hdit.data": json.dumps(model.data, ensure_ascii=False),
        "hdit.weights": model.weights,
        "hdit.version": __version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": network.architecture,
        "modelspec.implementation": "hdit",
        "modelspec.title": f"{network.__name__} {height}x{width}, step {model.step}",
        "modelspec.resolution": f"{width}x{height}",
        **needs,
    }


def needs_of(codec: Frozen | Absent) -> dict[str, Any]:
    """What a checkpoint says of its codec: the kind and the SHA-256, by which it is found, and what shapes hang on."""
    told = {"type": codec.kind, "sha256": codec.fingerprint(), "factor": codec.factor, "channels": codec.channels}
    return {**told, "vocabulary": codec.vocabulary} if codec.vocabulary else told


def serialise(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Deterministic bytes of a safetensors file: the same tensors and facts give the same bytes."""
    host = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    raw = safetensors.torch.save(host, metadata)
    # safetensors writes the metadata in the order of a hash table that differs from process to process: sort it
    length = int.from_bytes(raw[:8], "little")
    told = json.loads(raw[8 : 8 + length])
    told["__metadata__"] = dict(sorted(told["__metadata__"].items()))
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def save_inference(path: Path, model: Model) -> None:
    """Writes one inference file."""
    files.write_bytes(path, serialise(model.network.state_dict(), metadata_of(model)))


def read_header(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file.

    Raises:
        CheckpointError: not a safetensors file, or damaged.
    """
    return read_announced(path)[1]


def read_announced(path: Path) -> tuple[dict[str, header.Entry], dict[str, str]]:
    """What the header of a safetensors file announces: tensors, and metadata.

    Raises:
        CheckpointError: not a safetensors file, or damaged.
    """
    with opened(path) as handle:
        return header.read_table(handle)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open; what is wrong with it inside the block becomes a CheckpointError."""
    try:
        with files.open_regular(path) as handle:
            yield handle
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}", hint="give a .safetensors file or a run folder") from None
    except (safetensors.SafetensorError, header.Garbled, OSError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise not_safetensors(path, error=told) from error


def read_tensors(
    path: Path,
    *,
    check: Callable[[header.Table, dict[str, str]], None] | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, copied into memory (the file may be replaced later), and its metadata.

    Args:
        check: called with what the header announces, before any tensor is read; what it raises is raised.
        wanted: by name, which tensors are given; others may be of any type.

    Raises:
        CheckpointError: not a safetensors file, damaged, or with a weight that is no floating-point number.
    """
    with opened(path) as handle:  # header and tensors of one file, whatever takes its name meanwhile
        tensors, metadata = header.read_table(handle)
        header.check_floats({name: entry for name, entry in tensors.items() if wanted(name)}, where=str(path))
        if check is not None:
            check(tensors, metadata)
        handle.seek(0)
        loaded = safetensors.torch.load(handle.read())
        return {name: tensor for name, tensor in loaded.items() if wanted(name)}, metadata


# Checkpoint folders


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def list_steps(run: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending; strictly by name."""
    return steps_in(run / "checkpoints")


def steps_in(folder: Path) -> list[int]:
    """Steps of the folders `step-00001000` in a folder, ascending."""
    found = (_STEP.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


@dataclass
class Averages:
    """Power-function averages on the host.

    Attributes:
        tensors: models as inference files hold them, by file name.
        headers: of these files, when they are to be written.
        stds: the relative standard deviation of each.
        updates: how many steps they have averaged; the time of their profiles.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    stds: dict[str, float] = field(default_factory=dict)
    updates: int = 0

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for part in self.tensors.values() for tensor in part.values())

    def parts(self) -> dict[str, Callable[[], bytes]]:
        """File name => what makes its bytes."""
        return {name: partial(serialise, part, self.headers[name]) for name, part in self.tensors.items()}


@dataclass
class Snapshot:
    """All that resuming needs, on the host.

    Attributes:
        raw, ema: models as inference files hold them.
        optimizer: tensors "<state>/<parameter>".
        state: JSON facts: step, images_seen, window of the loss log, size of metrics.jsonl.
        averages: the power-function ones, where the recipe has any.
        headers: of the two inference files, when it is to be written.
        beside: what is trained beside the network, by name: tensors "weights/<name>" and "<state>/<parameter>".
    """

    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    averages: Averages = field(default_factory=Averages)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    beside: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        tensors = [t for part in (self.raw, self.ema, self.optimizer, *self.beside.values()) for t in part.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + self.averages.size


def save_snapshot(run: Path, snapshot: Snapshot, *, proceed: Callable[[], None] = lambda: None) -> Path:
    """Writes a checkpoint folder and the run's `ckpt.safetensors`; each whole or not at all.

    Args:
        proceed: called before each file; what it raises ends the save, and no trace of it is left.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity; nothing was written.
        StorageError: too little space (nothing was written), or the disk failed.
    """
    named = {"weights": snapshot.raw, "average": snapshot.ema, "optimizer": snapshot.optimizer}
    check_publishable({**named, **snapshot.beside, **snapshot.averages.tensors}, step=snapshot.state["step"])
    step = int(snapshot.state["step"])
    target = run / "checkpoints" / step_name(step)
    files.make_own_folder(target.parent)
    files.require_space(run, size=snapshot.size + sum(t.nbytes for t in snapshot.ema.values()))
    state = dict(snapshot.state)
    if snapshot.averages.tensors:
        state["ema_updates"] = snapshot.averages.updates
    parts = {
        "model.safetensors": lambda: serialise(snapshot.raw, snapshot.headers["raw"]),
        "optimizer.safetensors": lambda: serialise(snapshot.optimizer, {"format": "pt"}),
        **{
            f"{BESIDE}{name}.safetensors": partial(serialise, part, {"format": "pt"})
            for name, part in snapshot.beside.items()
        },
        "state.json": lambda: (json.dumps(state, indent=2, allow_nan=False) + "\n").encode(),
        **snapshot.averages.parts(),
        "ema.safetensors": lambda: serialise(snapshot.ema, snapshot.headers["ema"]),
    }
    data = write_folder(target, parts, facts={"step": step}, proceed=proceed)
    files.write_bytes(run / "ckpt.safetensors", data)  # the last part: the average
    return target


def write_folder(
    target: Path, parts: Mapping[str, Callable[[], bytes]], *, facts: dict[str, Any], proceed: Callable[[], None]
) -> bytes:
    """Writes files and their manifest into a new folder that appears whole or not at all.

    Args:
        parts: file name => what makes its bytes; one is in memory at a time.
        facts: what the manifest says besides the files; "step" for one.
        proceed: called before each file.

    Returns:
        the bytes of the last part.
    """
    manifest, data = {}, b""
    with files.staged_folder(target) as stage:
        for name, make in parts.items():
            proceed()
            data = make()
            manifest[name] = {"bytes": len(data), "sha256": files.sha256_of(data)}
            files.write_bytes(stage / name, data)
        files.write_json(stage / MANIFEST, {**facts, "files": manifest})
    return data


def check_publishable(parts: Mapping[str, Mapping[str, Tensor]], *, step: int) -> None:
    """Raises NonFiniteError, naming the tensor, if a value of what is to be written is NaN or infinite."""
    for where, part in parts.items():
        for name, tensor in part.items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"step {step} is not saved: {name} of the {where} holds NaN or infinity",
                    hint="the newest checkpoint is from before; lower optimizer.lr, or use train.precision=fp32",
                )


def verify(folder: Path) -> str:
    """ "" if a checkpoint folder is whole and unchanged, else one sentence why not.

    Raises:
        StorageError: it cannot be read now, which says nothing about it: no permission, too many open files, ...
    """
    try:
        text = files.read_regular(folder / MANIFEST, most=header.LARGEST).decode()
        manifest = json.loads(text)
        expected = manifest["files"]
        if text != files.json_text(manifest):
            return "its manifest has changed since it was written"
        if folder.name.removesuffix(".bad") != step_name(manifest["step"]):
            return f"its manifest is of step {manifest['step']}"
        present = {entry.name for entry in folder.iterdir() if not files.left_by_others(entry.name)} - {MANIFEST}
        if present != set(expected):
            odd = sorted(present ^ set(expected))[0]
            return f"{odd} is {'unexpected' if odd in present else 'missing'}"
        for name, facts in expected.items():
            same_size = (folder / name).stat().st_size == facts["bytes"]
            if not same_size or files.sha256(folder / name) != facts["sha256"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise StorageError(
                f"cannot read {error.filename or folder}: {error.strerror}", hint="check its permissions and the disk"
            ) from error
        return f"{Path(error.filename or MANIFEST).name} cannot be read: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return ""


def newest_verified(run: Path, *, warn: Any) -> Path | None:
    """The newest checkpoint folder that verifies; bad ones are set aside as `step-….bad` and named through `warn(text)`.

    Returns:
        None where the run never saved.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
        StorageError: one cannot be read now; nothing was set aside.
    """
    steps = list_steps(run)
    for step in reversed(steps):
        folder = run / "checkpoints" / step_name(step)
        reason = verify(folder)
        if not reason:
            return folder
        bad = folder.with_name(f"{folder.name}.bad")
        if bad.exists():
            files.remove_folder(bad)
        files.rename(folder, bad)
        warn(f"checkpoint {folder.name} is damaged: {reason}; set aside as {bad.name}")
    if steps or any((run / "checkpoints").glob("step-*.bad")):
        raise CheckpointError(
            f"every checkpoint of {run} is damaged", hint="restore one from a copy, or start over with --fresh"
        )
    return None


def load_snapshot(
    folder: Path, *, read: Callable[[Path], dict[str, Tensor]] = lambda path: read_tensors(path)[0]
) -> Snapshot:
    """Reads a verified checkpoint folder.

    Args:
        read: the tensors of a file, or what is wanted of them.

    Raises:
        CheckpointError: it holds something else than a run needs to go on.
    """
    raw, ema = read(folder / "model.safetensors"), read(folder / "ema.safetensors")
    optimizer = read(folder / "optimizer.safetensors")
    state = _read_state(folder / "state.json")
    tensors = {path.name: read(path) for path in sorted(folder.glob("ema-*.safetensors"))}
    beside = {path.stem.removeprefix(BESIDE): read(path) for path in sorted(folder.glob(f"{BESIDE}*.safetensors"))}
    averages = Averages(tensors, updates=state.get("ema_updates", 0))
    return Snapshot(raw, ema, optimizer, state, averages, beside=beside)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = header.parse_json(files.read_regular(path, most=header.LARGEST), what="it")
        header.check_state(state)
    except (header.Garbled, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="use an older checkpoint") from error
    return state
