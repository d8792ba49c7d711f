"""A whole preparation: plan, shards in order, held-out pictures, report, preview, manifest.

The work in progress stands in `.prepare/` inside the output: the plan, and for each finished shard what it was made of.
After a kill the same command verifies the finished shards and goes on behind the last good one. The folder is complete
when `manifest.json` is there. What was held out becomes a data set of its own in `held-out/`, by the same way and before.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.data.prepare.hold_out import chosen
from hdit_cli.data.prepare.listing import Entry, Listing
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.preview import write_preview
from hdit_cli.data.prepare.report import REPORT, Report, Tally, line_of, read_report, write_report
from hdit_cli.data.prepare.scan import scan
from hdit_cli.data.prepare.workers import Outcome, Workers
from hdit_cli.data.shards import (
    HELD_OUT,
    MANIFEST,
    NO_LABEL,
    Manifest,
    ShardInfo,
    load_manifest,
    save_manifest,
    shard_name,
    writing_shard,
)
from hdit_cli.errors import DataError, Interrupted, UsageError

WORK = ".prepare"

_PLAN = "plan.json"
_PLAN_FORMAT = "hdit-prepare-plan/1"


@dataclass(frozen=True)
class Progress:
    """How far a preparation is: files told of files seen, and the kept and refused among them."""

    done: int
    total: int
    kept: int
    refused: int


def prepare(
    source: Path,
    *,
    out: Path,
    options: PrepareOptions,
    workers: int,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Makes a data set from a source; goes on where a killed run left off; does nothing where it is complete.

    Args:
        source: folder of pictures, zip, tar, or folder of tars.
        out: folder to be made.
        options: what the bytes depend on, besides the source.
        workers: processes; the bytes do not depend on it.
        strict: any refused file is an error.
        progress: called after each file.

    Raises:
        DataError: source missing or empty, nothing kept, or refused files where `strict`.
        UsageError: `out` holds something else, or lies inside the source.
        StorageError: the disk is full, or `out` cannot be written.
        Interrupted: stopped by the user; the same call goes on.
    """
    if workers < 1:
        raise UsageError(f"--workers is {workers}", hint="--workers 1 or more")
    listing = scan(source)
    _check_apart(source, out)
    plan = {"format": _PLAN_FORMAT, "source": listing.source(), "options": options.told()}
    if (out / MANIFEST).exists():
        report = _complete(out, plan, listing)
    else:
        _check_free(out)
        files.make_folder(out / WORK)
        with files.lock(out / WORK / "lock", what=f"the data set {out}"):
            _claim(out, plan, listing)
            with _Run(out, plan, listing, options) as run:
                report = run.all(workers, strict=strict, progress=progress)
    if strict and report.refused:
        raise _strict_error(report)
    return report


def _check_apart(source: Path, out: Path) -> None:
    inside = source.is_dir() and out.resolve().is_relative_to(source.resolve())
    if inside:
        hint = f"choose a folder outside {source} with --out"
        raise UsageError(f"the output {out} lies inside the source {source}", hint=hint)


def _check_free(out: Path) -> None:
    if not os.path.lexists(out) or (out / WORK).is_dir():
        return
    if not out.is_dir() or any(out.iterdir()):
        hint = "choose another folder with --out, or move it away"
        raise UsageError(f"{out} exists and is not a data set of this command", hint=hint)


def _changed(out: Path, plan: dict[str, Any], before: dict[str, Any], *, since: float, newest: float) -> None:
    """Stops where `out` was made from something else than what is asked for now."""
    hint = f"remove {out} to make it anew, or choose another folder with --out"
    for part, what in (("options", "with other options"), ("source", "from another source, or the source has changed")):
        if before.get(part) != plan[part]:
            then = before.get(part) or {}
            told = [key for key in dict.fromkeys([*plan[part], *then]) if plan[part].get(key) != then.get(key)]
            raise UsageError(f"{out} was made {what} ({', '.join(told)} differ)", hint=hint)
    if newest > since:
        raise UsageError(f"files of the source are newer than {out}", hint=hint)


