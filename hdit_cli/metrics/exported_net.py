"""Any feature net that `torch.export` wrote: uint8 (N, 3, H, W) => (N, D); see docs/features.md."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from hdit_cli import files
from hdit_cli.errors import DataError, HditError
from hdit_cli.metrics.feature_net import BATCH, rows


class ExportedNet:
    """A `.pt2` file as a `FeatureNet`. It resizes and scales its pictures itself."""

    def __init__(self, path: Path | None = None, *, device: torch.device | None = None) -> None:
        """Loads the program. It is run, so name only files you trust.

        Raises:
            DataError: missing, or no exported program of one picture tensor.
        """
        if path is None or not path.is_file():
            place = "" if path is None else f"put it at {path.absolute()}; "
            raise DataError(f"no file {path}", hint=f"{place}docs/features.md says how to make one")
        self.kind, self.resize, self.published = "exported", "by the net", False
        self.classifier = False
        self.path, self.sha256 = path, files.sha256(path)
        self.device = device or torch.device("cpu")
        try:
            program = torch.export.load(path)
            self._shape = _input_shape(program)
            self._net = program.module().to(self.device)
        except HditError:
            raise
        except Exception as error:  # whatever a broken or foreign file makes the loader trip over
            raise DataError(
                f"{path} is not a program that torch.export wrote: {str(error).splitlines()[0]}",
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


def _input_shape(program: Any) -> list[int | None]:
    """N, C, H, W of the one input; None where it may be anything."""
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4 or values[0].dtype != torch.uint8:
        raise DataError(
            "an exported feature net must take one uint8 tensor (N, 3, H, W)", hint="docs/features.md shows an example"
        )
    return [side if isinstance(side, int) else None for side in values[0].shape]
