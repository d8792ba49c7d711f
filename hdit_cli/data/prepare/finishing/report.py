"""The account of a preparation: seen = kept + refused + side files + held out, a line for each file not plainly kept."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.data.prepare.making.task import Picture
from hdit_cli.data.shards import NO_LABEL, Bucket, ShardInfo, buckets_of
from hdit_cli.errors import DataError

FORMAT = "hdit-prepare-report/1"
REPORT = "report.json"
TABLE_HINT = (
    "a first row with file_name and label or text, names relative to the table; a table of something else: rename it"
)
DUPLICATE = "duplicate"  # code of a picture that is equal, as prepared, to an earlier one

_FILES = '  "files": ['  # the line that the lines of files follow
_MILLION = 1_000_000
# facts that are left out where they say nothing: a report without held-out pictures does not speak of them
_WHERE_ANY = ("held_out", "buckets", "duplicates_across", "deduped", "notes", "bad_tables")


@dataclass
class Tally:
    """Counts over files: `codes` of every code and note; of the kept pictures `labels`, sizes and what was done to them.

    What was cut away is summed in whole millionths of a picture: the sum is the same in any order.
    """

    kept: int = 0
    refused: int = 0
    side: int = 0
    held_out: int = 0
    captions: int = 0
    cropped: int = 0
    smaller: int = 0
    first_refused: list[str] = field(default_factory=list)  # path and code
    bad_tables: list[list[str]] = field(default_factory=list)  # path and detail
    codes: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)  # shorter side of the source => pictures
    sizes: dict[tuple[int, int], list[int]] = field(
        default_factory=dict
    )  # (H, W) => pictures, sum of what was cut away

    @property
    def seen(self) -> int:
        return self.kept + self.refused + self.side + self.held_out

    def add(self, path: str, verdict: str, codes: Iterable[str]) -> None:
        """Counts one file. What is refused as a duplicate is not told as the first that was refused: it can be kept."""
        codes = list(codes)
        setattr(self, verdict, getattr(self, verdict) + 1)
        self.codes.update(codes)
        if verdict == "refused" and not self.first_refused and codes[0] != DUPLICATE:
            self.first_refused = [path, codes[0]]

    def look(self, picture: Picture) -> None:
        """Counts what is known of a kept picture."""
        self.labels[picture.label] += 1
        self.captions += picture.captioned
        self.cropped += picture.cut > 0
        self.smaller += min(picture.source) < min(picture.size)
        self.sides[min(picture.source)] += 1
        counted = self.sizes.setdefault((picture.size[0], picture.size[1]), [0, 0])
        counted[0] += 1
        counted[1] += picture.cut

    def buckets(self) -> list[Bucket]:
        """The sizes that pictures have, as the manifest tells them."""
        return buckets_of({size: count for size, (count, _) in self.sizes.items()})

    def told_buckets(self) -> list[dict[str, Any]]:
        """As `buckets`, each with the share of its pictures' area that was cropped away."""
        cuts = {size: cut / _MILLION / count for size, (count, cut) in self.sizes.items()}
        return [
            {**asdict(bucket), "cropped": round(cuts[bucket.size[0], bucket.size[1]], 4)} for bucket in self.buckets()
        ]

    def told_sides(self) -> dict[str, int]:
        """Smallest, median (the lower one of two) and largest of the shorter sides, in pixels; empty without pictures."""
        if not self.sides:
            return {}
        ordered, reached = sorted(self.sides), 0
        for median in ordered:
            reached += self.sides[median]
            if 2 * reached >= self.sides.total():
                break
        return {"min": ordered[0], "median": median, "max": ordered[-1]}


@dataclass(frozen=True)
class Report:
    """What a preparation came to. `classes` maps each class, in the order of the indices, to its pictures.

    `buckets`, where there are any: size [H, W], count, and `cropped`, the mean share of a picture's area that was cut away.
    `sides`: smallest, median and largest shorter side of the kept pictures in the source, in pixels; `smaller` counts those
    that are below the shorter side written, `cropped` those that lost something at an edge. `duplicates` counts pictures
    that are equal, as prepared, to an earlier one (in `duplicate_groups` sets of equal ones), `duplicates_across` those
    among them of which one is held out and the other is not. Where `deduped`, they are among the refused.
    """

    out: str
    seen: int
    kept: int
    refused: int
    side: int
    unlabelled: int
    classes: dict[str, int]
    codes: dict[str, int]
    first_refused: list[str]
    image_size: list[int]
    shards: int
    bytes: int
    held_out: int = 0  # pictures in the data set inside, `held-out`
    complete_before: bool = False  # nothing was left to do
    buckets: list[dict[str, Any]] = field(default_factory=list)
    captions: int = 0
    cropped: int = 0
    smaller: int = 0
    sides: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    duplicate_groups: int = 0
    duplicates_across: int = 0
    deduped: bool = False
    notes: list[str] = field(default_factory=list)  # what is odd about the source, in sentences
    bad_tables: list[list[str]] = field(default_factory=list)  # [path, what could not be used of it], in their order


def report_of(
    tally: Tally, *, out: Path, classes: dict[str, int], size: tuple[int, int], shards: list[ShardInfo]
) -> Report:
    """The report of what was counted, without buckets and duplicates."""
    return Report(
        out=str(out),
        seen=tally.seen,
        kept=tally.kept,
        refused=tally.refused,
        side=tally.side,
        held_out=tally.held_out,
        unlabelled=tally.labels[NO_LABEL],
        classes=classes,
        codes=dict(sorted(tally.codes.items())),
        first_refused=tally.first_refused,
        image_size=list(size),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        captions=tally.captions,
        cropped=tally.cropped,
        smaller=tally.smaller,
        sides=tally.told_sides(),
        bad_tables=tally.bad_tables,
    )


def write_report(folder: Path, report: Report, lines: Iterable[dict[str, Any]]) -> None:
    """Writes report.json: the counts, then one line per file; streamed, since there may be a million."""
    facts = asdict(report)
    for key in ("out", "complete_before"):  # facts of this run, not of the data set
        del facts[key]
    for key in _WHERE_ANY:
        if not facts[key]:
            del facts[key]
    head = json.dumps({"format": FORMAT, **facts}, indent=2, ensure_ascii=False)
    with files.replacing(folder / REPORT) as handle:
        handle.write(head.removesuffix("\n}").encode() + f",\n{_FILES}".encode())
        for number, line in enumerate(lines):
            handle.write((",\n    " if number else "\n    ").encode() + json.dumps(line, ensure_ascii=False).encode())
        handle.write(b"\n  ]\n}\n")


def read_report(folder: Path) -> Report:
    """The counts of a finished data set; the lines of files, of which there may be a million, are not read.

    Raises:
        DataError: missing or damaged.
    """
    path = folder / REPORT
    try:
        facts = json.loads(_head(path))
        del facts["format"]
        return Report(out=str(folder), complete_before=True, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"remove {folder} and run prepare again"
        raise DataError(f"{path} is missing or damaged", hint=hint) from error


def _head(path: Path) -> str:
    """The report without its lines of files."""
    head = ""
    with open(path, encoding="utf-8") as handle:
        for line in handle:
            if line.rstrip("\n") == _FILES:
                return head.rstrip().removesuffix(",") + "}"
            head += line
    raise ValueError("it has no lines of files")