def _complete(out: Path, plan: dict[str, Any], listing: Listing) -> Report:
    """The report of a data set that is there already, if it is the one asked for."""
    manifest = load_manifest(out)
    before = {"source": manifest.source, "options": manifest.options}
    _changed(out, plan, before, since=(out / MANIFEST).stat().st_mtime, newest=listing.newest)
    if (out / WORK).exists():  # killed after the manifest
        files.remove_folder(out / WORK)
    files.reap(out)
    return read_report(out)


def _claim(out: Path, plan: dict[str, Any], listing: Listing) -> None:
    """Writes the plan, or checks that the one that is there is the same. Under the lock."""
    files.reap(out)
    files.reap(out / WORK)
    path = out / WORK / _PLAN
    try:
        before = json.loads(path.read_bytes())
    except FileNotFoundError:
        files.write_json(path, plan)
        return
    except ValueError as error:
        raise UsageError(f"{path} is damaged", hint=f"remove {out} and run prepare again") from error
    _changed(out, plan, before, since=path.stat().st_mtime, newest=listing.newest)


def _strict_error(report: Report) -> DataError:
    path, code = report.first_refused
    return DataError(
        f"{report.refused} of {report.seen} files were refused, the first: {path} ({code})",
        hint=f"{report.out}/{REPORT} tells each; without --strict the {report.kept} good ones are kept",
    )


