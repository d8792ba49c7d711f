"""A whole preparation, or a share of one: the plan, the tasks, the finish.

The work in progress stands in `.prepare/` inside the output: the plan, and a record of each finished task. After a kill the
same command verifies the finished shards and makes the missing ones. The folder is complete when `manifest.json` is
there. A whole run holds the lock of the folder alone. Shares hold it together, and each task's own while they are at it;
the last one that lets go of it finds all tasks done, and finishes, with the lock to itself.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hdit_cli import files
from hdit_cli.data.prepare.finishing.finish import check_strict, finish
from hdit_cli.data.prepare.finishing.report import Report, read_report
from hdit_cli.data.prepare.making.cluster import make_on_ray
from hdit_cli.data.prepare.making.local import Progress, Watch, make_here
from hdit_cli.data.prepare.making.plan import WORK, Plan, check_same, exhaust, open_plan
from hdit_cli.data.prepare.making.task import unfinished
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.sources.listing import Listing
from hdit_cli.data.prepare.sources.scan import scan
from hdit_cli.data.shards import HELD_OUT, MANIFEST, load_manifest
from hdit_cli.errors import Interrupted, StorageError, UsageError

ENGINES = {"local": make_here, "ray": make_on_ray}

_LOCK = "lock"
_PLAN_LOCK = "plan.lock"


@dataclass(frozen=True)
class Share:
    """Share `number` of `of`, from 1: every `of`-th task of the plan."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """From "I/N".

        Raises:
            UsageError: not two whole numbers with 1 <= I <= N.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            hint = "share I of N, from 1: --shards 1/4; in a Slurm array from 1 on: "
            hint += "--shards $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
            raise UsageError(f"--shards {text!r} is not a share", hint=hint)
        return cls(int(match[1]), int(match[2]))

    def of_tasks(self, count: int) -> range:
        return range(self.number - 1, count, self.of)


@dataclass(frozen=True)
class Pending:
    """What a share came to while the whole is not complete.

    Args:
        out: the data set's folder.
        tasks: of the plan.
        own: of them are this share's.
        missing: numbers of the tasks that are still to be done, by whomever.
        others: another process is at work in the folder, and will finish it if it is the last one.
    """

    out: str
    tasks: int
    own: int
    missing: list[int]
    others: bool


@dataclass(frozen=True)
class _Wish:
    """What was asked for."""

    sources: list[Path]
    out: Path
    options: PrepareOptions
    workers: int
    engine: str
    strict: bool
    progress: Callable[[Progress], None] | None

    def listing(self) -> Listing:
        """The source, after what can be checked before it is read."""
        if self.workers < 1:
            raise UsageError(f"--workers is {self.workers}", hint="--workers 1 or more")
        if self.engine not in ENGINES:
            raise UsageError(f"unknown engine {self.engine!r}", hint=f"one of: {', '.join(ENGINES)}")
        listing = scan(self.sources)
        for source in self.sources:
            if source.is_dir() and files.real_path(self.out).is_relative_to(files.real_path(source)):
                hint = f"choose a folder outside {source} with --out"
                raise UsageError(f"the output {self.out} lies inside the source {source}", hint=hint)
        return listing


