"""What a run started from: loaded once, remembered in `init.json`, and not needed again once the run has a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.engine.load import find
from hdit_cli.engine.model import Model
from hdit_cli.engine.run import header
from hdit_cli.engine.run.checkpoint import list_steps
from hdit_cli.engine.training.init import apply, match, read_source
from hdit_cli.errors import HditError, UsageError
from hdit_cli.recipe import Recipe

FORMAT = "hdit-init/1"
RECORD = "init.json"


@dataclass(frozen=True)
class Beginning:
    """What a run starts, or once started, from.

    Attributes:
        record: the content of `init.json`.
        lines: what was loaded and what is new; none where the run goes on.
    """

    record: dict[str, Any]
    lines: list[str]

    @property
    def source(self) -> dict[str, Any]:
        """For the header of the run's checkpoints."""
        return self.record["source"]

    def write(self, run: Path) -> None:
        """Writes `init.json` into a run folder."""
        files.write_json(run / RECORD, self.record)


def begin(model: Model, run: Path, init: Path | None) -> Beginning | None:
    """Loads a new run's model from `init`, or from what an earlier start that never saved began with.

    A run that has a checkpoint goes on from that: nothing is loaded, and `init` is not needed any more.

    Returns:
        None for a run that starts from nothing.

    Raises:
        UsageError: `init` does not fit, lies in the run itself, or is not what the run was started from.
        CheckpointError: `init` is not a checkpoint.
    """
    if init is not None and files.real_path(init).is_relative_to(files.real_path(run)):
        raise UsageError(f"--init {init} lies in the run {run} itself", hint="choose another --run")
    recorded = read_record(run)
    if list_steps(run):
        if init is not None and (recorded is None or not _is_same(init, recorded["source"])):
            began = f"from {recorded['source']['path']}" if recorded else "without --init"
            raise UsageError(
                f"{run} was started {began}, and goes on from its own checkpoint",
                hint="leave --init out, choose another --run, or start over with --fresh (the old run is kept)",
            )
        begun = Beginning(recorded, []) if recorded else None
    elif init is None and recorded is None:
        begun = None
    else:
        begun = _load(model, run, init, recorded)
    if begun is not None:
        model.data["init"] = begun.source
    return begun


def _load(model: Model, run: Path, init: Path | None, recorded: dict[str, Any] | None) -> Beginning:
    source = read_source(init if init is not None else Path(recorded["source"]["path"] if recorded else ""))
    if init is None and recorded is not None and source.sha256 != recorded["source"]["sha256"]:
        raise UsageError(
            f"{source.path} has changed since {run} was started from it, and the run has no checkpoint yet",
            hint="say with --init what it is to start from",
        )
    found = match(source, Recipe.from_dict(model.recipe), classes=model.classes)
    apply(model, source, found)
    facts = source.facts()
    told = f"{facts['weights']} weights, step {facts['step']:,}, sha256 {facts['sha256'][:12]}"
    record = {"format": FORMAT, "source": facts, "parts": found.table, "notes": found.notes}
    return Beginning(record, [f"starts from {source.path}: {told}", *found.lines()])


def read_record(run: Path) -> dict[str, Any] | None:
    """The `init.json` of a run; None where it started from nothing.

    Raises:
        UsageError: it cannot be read.
    """
    path = run / RECORD
    if not path.is_file():
        return None
    try:
        record = header.parse_json(files.read_regular(path, most=header.LARGEST), what="it")
        header.expect(isinstance(record, dict) and record.get("format") == FORMAT, "it is of another kind")
        header.check_source(record.get("source"), what="its source")
    except (header.Garbled, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="restore it, or use --fresh") from error
    return record


def _is_same(init: Path, source: dict[str, Any]) -> bool:
    """By its path, whatever has become of the file since, or by its content."""
    if str(init) == source["path"]:
        return True
    try:
        return find(init, weights="ema").sha256() == source["sha256"]
    except (HditError, OSError):
        return False
