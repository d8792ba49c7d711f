"""Checkpoints that lie under `runs/`, for a command line that names one which is not there."""

import os
import re
from glob import escape
from pathlib import Path

from hdit_cli.errors import CheckpointError

RUNS = Path("runs")  # where `hdit train` puts a run when nobody says
PUBLIC = "ckpt.safetensors"
_SET_ASIDE = re.compile(r".*\.old-\d+")
_MOST = 5  # that a message names


def trained(name: str = PUBLIC) -> list[Path]:
    """Files called `name` in the runs under `runs/`, the newest first; runs that were set aside do not count."""
    found = [path for path in RUNS.glob(f"*/{escape(name)}") if not _SET_ASIDE.fullmatch(path.parent.name)]
    return sorted((path for path in found if path.is_file()), key=lambda path: (-path.stat().st_mtime, path))


def stand_in(path: Path) -> Path | None:
    """The file that a bare file name means where there is none here: the only one of that name under `runs/`."""
    if path.suffix != ".safetensors" or path.parent != Path() or os.path.lexists(path):
        return None
    found = trained(path.name)
    return found[0] if len(found) == 1 else None


def missing(path: Path) -> CheckpointError:
    """No such checkpoint; the hint names those that there are."""
    own = RUNS / path.name
    found = (trained(path.name) if path.suffix == ".safetensors" else []) or trained()
    if own != path and (own / PUBLIC).is_file():
        hint = f"did you mean {own}?"
    elif found:
        more = f", … ({len(found)} in all)" if len(found) > _MOST else ""
        hint = f"under {RUNS}/ there {'is' if len(found) == 1 else 'are'} {', '.join(map(str, found[:_MOST]))}{more}"
        hint += ", the newest first" if len(found) > 1 else ""
    else:
        hint = (
            "give a .safetensors file or a run folder; `hdit train RECIPE` makes one, `hdit recipe` lists the recipes"
        )
    return CheckpointError(f"no checkpoint {path}", hint=hint)
