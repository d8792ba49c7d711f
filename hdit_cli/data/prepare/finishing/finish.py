"""The end of a preparation: from the records of all tasks to the data set. A function of these records alone.

Killed at any point and started again it comes to the same: what it changes in a shard goes with the shard's record, and
the manifest is written last.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from hdit_cli import files
from hdit_cli.data.prepare.finishing.duplicates import Double, Duplicates, find_duplicates, rewrite
from hdit_cli.data.prepare.finishing.numbering import Numbering, numbering_for
from hdit_cli.data.prepare.finishing.preview import write_preview
from hdit_cli.data.prepare.finishing.report import DUPLICATE, REPORT, TABLE_HINT, Report, Tally, report_of, write_report
from hdit_cli.data.prepare.making.plan import Plan
from hdit_cli.data.prepare.making.task import SIDES, Line, Picture, Record, record_path, records
from hdit_cli.data.prepare.pictures.heic import HEIC, INSTALL
from hdit_cli.data.prepare.sources.listing import BAD_TABLE
from hdit_cli.data.shards import HELD_OUT, Manifest, ShardInfo, save_manifest
from hdit_cli.errors import DataError


def finish(plan: Plan, *, strict: bool) -> Report:
    """Takes out duplicates where asked, and empty classes; writes reports, previews, manifests; under the lock of the whole.

    Args:
        plan: of which every task is done.
        strict: any refused file is an error, and the data set gets no manifest.

    Raises:
        DataError: nothing kept; or refused files where `strict`.
        StorageError: the disk is full.
    """
    for folder in (plan.work, *(plan.out / side for side in SIDES.values())):
        files.reap(folder)
    entries = sum(plan.task(number).entries for number in range(len(plan)))
    look = _Look(plan)
    duplicates = find_duplicates(look.records, most=entries)
    numbering = _settle(plan, duplicates, look)
    account = _Account(plan, duplicates, numbering)
    report = account.report()
    _remove_others(plan, account)
    if not report.kept:
        raise _nothing_kept(plan, report)
    write_report(plan.out, report, account.lines())
    if strict:
        check_strict(report)
    if report.held_out:
        write_report(plan.out / HELD_OUT, account.held_out_report(), account.held_out_lines())
        _write_set(plan, HELD_OUT, account)
    _write_set(plan, "", account)
    files.remove_folder(plan.work)
    return report


def check_strict(report: Report) -> None:
    """What --strict asks for. A duplicate that was left out as asked is no defect.

    Raises:
        DataError: files were refused, or something of a table could not be used.
    """
    if report.bad_tables:
        path, detail = report.bad_tables[0]
        more = f" ({len(report.bad_tables)} tables in all)" if len(report.bad_tables) > 1 else ""
        raise DataError(f"the table {path} cannot be used as it is{more}: {detail}", hint=TABLE_HINT)
    refused = report.refused - (report.duplicates if report.deduped else 0)
    if refused:
        path, code = report.first_refused
        raise DataError(
            f"{refused} of {report.seen} files were refused, the first: {path} ({code})",
            hint=f"{report.out}/{REPORT} tells each; without --strict the {report.kept} good ones are kept",
        )


class _Look:
    """What is noticed while all records are read for the duplicates: so that they need not be read once more."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.labels: set[int] = set()  # of the plan, that some picture has
        self.was_numbered = False  # by a finish that was stopped

    def records(self) -> Iterator[Record]:
        for record in records(self._plan):
            self.labels.update(picture.label for picture in record.pictures)
            self.was_numbered = self.was_numbered or record.numbered is not None
            yield record


def _settle(plan: Plan, duplicates: Duplicates, look: _Look) -> Numbering:
    """Takes duplicates out where asked, and classes that no picture is left of; both in one go through the shards."""
    dedupe = plan.options.dedupe
    if dedupe and len(duplicates):
        numbering = numbering_for(plan, _labels_left(plan, duplicates))
    else:
        numbering = numbering_for(plan, look.labels)
    if not dedupe and not look.was_numbered and numbering.told() is None:
        return numbering
    for record in records(plan):
        rows = sorted(duplicates.of(record.task)) if dedupe else []
        if record.dropped and record.dropped != rows:  # a shard made again came to other pictures
            files.remove_file(record_path(plan, record.task))
            hint = "has the source changed meanwhile? the same command goes on"
            raise DataError(f"shard {record.task} is no longer what it was made from", hint=hint)
        if record.dropped != rows or not numbering.holds_for(plan, record):
            rewrite(plan, record, rows, numbering)
    return numbering


def _labels_left(plan: Plan, duplicates: Duplicates) -> set[int]:
    """Of all pictures but the duplicates."""
    labels: set[int] = set()
    for record in records(plan):
        out = duplicates.of(record.task)
        labels.update(picture.label for picture in record.pictures if picture.row not in out)
    return labels


def _write_set(plan: Plan, side: str, account: "_Account") -> None:
    tally = account.held_out if side else account.training
    manifest = Manifest(
        count=tally.kept,
        classes=account.numbering.classes,
        image_size=list(plan.options.size),
        shards=account.shards[side],
        source=plan.source,
        options=plan.options.told(),
        buckets=tally.buckets() if plan.options.buckets else [],
    )
    write_preview(plan.out / side, manifest)
    save_manifest(plan.out / side, manifest)


