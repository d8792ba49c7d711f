"""`hdit report RUN [RUN …]`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.engine.report import Report


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or folders with runs below such as runs/; several are compared on one page.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The HTML file; an earlier report is replaced.",
            show_default="RUN/report.html; report.html here for several runs",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no report.")] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Write the page again while a run trains, until it ends or Ctrl-C."),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Path, size, and each run's facts and notes on stdout.")
    ] = False,
) -> None:
    """Write one HTML page about one or several runs. It needs no server and no network: open it, send it, print it.

    Curves to hover and zoom, loss by noise level, validation, sample grids over time, scores, differences between the recipes,
    environment. It reads the run folders only, also while a run trains; what is not there is said on the page.
    """
    from hdit_cli.engine.report import watch_report, write_report
    from hdit_cli.engine.report.gather import runs_in

    found = {folder.resolve(): folder for folder in runs_in(runs)}
    place = out or (next(iter(found.values())) / "report.html" if len(found) == 1 else Path("report.html"))
    if watch:
        for written in watch_report(runs, out=place, force=force):
            steps = ", ".join(f"{run['name']} at step {run['summary']['step']:,}" for run in written.facts["runs"])
            say(f"wrote {place}: {steps}", err=True)
    else:
        written = write_report(runs, out=place, force=force)
    if json_:
        told = [{key: run[key] for key in ("name", "path", "summary", "notes")} for run in written.facts["runs"]]
        say_json({"path": str(written.path), "bytes": written.bytes, "runs": told})
    else:
        say(*_page(written))


def _page(written: "Report") -> list[str]:
    lines = []
    for run in written.facts["runs"]:
        summary = run["summary"]
        end = f" of {summary['steps']:,}" if summary["steps"] else ""
        lines.append(f"{run['name']}: {summary['state']}, step {summary['step']:,}{end}")
        lines += [f"  note: {note}" for note in run["notes"]]
    return [*lines, f"{written.path}: {written.bytes / 1e6:.1f} MB"]
