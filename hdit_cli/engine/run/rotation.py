"""Which checkpoints of a run stay: the newest few that verify, the public file beside them."""

import json
from pathlib import Path

from hdit_cli import files
from hdit_cli.engine.run import checkpoint
from hdit_cli.errors import StorageError


def rotate(run: Path, *, keep: int) -> None:
    """Removes what is older than the newest `keep` checkpoint folders that verify; damaged ones do not count.

    Raises:
        StorageError: the newest does not read back as it was written; nothing is removed.
    """
    folders = [run / "checkpoints" / checkpoint.step_name(step) for step in reversed(checkpoint.list_steps(run))]
    if len(folders) <= keep:
        return
    verified = 0
    for place, folder in enumerate(folders):
        if verified == keep:
            for old in reversed(folders[place:]):
                files.remove_folder(old)
            return
        try:
            reason = checkpoint.verify(folder)
        except StorageError:
            if place:  # it may be one of those to keep: nothing is removed for now
                return
            raise
        if reason and place == 0:
            raise StorageError(
                f"{folder} does not read back as it was written: {reason}",
                hint="check the disk; the older checkpoints are kept",
            )
        verified += not reason


def mend(run: Path, newest: Path, *, keep: int) -> None:
    """Does what a process that was killed after `newest` appeared left undone: `ckpt.safetensors`, then rotation."""
    public, average = run / "ckpt.safetensors", newest / "ema.safetensors"
    wanted = json.loads((newest / checkpoint.MANIFEST).read_bytes())["files"]["ema.safetensors"]["sha256"]
    if not public.is_file() or files.sha256(public) != wanted:
        files.write_bytes(public, average.read_bytes())
    rotate(run, keep=keep)
