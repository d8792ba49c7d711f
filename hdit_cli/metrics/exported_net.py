"""Any feature net that `torch.export` wrote: uint8 (N, 3, H, W) => (N, D); see docs/features.md.

Such a file is a program and runs, so only a user names one. Pickle, which `torch.export.load` would read in places, and
compiled code are no part of it: a file that holds them is refused before anything in it is looked at.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.export.pt2_archive import PT2ArchiveReader

from hdit_cli import files, runtime
from hdit_cli.errors import DataError, HditError
from hdit_cli.metrics.feature_net import BATCH, rows

_MOST_BYTES = 1 << 36  # of an archive, which is in memory as a whole


class ExportedNet:
    """A `.pt2` file as a `FeatureNet`. It resizes and scales its pictures itself."""

    def __init__(self, path: Path | None = None, *, device: torch.device | None = None) -> None:
        """Loads the program. It is run, so name only files you trust.

        Raises:
            DataError: missing, no exported program of one picture tensor, or with pickle or compiled code in it.
        """
        if path is None or not path.is_file():
            place = "" if path is None else f"put it at {path.absolute()}; "
            raise DataError(f"no file {path}", hint=f"{place}docs/features.md says how to make one")
        self.kind, self.resize, self.published = "exported", "by the net", False
        self.classifier, self.spatial = False, 0
        self.path, self.sha256 = path, files.sha256(path)
        self.device = device or torch.device("cpu")
        try:
            program = load_program(path)
            self._shape = _input_shape(program)
            self._net = program.module().to(self.device)
        except HditError:
            raise
        except Exception as error:  # whatever a broken or foreign file makes the loader trip over
            raise DataError(
                f"{path} is not a program that torch.export wrote: {(str(error).splitlines() or [type(error).__name__])[0]}",
                hint="docs/features.md says how to make one",
            ) from error

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 pictures (H, W, 3), of any sizes that the program takes => float32 (N, D)."""
        fixed, _, height, width = self._shape
        batch = BATCH.get(self.device.type, 16) if fixed is None else fixed
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, picture in enumerate(pictures):
            by_size.setdefault(picture.shape, []).append(number)
        found: dict[int, np.ndarray] = {}
        for (h, w, _), numbers in by_size.items():
            if (height or h, width or w) != (h, w):
                raise DataError(
                    f"{self.path} takes pictures of {height}x{width}, not {h}x{w}",
                    hint="export it with dynamic height and width, or resize inside",
                )
            x = rearrange(np.stack([pictures[number] for number in numbers]), "n h w c -> n c h w")
            found |= dict(zip(numbers, rows(x, self._run, device=self.device, batch=batch), strict=True))
        return np.stack([found[number] for number in range(len(pictures))])

    def _run(self, x: Tensor) -> Tensor:
        try:
            return self._net(x)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise DataError(
                f"{self.path} does not run on uint8 {tuple(x.shape)}: {str(error).splitlines()[0]}",
                hint="it must take uint8 (N, 3, H, W); docs/features.md shows an example",
            ) from error

    def logits(self, features: np.ndarray) -> None:
        return None


# records of an archive of `torch.export.save`: the graph, arrays, inputs to trace it with, and texts
_RECORDS = re.compile(
    r"models/[^/]+\.json|data/weights/(weight_\d+|[^/]+_weights_config\.json)|data/sample_inputs/[^/]+\.pt|"
    r"data/constants/(tensor_\d+|[^/]+_constants_config\.json)|extra/.*|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id)"
)


def load_program(path: Path) -> Any:
    """The program in an archive of `torch.export.save`.

    Raises:
        DataError: the archive holds pickled objects or compiled code.
    """
    data = files.read_regular(path, most=_MOST_BYTES)  # one reading: what is checked is what is loaded
    odd = [name for name in PT2ArchiveReader(io.BytesIO(data)).get_file_names() if not _RECORDS.fullmatch(name)]
    if odd:
        raise DataError(
            f"{path} holds {odd[0][:80]!r}, which may be pickled objects or compiled code; nothing of it was run",
            hint="export the net again with this torch: torch.export.save of a program of plain tensors",
        )
    try:
        with runtime.only_tensors():  # example inputs, and weights of other kinds than plain arrays, are of torch.save
            return torch.export.load(io.BytesIO(data))
    except pickle.UnpicklingError as error:  # its own words advise to run it
        raise DataError(
            f"{path} holds pickled objects; nothing of it was run",
            hint="export the net again: torch.export.save of a program of plain tensors",
        ) from error


def _input_shape(program: Any) -> list[int | None]:
    """N, C, H, W of the one input; None where it may be anything."""
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4 or values[0].dtype != torch.uint8:
        raise DataError(
            "an exported feature net must take one uint8 tensor (N, 3, H, W)", hint="docs/features.md shows an example"
        )
    return [side if isinstance(side, int) else None for side in values[0].shape]