class _Run:
    """One pass over the entries: what is counted, what is still to be written down."""

    def __init__(self, out: Path, plan: dict[str, Any], listing: Listing, options: PrepareOptions) -> None:
        self.out = out
        self.plan = plan
        self.listing = listing
        self.options = options
        self.labels = {name: index for index, name in enumerate(listing.classes)}
        self.shards: list[ShardInfo] = []
        self.tally = Tally()
        self.position = 0  # entries told
        self.lines: list[dict[str, Any]] = []  # of the shard in work

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is KeyboardInterrupt:
            told = f"stopped after {self.position} of {len(self.listing.entries)} files"
            raise Interrupted(told, hint="the finished shards are kept; the same command goes on") from error

    def all(self, workers: int, *, strict: bool, progress: Callable[[Progress], None] | None) -> Report:
        """Everything that is not done yet; the manifest last."""
        self._resume()
        entries = self.listing.entries
        if self.position < len(entries):
            with Workers(workers, self.options) as pool:
                told = self._told(pool.outcomes(entries[self.position :]), progress)
                while self._shard(told):
                    pass
        report = self._report()
        if not report.kept:
            files.remove_folder(self.out / WORK)
            self._nothing_kept(report)
        write_report(self.out, report, self._all_lines())
        if strict and report.refused:
            return report  # an error for the caller; without a manifest it is no data set yet
        if report.held_out:
            self._hold_out(report, workers, progress)
        manifest = Manifest(
            count=self.tally.kept,
            classes=self.listing.classes,
            image_size=list(self.options.size),
            shards=self.shards,
            source=self.plan["source"],
            options=self.plan["options"],
            buckets=self.tally.manifest_buckets() if self.options.buckets else [],
        )
        write_preview(self.out, manifest)
        save_manifest(self.out, manifest)
        files.remove_folder(self.out / WORK)
        return report

    def _hold_out(self, report: Report, workers: int, progress: Callable[[Progress], None] | None) -> None:
        """Makes the data set inside, of the pictures that the first pass held out."""
        told = {line["path"] for line in self._all_lines() if line["code"] == HELD_OUT}
        entries = chosen(self.listing.entries, told, share=self.options.hold_out)
        out, before = self.out / HELD_OUT, self.position

        def counted(now: Progress) -> None:
            if progress is not None:
                kept, refused = report.kept + now.kept, report.refused + now.refused
                progress(Progress(before + now.done, before + now.total, kept=kept, refused=refused))

        files.make_folder(out / WORK)
        files.reap(out)
        files.reap(out / WORK)
        with _Run(out, self.plan, replace(self.listing, entries=entries), replace(self.options, hold_out=0.0)) as run:
            made = run.all(workers, strict=False, progress=counted)
        if made.kept != report.held_out:
            files.remove_folder(out)
            raise DataError(
                f"{report.held_out} pictures were held out, and only {made.kept} of them could be read again",
                hint="has the source changed meanwhile? the same command goes on",
            )

    def _nothing_kept(self, report: Report) -> None:
        if report.held_out:
            raise DataError(
                f"every picture that can be kept ({report.held_out}) was held out, none is left to train on",
                hint="a smaller --hold-out, or more pictures",
            )
        first = f"; the first: {report.first_refused[0]} ({report.first_refused[1]})" if report.first_refused else ""
        raise DataError(
            f"none of the {report.seen} files in {self.listing.name} is a picture that can be kept{first}",
            hint="is this the right folder? pictures are JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM",
        )

    # Pictures

    def _told(
        self, outcomes: Iterator[tuple[Entry, Outcome]], progress: Callable[[Progress], None] | None
    ) -> Iterator[tuple[Entry, Outcome]]:
        """Counts every file, and passes on the kept ones."""
        for entry, outcome in outcomes:
            self.position += 1
            self.tally.add(entry, outcome)
            line = line_of(entry, outcome)
            if line is not None:
                self.lines.append(line)
            if progress is not None:
                total = len(self.listing.entries)
                progress(Progress(self.position, total, kept=self.tally.kept, refused=self.tally.refused))
            if outcome.verdict == "kept":
                yield entry, outcome

    def _shard(self, told: Iterator[tuple[Entry, Outcome]]) -> bool:
        """Writes the next shard; False where no picture is left for one."""
        sample = next(told, None)
        if sample is None:
            return False
        number = len(self.shards)
        with writing_shard(self.out, number, sized=self.options.buckets is not None) as writer:
            while sample is not None:
                entry, outcome = sample
                label = NO_LABEL if entry.group is None else self.labels[entry.group]
                cls = {} if label == NO_LABEL else {".cls": str(label).encode()}
                writer.add(self.tally.kept - 1, {**outcome.members, **cls}, label=label, size=outcome.size)
                sample = next(told, None) if writer.count < self.options.shard_size else None
        self.shards.append(writer.info(shard_name(number)))
        self._remember(number)
        return True

    # What a later run must know

    def _state_path(self, number: int) -> Path:
        return self.out / WORK / f"{number:05d}.json"

    def _remember(self, number: int) -> None:
        state = {
            "shard": asdict(self.shards[number]),
            "position": self.position,
            "tally": asdict(self.tally),
            "lines": self.lines,
        }
        files.write_json(self._state_path(number), state)
        self.lines = []

    def _resume(self) -> None:
        """Takes over the finished shards of an earlier run, up to the first that is not whole."""
        while True:
            number = len(self.shards)
            try:
                state = json.loads(self._state_path(number).read_bytes())
            except (FileNotFoundError, ValueError):
                break
            shard = ShardInfo(**state["shard"])
            if not _is_whole(self.out, shard):
                break
            self.shards.append(shard)
            self.position = state["position"]
            self.tally = Tally(**state["tally"])
        for stale in sorted((self.out / WORK).glob("[0-9]*.json"))[len(self.shards) :]:
            files.remove_file(stale)

    def _all_lines(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self.shards)):
            yield from json.loads(self._state_path(number).read_bytes())["lines"]
        yield from self.lines

    def _report(self) -> Report:
        tally, classes = self.tally, self.listing.classes
        return Report(
            out=str(self.out),
            seen=tally.seen,
            kept=tally.kept,
            refused=tally.refused,
            side=tally.side,
            held_out=tally.held_out,
            unlabelled=tally.kept - sum(tally.labels.values()),
            classes={name: tally.labels.get(name, 0) for name in classes},
            codes=dict(sorted(tally.codes.items())),
            first_refused=tally.first_refused,
            image_size=list(self.options.size),
            shards=len(self.shards),
            bytes=sum(shard.bytes for shard in self.shards),
            buckets=tally.told_buckets() if self.options.buckets else [],
        )


def _is_whole(out: Path, shard: ShardInfo) -> bool:
    tar = out / shard.name
    index = tar.with_suffix(".idx")
    return tar.is_file() and index.is_file() and tar.stat().st_size == shard.bytes and files.sha256(tar) == shard.sha256
