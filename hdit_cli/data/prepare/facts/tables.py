"""Tables of labels and captions: `metadata.jsonl` and `metadata.csv` as Hugging Face's imagefolder has them, EDM's `dataset.json`.

The rows of a folder's tables go into a database that SQLite keeps in memory while it is small and in an unnamed temporary
file beyond that, so a table may have any number of rows. A row that cannot be used is counted, never guessed.
"""

import csv
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from hdit_cli.data.prepare.facts.columns import FILE_NAME, csv_rows, is_file_key, meant, shown
from hdit_cli.data.prepare.facts.facts import BAD_LABEL, CAPTION_KEYS, LABEL_KEYS, Facts, facts_of, label_name
from hdit_cli.data.prepare.facts.json_rows import NotJson, read_labels, read_rows
from hdit_cli.data.prepare.facts.lines import LINE_BYTES, LineTooLong, lines
from hdit_cli.data.prepare.facts.names import NEAR_NAME, Names
from hdit_cli.data.prepare.facts.words import label_text

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_CELLS = (".csv", ".tsv")  # what stands between the cells is seen, whatever the suffix
DATASET = "dataset.json"  # at the root alone

MORE_CAPTIONS = "more-captions"
NO_LABEL_TOLD = "no-label"  # a picture that a table of labels leaves out

SAVE_AS = "save it as UTF-8"

_CACHE_KIB = 8192
_MOST_COLUMNS = 64  # that are remembered for a message
_LOST = "\ufffd"
_SELECT = "SELECT label, caption, notes FROM rows WHERE name = ?"
_INDEX = "index"  # beside the notes of a row: its label counts into the names of the classes
_CLASS_KEYS = ("classes", "class_names", "label_names")


class NoTable(Exception):
    """The file is not a table of this kind: somebody else's JSON."""


class Table:
    """What the tables of one folder say of each picture below it, by its path relative to that folder.

    Args:
        names: the files below it.
        keep_missing: keep the rows of files that are not there too; a list tells of each.

    `has_labels` is whether it is a table of labels: then a folder's name is no class for pictures below it. One that cannot
    be used is taken for one unless it plainly is of captions, so that no picture gets another class than was meant.
    """

    def __init__(self, names: Names, *, keep_missing: bool = False) -> None:
        self.has_labels = False
        self.needs_labels = False  # a picture without one is to be told
        self._names, self._keep_missing = names, keep_missing
        self.class_names: list[str] = []  # that it lists, in their one spelling
        self._class_names: list[str] = []  # what the indices of a dataset.json mean
        self._problems: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._columns: dict[str, None] = {}  # of the table that is being read
        self._rows = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False
        )  # no name: no file is left behind
        for pragma in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._rows.execute(f"PRAGMA {pragma}")
        self._rows.execute(
            "CREATE TABLE rows (name TEXT PRIMARY KEY, label TEXT, caption TEXT, notes TEXT) WITHOUT ROWID"
        )
        self._rows.execute("BEGIN")

    def read(self, stream: BinaryIO, name: str) -> str:
        """Takes over the rows of one table; what could not be used of it, in words, with the columns that were found.

        Raises:
            NoTable: a dataset.json without labels: somebody else's.
        """
        self._problems, self._first, self._columns = Counter(), {}, {}
        is_list = not name.lower().endswith((*_CELLS, ".jsonl", ".json"))
        try:
            if name.lower() == DATASET:
                self._read_dataset(stream)
            elif name.lower().endswith(_CELLS):
                self._read_rows(csv_rows(line for _, line in lines(stream, keep_empty=True)))
            elif name.lower().endswith(".jsonl"):
                self._read_rows(meant(row) if row is not None else None for row in read_rows(stream))
            else:
                self._read_rows({FILE_NAME: line} for _, line in lines(stream))
        except LineTooLong as error:
            self._problem(f"line over {LINE_BYTES >> 20} MiB, nothing read from there on", f"line {error.number}")
        except (csv.Error, NotJson) as error:
            self._problem("damaged, nothing read from there on", str(error))
        if self._problems and not is_list:
            self._doubt()
        told = [_counted(what, count, self._first[what]) for what, count in self._problems.items()]
        columns = [] if is_list or not self._problems or not self._columns else [f"columns: {shown(self._columns)}"]
        return "; ".join([*told, *columns])

    def _doubt(self) -> None:
        """A table of which something failed is one of labels, unless its columns say that it is of captions alone."""
        said = set(self._columns)
        if said & set(LABEL_KEYS) or not said & set(CAPTION_KEYS):
            self.has_labels = self.needs_labels = True

    def facts(self, path: str) -> Facts | None:
        """What is said of a picture, or None where it has no row."""
        try:
            row = self._rows.execute(_SELECT, (path,)).fetchone()
        except UnicodeEncodeError:
            return None
        if row is None:
            return None
        label, notes = row[0], row[2].split()
        if _INDEX in notes and self._class_names and label is not None:
            label = _class_name(label, self._class_names)
            notes += [] if label else [BAD_LABEL]
        return Facts(label, row[1], tuple(note for note in notes if note != _INDEX))

    def names(self) -> Iterator[str]:
        """All names, in the order of their bytes."""
        return (name for (name,) in self._rows.execute("SELECT name FROM rows ORDER BY name"))

    # Rows

    def _read_rows(self, rows: Iterator[Mapping[str, Any] | None]) -> None:
        count = 0
        for count, row in enumerate(rows, start=1):
            if row is None:
                self._problem("rows that cannot be read", f"row {count}")
                continue
            if len(self._columns) < _MOST_COLUMNS:
                self._columns.update(dict.fromkeys(row))
            files = [value for key, value in row.items() if is_file_key(key)]
            files = [file for file in files if file not in (None, "")]
            if not files:
                self._problem(f"rows without {FILE_NAME}", f"row {count} ({shown(row.values())})")
                continue
            facts = facts_of(row)
            for file in files:
                self._add(file, facts)
        if not count:
            self._problem("no rows in it", "")
        said = set(self._columns) - {FILE_NAME}
        if said and not said & {*LABEL_KEYS, *CAPTION_KEYS} and not self._problems:
            self._problem("no column of labels or captions (label, text)", "")

    def _read_dataset(self, stream: BinaryIO) -> None:
        """{"labels": [["00000/img.png", 3], ...] or null}, with names of the classes where there are some."""
        found = False
        for key, value in read_labels(stream, repeated="labels"):
            if key in _CLASS_KEYS and isinstance(value, list) and all(isinstance(name, str) for name in value):
                self._class_names = value
                self.class_names = [label_text(name) for name in value]
            if key != "labels":
                continue
            found = self.has_labels = True
            if isinstance(value, list) and len(value) == 2:
                self._add(value[0], _facts_of_label(value[1]))
            elif value is not None:
                self._problem("labels that are no pair of a name and a class", "")
        if not found:
            raise NoTable

    def _add(self, name: Any, facts: Facts) -> None:
        found = self._names.find(name)
        if found is None:
            self._problem("names that lead out of the folder, or are none", str(name)[:80])
            return
        if not found.is_file and not self._keep_missing:
            self._problem("names of files that are not there", found.path[:80])
            return
        if BAD_LABEL in facts.notes:
            self._problem("labels that cannot be used", f"that of {found.path[:80]}")
        if facts.label is not None or BAD_LABEL in facts.notes:
            self.has_labels = self.needs_labels = True
        if facts.caption and _LOST in facts.caption:
            self._problem(f"captions with bytes that are not UTF-8 ({SAVE_AS})", f"that of {found.path[:80]}")
        notes = (*facts.notes, NEAR_NAME) if found.is_near else facts.notes
        values = (found.path, facts.label, facts.caption, " ".join(notes))
        if not self._rows.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?)", values).rowcount:
            self._merge(found.path, facts._replace(notes=notes))

    def _merge(self, inner: str, facts: Facts) -> None:
        """A second row for a picture: where the two disagree on its class it has none."""
        label, caption, told = self._rows.execute(_SELECT, (inner,)).fetchone()
        notes = {*told.split(), *facts.notes}
        labels = {label, facts.label} - {None}
        if len(labels) > 1:
            notes.add(BAD_LABEL)
        label = None if BAD_LABEL in notes else next(iter(labels), None)
        if caption and facts.caption and caption != facts.caption:
            notes.add(MORE_CAPTIONS)
        values = (label, caption or facts.caption, " ".join(sorted(notes)), inner)
        self._rows.execute("UPDATE rows SET label = ?, caption = ?, notes = ? WHERE name = ?", values)

    def _problem(self, what: str, example: str) -> None:
        self._problems[what] += 1
        self._first.setdefault(what, example)


