"""The account of a preparation: seen = kept + refused + side files + held out, a line for each file not plainly kept."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.data.prepare.listing import Entry
from hdit_cli.data.prepare.workers import Outcome
from hdit_cli.data.shards import Bucket, buckets_of
from hdit_cli.errors import DataError

FORMAT = "hdit-prepare-report/1"
REPORT = "report.json"


@dataclass
class Tally:
    """Counts over the files told so far: `codes` of every code and note, `labels` of the kept pictures of a class.

    What was cut away is summed in whole millionths of a picture: the sum is the same in any order.
    """

    kept: int = 0
    refused: int = 0
    side: int = 0
    held_out: int = 0
    first_refused: list[str] = field(default_factory=list)  # path and code
    codes: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)  # HxW => kept pictures, and the sum of what was cut away

    @property
    def seen(self) -> int:
        return self.kept + self.refused + self.side + self.held_out

    def add(self, entry: Entry, outcome: Outcome) -> None:
        setattr(self, outcome.verdict, getattr(self, outcome.verdict) + 1)
        self.codes = dict(Counter(self.codes) + Counter(outcome.codes))
        if outcome.verdict == "refused" and not self.first_refused:
            self.first_refused = [entry.path, outcome.codes[0]]
        if outcome.verdict == "kept" and entry.group is not None:
            self.labels[entry.group] = self.labels.get(entry.group, 0) + 1
        if outcome.verdict == "kept":
            name = "{}x{}".format(*outcome.size)
            count, cut = self.sizes.get(name, (0, 0))
            self.sizes[name] = [count + 1, cut + round(outcome.cut * _WHOLE)]

    def manifest_buckets(self) -> list[Bucket]:
        """The sizes that pictures have, as the manifest tells them."""
        return buckets_of({_size(name): count for name, (count, _) in self.sizes.items()})

    def told_buckets(self) -> list[dict[str, Any]]:
        """As `manifest_buckets`, each with the share of its pictures' area that was cropped away."""
        cuts = {_size(name): cut / _WHOLE / count for name, (count, cut) in self.sizes.items()}
        return [
            {**asdict(bucket), "cropped": round(cuts[bucket.size[0], bucket.size[1]], 4)}
            for bucket in self.manifest_buckets()
        ]


_WHOLE = 1_000_000


def _size(name: str) -> tuple[int, int]:
    height, _, width = name.partition("x")
    return int(height), int(width)


@dataclass(frozen=True)
class Report:
    """What a preparation came to. `classes` maps each class, in the order of the indices, to its pictures.

    `buckets`, where there are any: size [H, W], count, and `cropped`, the mean share of a picture's area that was cut away.
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


def line_of(entry: Entry, outcome: Outcome) -> dict[str, Any] | None:
    """The line of one file in the report; None for a picture that was plainly kept."""
    if not outcome.codes:
        return None
    line: dict[str, Any] = {"path": entry.path, "verdict": outcome.verdict, "code": outcome.codes[0]}
    if len(outcome.codes) > 1:
        line["codes"] = list(outcome.codes)
    if outcome.detail:
        line["detail"] = outcome.detail
    return line


def write_report(folder: Path, report: Report, lines: Iterable[dict[str, Any]]) -> None:
    """Writes report.json: the counts, then one line per file; streamed, since there may be a million."""
    facts = asdict(report)
    for key in ("out", "complete_before"):  # facts of this run, not of the data set
        del facts[key]
    if not report.held_out:
        del facts["held_out"]
    if not report.buckets:
        del facts["buckets"]
    head = json.dumps({"format": FORMAT, **facts}, indent=2, ensure_ascii=False)
    with files.replacing(folder / REPORT) as handle:
        handle.write(head.removesuffix("\n}").encode() + b',\n  "files": [')
        for number, line in enumerate(lines):
            handle.write((",\n    " if number else "\n    ").encode() + json.dumps(line, ensure_ascii=False).encode())
        handle.write(b"\n  ]\n}\n")


def read_report(folder: Path) -> Report:
    """The counts of a finished data set.

    Raises:
        DataError: missing or damaged.
    """
    path = folder / REPORT
    try:
        facts = json.loads(path.read_bytes())
        del facts["format"], facts["files"]
        return Report(out=str(folder), complete_before=True, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"remove {folder} and run prepare again"
        raise DataError(f"{path} is missing or damaged", hint=hint) from error
