"""One HTML page about runs: gathered from their folders, with everything inside the file.

`logs` reads what was written down, `gather` makes facts of it, `pictures` the grids, `page` the file; `assets/` holds the
page's own HTML, CSS and JavaScript.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.engine.report import page
from hdit_cli.engine.report.gather import gather
from hdit_cli.errors import UsageError


@dataclass(frozen=True)
class Report:
    """A page that was written, and the facts on it."""

    path: Path
    bytes: int
    facts: dict[str, Any]


def write_report(folders: Sequence[Path], *, out: Path, force: bool) -> Report:
    """Writes the page; an earlier report is replaced, any other file only with `force`.

    Args:
        folders: run folders; one named twice counts once.
        out: the HTML file.

    Raises:
        UsageError: a folder is not a run, or `out` is a file that is no report.
        StorageError: the page cannot be written.
    """
    if out.exists() and not force and not page.is_report(out):
        raise UsageError(f"{out} exists and is not a report", hint="--out elsewhere, or --force to overwrite")
    facts = gather(folders)
    data = page.build(facts)
    files.make_folder(out.parent)
    files.write_bytes(out, data)
    return Report(out, len(data), facts)