class Scope(NamedTuple):
    """The tables that hold for a folder: its own and those of the folders above it. A nearer one goes first."""

    prefix: str  # of the folder that has the table, with a "/" at its end
    table: Table
    outer: "Scope | None"

    def facts(self, path: str) -> Facts | None:
        """What they say of a picture; None where none of them has a row for it or is a table of labels."""
        label = caption = None
        notes: tuple[str, ...] = ()
        has_row = has_labels = needs_label = False
        scope: Scope | None = self
        while scope is not None:
            has_labels, needs_label = has_labels or scope.table.has_labels, needs_label or scope.table.needs_labels
            row = scope.table.facts(path.removeprefix(scope.prefix))
            if row is not None:
                has_row = True
                label = row.label if label is None and BAD_LABEL not in notes else label
                caption = caption or row.caption
                notes += row.notes
            scope = scope.outer
        if not has_row and not has_labels:
            return None
        if label is None and needs_label and BAD_LABEL not in notes:
            notes += (NO_LABEL_TOLD,)
        return Facts(label, caption, notes)

    @property
    def has_labels(self) -> bool:
        return self.table.has_labels or (self.outer is not None and self.outer.has_labels)


def _facts_of_label(value: Any) -> Facts:
    try:
        return Facts(label_name(value), notes=(_INDEX,))
    except ValueError:
        return Facts(notes=(BAD_LABEL,))


def _class_name(label: str, names: list[str]) -> str | None:
    index = int(label) if label.isascii() and label.isdigit() and len(label) < 20 else len(names)
    try:
        return label_name(names[index]) if index < len(names) else None
    except ValueError:
        return None


def _counted(what: str, count: int, example: str) -> str:
    example = example.encode("utf-8", "backslashreplace").decode()
    save = f"; {SAVE_AS}" if _LOST in example and SAVE_AS not in what else ""
    return (f"{what}: {count}, the first: {example}" if example else f"{what}: {count}" if count > 1 else what) + save
