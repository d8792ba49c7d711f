"""Models as files that other software loads, each read back and compared before it counts as written."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from hdit_cli import files, runtime
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import metadata_of, serialise
from hdit_cli.engine.sampling.generate import needed_of
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.precision import computing
from hdit_cli.recipe import named, without_folders

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECK_SIGMAS = (0.05, 1.0, 20.0)
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}  # of the exported denoiser, on images in [-1, 1]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        error: largest difference found by reading the file back: of the tensors for safetensors, of the denoised images
            relative to their largest value for torch-export.
    """

    path: Path
    bytes: int
    sha256: str
    error: float


def for_others(model: Model) -> Model:
    """The model as it is given away: of every folder and file that it names, the name alone. The run's own files keep the ways."""
    data = dict(model.data)
    if "path" in data:
        data["path"] = named(data["path"])
    if isinstance(data.get("init"), dict):
        data["init"] = {**data["init"], "path": named(str(data["init"].get("path", "")))}
    return replace(model, recipe=without_folders(model.recipe), data=data)


def _write(path: Path, data: bytes, error: float) -> Exported:
    files.make_folder(path.parent)
    files.write_bytes(path, data)
    digest = files.sha256(path)
    if digest != files.sha256_of(data):
        raise CheckpointError(f"{path} does not read back as it was written", hint="check the disk")
    return Exported(path, len(data), digest, error)


def to_safetensors(model: Model, path: Path, *, dtype: str) -> Exported:
    """One inference file with the recipe in its header; hdit itself loads it too.

    Args:
        dtype: "fp32" or "bf16".
    """
    wanted = {
        name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
        for name, tensor in model.network.state_dict().items()
    }
    data = serialise(wanted, metadata_of(for_others(model)))
    back = safetensors.torch.load(data)
    if back.keys() != wanted.keys():
        raise CheckpointError("the exported file does not hold the model's tensors")
    error = max(float((back[name].float() - wanted[name].cpu().float()).abs().max()) for name in wanted)
    if error:
        raise CheckpointError(f"the exported tensors differ by {error:g}")
    return _write(path, data, error)


class Callable(nn.Module):
    """The denoiser, or a network of tokens, with plain positional arguments: (x, level), and label where there are classes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.called = model.task.called
        self.has_classes = bool(model.network.classes)

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        return self.called(x, level, label=label if self.has_classes else None)


def example_inputs(model: Model, *, n: int) -> tuple[Tensor, ...]:
    """Arguments of the denoiser, or of a network of tokens, for n images of the trained size."""
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    sigma = torch.tensor(
        [CHECK_SIGMAS[i % len(CHECK_SIGMAS)] for i in range(n)], device=model.device, dtype=model.dtype
    )
    if model.network.told == "share":
        x, sigma = model.task.random(0, "export", range(n), model.shape(), like=like), sigma / (1 + sigma)
    else:
        x = runtime.normal(0, "export", range(n), model.shape(), like=like) * sigma[:, None, None, None]
    label = torch.arange(n, device=model.device) % max(model.network.classes, 1)
    return (x, sigma, label) if model.network.classes else (x, sigma)


def _without_traces(program: torch.export.ExportedProgram) -> None:
    """Takes out where in the source each operation stands: paths of this machine, often below somebody's home."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def to_torch_export(model: Model, path: Path, *, dtype: str) -> Exported:
    """A `torch.export` program of the denoiser: x (N, C, H, W) and sigma (N,), label (N,) where there are classes, any N.

    Of a network of tokens: x int64 (N, h, w) and t (N,) to logits.

    The height and width are the trained ones. `hdit.json` inside holds the header of an inference file.

    Raises:
        UsageError: the model needs a condition vector.
        CheckpointError: the program that was written computes something else.
    """
    if model.reconstructs:
        raise UsageError("an autoencoder has no torch-export form yet", hint="--to safetensors: load_codec reads it")
    if needed := needed_of(model):
        raise UsageError(f"a model that needs {needed} has no torch-export form yet", hint="--to safetensors")
    model.task.to(DTYPES[dtype])
    module = Callable(model).eval()
    inputs = example_inputs(model, n=len(CHECK_SIGMAS))
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False)
        _without_traces(program)
        buffer = io.BytesIO()
        extra = {"hdit.json": json.dumps(metadata_of(for_others(model)), ensure_ascii=False)}
        torch.export.save(program, buffer, extra_files=extra)
        buffer.seek(0)
        back = torch.export.load(buffer).module()
        worst = 0.0
        for n in (1, len(CHECK_SIGMAS) + 1):
            inputs = example_inputs(model, n=n)
            with computing("fp32", model.device):
                ours, theirs = module(*inputs).float(), back(*inputs).float()
            worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0)))
    if not worst <= TOLERANCE[dtype]:
        raise CheckpointError(f"the exported program differs from the model by {worst:g}", hint="report this as a bug")
    return _write(path, buffer.getvalue(), worst)