def prepare(
    source: Path | Sequence[Path],
    *,
    out: Path,
    options: PrepareOptions,
    workers: int,
    engine: str = "local",
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Makes a data set from a source; goes on where a killed run left off; does nothing where it is complete.

    Args:
        source: folder of pictures, zip, tar, folder of tars, list of files; or several of them.
        out: folder to be made.
        options: what the bytes depend on, besides the source.
        workers: processes; the bytes do not depend on it.
        engine: local, or ray: a cluster does the tasks. The bytes do not depend on it.
        strict: any refused file is an error, but for duplicates.
        progress: called after each file, or after each task where a cluster does it.

    Raises:
        DataError: source missing or empty, nothing kept, or refused files where `strict`.
        UsageError: `out` holds something else, lies inside the source, or is being worked on.
        StorageError: the disk is full, or `out` cannot be written.
        Interrupted: stopped by the user; the same call goes on.
    """
    wish = _Wish(_several(source), out, options, workers, engine, strict, progress)
    listing = wish.listing()
    if (out / MANIFEST).exists():
        return _complete(wish, listing)
    _make_work(out)
    with files.lock(out / WORK / _LOCK, what=f"the data set {out}"):
        if not (out / MANIFEST).exists():
            for folder in (out, out / WORK):
                files.reap(folder)
            plan = open_plan(out, listing, options, sources=wish.sources)
            _make(wish, plan, range(len(plan)))
            missing = unfinished(plan)
            if missing:  # a process of a cluster, left over from a run that was killed
                hint = "the same command goes on when that has ended"
                raise UsageError(f"{len(missing)} shards of {out} are in the hands of another process", hint=hint)
            return _finish(wish, plan)
    return _complete(wish, listing)


def prepare_share(
    source: Path | Sequence[Path],
    *,
    share: Share,
    out: Path,
    options: PrepareOptions,
    workers: int,
    engine: str = "local",
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report | Pending:
    """Does a share of a preparation; any number may be at work in one folder, on several machines.

    Args:
        share: which of the plan's tasks.
        source, out, options, workers, engine, strict, progress: as in `prepare`.

    Returns:
        The report where the data set is complete now, else what is missing.

    Raises:
        DataError, UsageError, StorageError, Interrupted: as `prepare`.
    """
    wish = _Wish(_several(source), out, options, workers, engine, strict, progress)
    listing = wish.listing()
    if (out / MANIFEST).exists():
        return _complete(wish, listing)
    try:
        _make_work(out)
        with files.lock(out / WORK / _LOCK, what=f"the data set {out}", shared=True, wait=True):
            if (out / MANIFEST).exists():
                return _told(wish)
            with files.lock(out / WORK / _PLAN_LOCK, what=f"the plan of {out}", wait=True):
                plan = open_plan(out, listing, options, sources=wish.sources)
            _make(wish, plan, share.of_tasks(len(plan)))
    except (UsageError, StorageError):
        if not (out / MANIFEST).exists():
            raise
        return _complete(wish, wish.listing())  # others completed it meanwhile, and took the work away
    return _end_of_share(wish, plan, share)


def _end_of_share(wish: _Wish, plan: Plan, share: Share) -> Report | Pending:
    """Finishes where everything is done and nobody else is at work; this process has let go of the lock before."""
    with contextlib.ExitStack() as hold:
        others = False
        try:
            hold.enter_context(files.lock(plan.work / _LOCK, what=f"the data set {plan.out}"))
        except (UsageError, StorageError):  # held, or gone with the work
            others = True
        if (plan.out / MANIFEST).exists():
            return _told(wish)
        missing = unfinished(plan)
        if missing or others:
            return Pending(str(plan.out), len(plan), len(share.of_tasks(len(plan))), missing, others)
        return _finish(wish, plan)


def _several(source: Path | Sequence[Path]) -> list[Path]:
    return [source] if isinstance(source, Path) else list(source)


def _make_work(out: Path) -> None:
    # What stands in it is looked at first: whoever begins here at the same moment makes the work before all else.
    taken = os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))
    if taken and not (out / WORK).is_dir():
        hint = "choose another folder with --out, or move it away"
        raise UsageError(f"{out} exists and is not a data set of this command", hint=hint)
    files.refuse_link(out / HELD_OUT)
    files.make_own_folder(out / WORK)


def _make(wish: _Wish, plan: Plan, numbers: range) -> None:
    watch = Watch(sum(plan.task(number).entries for number in numbers), wish.progress)
    try:
        ENGINES[wish.engine](plan, numbers, workers=wish.workers, watch=watch)
    except KeyboardInterrupt as error:
        told = f"stopped after {watch.now.done} of {watch.now.total} files"
        raise Interrupted(told, hint="the finished shards are kept; the same command goes on") from error


def _finish(wish: _Wish, plan: Plan) -> Report:
    try:
        return finish(plan, strict=wish.strict)
    except KeyboardInterrupt as error:
        hint = "the shards are kept; the same command goes on"
        raise Interrupted(f"stopped with all {len(plan)} shards made", hint=hint) from error


def _complete(wish: _Wish, listing: Listing) -> Report:
    """The report of a data set that is there already, if it is the one asked for."""
    out = wish.out
    manifest = load_manifest(out)
    exhaust(listing)
    before = {"source": manifest.source, "options": manifest.options}
    check_same(out, before, listing, wish.options, since=(out / MANIFEST).stat().st_mtime)
    with contextlib.suppress(UsageError, StorageError), _alone(out):  # who is at work there does it
        if (out / WORK).exists():  # killed after the manifest
            files.remove_folder(out / WORK)
        files.reap(out)
    return _told(wish)


def _told(wish: _Wish) -> Report:
    report = read_report(wish.out)
    if wish.strict:
        check_strict(report)
    return report


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Under the lock of the folder, where there is work left that has one."""
    with (
        files.lock(out / WORK / _LOCK, what=f"the data set {out}")
        if (out / WORK).is_dir()
        else contextlib.nullcontext()
    ):
        yield
