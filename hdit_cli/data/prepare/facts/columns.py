"""What the columns of a table mean, by their names: `file_name`, `label`, `text` and their like, however they are spelt."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hdit_cli.data.prepare.facts.facts import CAPTION_KEYS, LABEL_KEYS

FILE_NAME = "file_name"

# other names of the column of files, the plainest first, without blanks and strokes, which do not count
_FILES = ("filename", "file", "filepath", "path", "imagepath", "imagefile", "imagename", "image", "imgpath", "img",
          "picture", "photo")  # fmt: skip
_STROKES = re.compile(r"[\s_.\-\ufeff\u200b\u200e\u200f\u2060]+")
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"\s*sep=(.)\s*", re.IGNORECASE)  # how a spreadsheet says what stands between the cells
_SHOWN = 8
_SHOWN_CHARACTERS = 40


@lru_cache(maxsize=256)
def meanings(keys: tuple[str, ...]) -> tuple[str, ...]:
    """For each name of a column, what it is called here; its own name where that is nothing known.

    A column that is called as it is here goes before one that is called nearly so.
    """
    known = {_plain(key): key for key in (*LABEL_KEYS, *CAPTION_KEYS)}
    found = list(keys)
    for place, key in enumerate(keys):
        name = known.get(_plain(key))
        if name is not None and name not in found:
            found[place] = name
    if any(is_file_key(key) for key in keys):
        return tuple(found)
    plain = [_plain(key) for key in keys]
    place = next((plain.index(name) for name in _FILES if name in plain), None)
    if place is None:
        place = next((at for at, name in enumerate(plain) if name.endswith("filename")), None)
    if place is not None:
        found[place] = FILE_NAME
    return tuple(found)


def meant(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its columns as they are called here."""
    keys = tuple(row)
    return dict(zip(meanings(keys), row.values(), strict=True)) if meanings(keys) != keys else dict(row)


def is_file_key(key: str) -> bool:
    return key == FILE_NAME or key.endswith(f"_{FILE_NAME}")


def shown(cells: Iterable[object]) -> str:
    """Cells for a message, in one line."""
    cells = list(cells)
    told = [text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…" for text in map(str, cells)]
    return ", ".join(told[:_SHOWN]) + (", …" if len(cells) > _SHOWN else "")


def csv_rows(lines: Iterator[str]) -> Iterator[Mapping[str, Any] | None]:
    """The rows of a table whose first line names the columns; None for one that has more or fewer cells than these.

    Between the cells stand commas, semicolons, tabs or bars: what makes the first line name files. Empty columns and
    empty rows, as spreadsheets leave them, are passed over.

    Raises:
        csv.Error: the quotes do not end, or two columns have one name.
    """
    head = next((line for line in lines if line.strip()), "")
    separator = _SEPARATOR_LINE.fullmatch(head)
    if separator:
        head = next(lines, "")
    delimiter = separator[1] if separator and separator[1] in _DELIMITERS else _delimiter(head)
    header = [name.strip() for name in _cells(head, delimiter)]
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise csv.Error("two columns have one name")
    keys = meanings(tuple(header))
    for cells in csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True, skipinitialspace=True):
        if not any(cell.strip() for cell in cells):
            continue
        yield _row(keys, cells)


def _row(keys: Sequence[str], cells: list[str]) -> Mapping[str, Any] | None:
    while len(cells) > len(keys) and not cells[-1].strip():
        cells = cells[:-1]
    if len(cells) != len(keys):
        return None
    return {key: cell for key, cell in zip(keys, cells, strict=True) if key}


def _delimiter(head: str) -> str:
    told = {each: _cells(head, each) for each in _DELIMITERS}
    naming = (each for each, cells in told.items() if any(is_file_key(key) for key in meanings(tuple(cells))))
    return next(naming, max(told, key=lambda each: len(told[each])))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
    except csv.Error:
        return [line.strip()]


def _plain(key: str) -> str:
    return _STROKES.sub("", key).casefold()