def _remove_others(plan: Plan, account: "_Account") -> None:
    """Removes shards that no record tells of: of a task that was made again, and then came to nothing."""
    for side, infos in account.shards.items():
        names = {info.name for info in infos}
        for path in sorted((plan.out / side).glob("[0-9]*.*")):
            if path.suffix in (".tar", ".idx") and path.with_suffix(".tar").name not in names:
                files.remove_file(path)
    if not account.shards[HELD_OUT] and (plan.out / HELD_OUT).exists():
        files.remove_folder(plan.out / HELD_OUT)


def _nothing_kept(plan: Plan, report: Report) -> DataError:
    if (plan.out / HELD_OUT).exists():
        files.remove_folder(plan.out / HELD_OUT)
    files.remove_folder(plan.work)
    if report.held_out:
        return DataError(
            f"every picture that can be kept ({report.held_out}) was held out, none is left to train on",
            hint="a smaller --hold-out, or more pictures",
        )
    hint = "is this the right folder? pictures are JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM"
    if report.codes.get(HEIC):
        hint = f"{report.codes[HEIC]} of them are HEIC, which phones write: {INSTALL}, then the same command"
    first = f"; the first: {report.first_refused[0]} ({report.first_refused[1]})" if report.first_refused else ""
    return DataError(
        f"none of the {report.seen} files in {plan.source['name']} is a picture that can be kept{first}",
        hint=hint,
    )


class _Ruling(NamedTuple):
    """The last word on one file."""

    row: int
    path: str | None  # None: plainly kept, so not written down with the record
    verdict: str
    codes: list[str]
    detail: str
    picture: Picture | None
    double: Double | None


class _Account:
    """Counts all records; then tells the report and its lines, which read the records again."""

    def __init__(self, plan: Plan, duplicates: Duplicates, numbering: Numbering) -> None:
        self._plan, self._duplicates, self.numbering = plan, duplicates, numbering
        self.training, self.held_out = Tally(), Tally()
        self.shards: dict[str, list[ShardInfo]] = {side: [] for side in SIDES.values()}
        for record in records(plan):
            for side, infos in self.shards.items():
                info = record.info(side)
                infos += [info] if info else []
            for ruling in self._rulings(record):
                self._count(ruling)

    def report(self) -> Report:
        report = self._report("", self.training)
        twice = self._duplicates
        return replace(
            report,
            duplicates=len(twice),
            duplicate_groups=twice.groups,
            duplicates_across=twice.across,
            deduped=self._plan.options.dedupe,
            notes=self._plan.notes,
        )

    def held_out_report(self) -> Report:
        return replace(self._report(HELD_OUT, self.held_out), duplicates=self.held_out.codes[DUPLICATE])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Of all files that are not plainly kept; the notes of a held-out picture are told in its own data set."""
        for record in records(self._plan):
            for ruling in self._rulings(record):
                codes = _held_out_codes(ruling) if ruling.verdict == "held_out" else ruling.codes
                if codes:
                    yield self._line(record, ruling._replace(codes=codes))

    def held_out_lines(self) -> Iterator[dict[str, Any]]:
        for record in records(self._plan):
            for ruling in self._rulings(record):
                if ruling.verdict == "held_out" and ruling.codes:
                    yield self._line(record, ruling._replace(verdict="kept"))

    def _report(self, side: str, tally: Tally) -> Report:
        plan = self._plan
        classes = {plan.classes[index]: tally.labels[index] for index in self.numbering.kept}
        report = report_of(
            tally, out=plan.out / side, classes=classes, size=plan.options.size, shards=self.shards[side]
        )
        return replace(report, buckets=tally.told_buckets() if plan.options.buckets else [])

    def _rulings(self, record: Record) -> Iterator[_Ruling]:
        lines: dict[int, Line] = {line.row: line for line in record.lines}
        pictures: dict[int, Picture] = {picture.row: picture for picture in record.pictures}
        doubles = self._duplicates.of(record.task)
        for row in sorted({*lines, *pictures}):
            line, picture, double = lines.get(row), pictures.get(row), doubles.get(row)
            path, verdict, codes, detail = (
                (line.path, line.verdict, line.codes, line.detail) if line else (None, "kept", [], "")
            )
            if double and self._plan.options.dedupe:
                verdict, codes, detail, picture = "refused", [DUPLICATE], "", None
            elif double:
                codes = [*codes, DUPLICATE]
            yield _Ruling(row, path, verdict, codes, detail, picture, double)

    def _count(self, ruling: _Ruling) -> None:
        path = ruling.path or ""
        side = self.held_out if ruling.verdict == "held_out" else self.training
        if ruling.verdict == "held_out":
            self.training.add(path, "held_out", _held_out_codes(ruling))
            self.held_out.add(path, "kept", ruling.codes)
        else:
            self.training.add(path, ruling.verdict, ruling.codes)
        if BAD_TABLE in ruling.codes:
            self.training.bad_tables.append([path, ruling.detail])
        if ruling.picture:
            side.look(ruling.picture)

    def _line(self, record: Record, ruling: _Ruling) -> dict[str, Any]:
        """The line of one file in a report."""
        path = ruling.path or self._plan.path(record.task, ruling.row)
        line: dict[str, Any] = {"path": path, "verdict": ruling.verdict, "code": ruling.codes[0]}
        if len(ruling.codes) > 1:
            line["codes"] = ruling.codes
        if ruling.double:
            line["of"] = self._plan.path(ruling.double.task, ruling.double.row)
            if ruling.double.across:
                line["across"] = True
        if ruling.detail:
            line["detail"] = ruling.detail
        return line


def _held_out_codes(ruling: _Ruling) -> list[str]:
    return [HELD_OUT, DUPLICATE] if DUPLICATE in ruling.codes else [HELD_OUT]
