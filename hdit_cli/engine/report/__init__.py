"""One HTML page about runs: gathered from their folders, with everything inside the file.

`logs` reads what was written down, `gather` makes facts of it, `pictures` the grids, `page` the file; `assets/` holds the
page's own HTML, CSS and JavaScript.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.engine.report import page
from hdit_cli.engine.report.gather import any_held, gather, runs_in, signature
from hdit_cli.errors import UsageError

EVERY = 10.0  # seconds between two looks at runs that train


@dataclass(frozen=True)
class Report:
    """A page that was written, and the facts on it."""

    path: Path
    bytes: int
    facts: dict[str, Any]


def write_report(folders: Sequence[Path], *, out: Path, force: bool) -> Report:
    """Writes the page; an earlier report is replaced, any other file only with `force`.

    Args:
        folders: run folders, and folders with runs below; a run named twice counts once.
        out: the HTML file.

    Raises:
        UsageError: a folder is not a run, or `out` is a file that is no report.
        StorageError: the page cannot be written.
    """
    if out.exists() and not force and not page.is_report(out):
        raise UsageError(f"{out} exists and is not a report", hint="--out elsewhere, or --force to overwrite")
    facts = gather(runs_in(folders))
    data = page.build(facts)
    files.make_folder(out.parent)
    files.write_bytes(out, data)
    return Report(out, len(data), facts)


def watch_report(
    folders: Sequence[Path], *, out: Path, force: bool, pause: Callable[[], None] = lambda: time.sleep(EVERY)
) -> Iterator[Report]:
    """Writes the page, and again whenever its runs have written something, for as long as one of them trains.

    The page is replaced whole: who opens it meanwhile sees the old one or the new one.

    Args:
        pause: called between two looks.

    Yields:
        each page that was written, the last one after the last run has ended.

    Raises:
        UsageError, StorageError: as `write_report`.
    """
    seen, report = None, None
    while True:
        now = signature(folders)
        if report is None or now != seen or not any_held(folders):
            seen, report = now, write_report(folders, out=out, force=force)
            yield report
        if not any(run["summary"]["state"] == "training" for run in report.facts["runs"]):
            return
        pause()
