"""`best.safetensors`: an inference file that holds its score and a hash of itself in its header.

No manifest stands beside it, and the run's newest checkpoint may be older than the file: so it carries its own hash.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import metadata_of, read_header, read_tensors, serialise
from hdit_cli.engine.run.header import read_facts
from hdit_cli.errors import CheckpointError

BEST = "best.safetensors"
SCORE = "hdit.score"  # JSON
_HASH = "hdit.sha256"  # of the file as it is without this entry


def write_best(path: Path, model: Model, score: dict[str, Any]) -> None:
    """Writes weights and their score, whole or not at all."""
    header = {**metadata_of(model), SCORE: json.dumps(score)}
    tensors = model.network.state_dict()
    digest = hashlib.sha256(serialise(tensors, header)).hexdigest()
    files.write_bytes(path, serialise(tensors, {**header, _HASH: digest}))


def read_score(path: Path) -> dict[str, Any] | None:
    """What the header says of the score; None where it says nothing.

    Raises:
        CheckpointError: not a safetensors file, or damaged.
    """
    metadata = read_header(path)
    return read_facts(metadata, where=str(path)).score if SCORE in metadata else None


def best_problem(path: Path) -> str:
    """What is wrong with the file, in one sentence; "" where it is what was written."""
    try:
        tensors, header = read_tensors(path)
    except CheckpointError as error:
        return error.message
    digest = header.pop(_HASH, None)
    if digest is None:
        return "holds no hash of itself"
    return (
        "" if hashlib.sha256(serialise(tensors, header)).hexdigest() == digest else "has changed since it was written"
    )
