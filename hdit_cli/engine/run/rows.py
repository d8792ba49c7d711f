"""A part of a checkpoint, for a process that keeps some rows of each tensor: read tensor by tensor, the rest left on the disk."""

from collections.abc import Callable
from pathlib import Path

import safetensors
from torch import Tensor

from hdit_cli.engine.run import header
from hdit_cli.engine.run.checkpoint import opened

Rows = Callable[[str, tuple[int, ...]], slice | None]  # name and shape of a tensor => the rows to read, None for all


def read_rows(path: Path, *, rows: Rows) -> dict[str, Tensor]:
    """The rows of each tensor of a safetensors file, copied into memory; no more of it is held at any time.

    Raises:
        CheckpointError: as `checkpoint.read_tensors`.
    """
    with opened(path) as handle:
        table, _ = header.read_table(handle)
        header.check_floats(table, where=str(path))
        found = {}
        with safetensors.safe_open(path, framework="pt") as tensors:
            for name, entry in table.items():
                part = rows(name, tuple(entry.shape))
                found[name] = tensors.get_tensor(name) if part is None else tensors.get_slice(name)[part].clone()
        return found
