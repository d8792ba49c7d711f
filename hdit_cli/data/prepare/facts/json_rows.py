"""JSON that may be anything, read piece by piece: one row of JSON lines, one pair of a long list of labels."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from hdit_cli.data.prepare.facts.lines import lines, opened

PIECE_CHARACTERS = 1 << 24  # the most that one value may have

_READ_CHARACTERS = 1 << 16
_HEAD = 1 << 12
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class NotJson(Exception):
    """What is wrong, and where."""


def read_rows(stream: BinaryIO) -> Iterator[dict[str, Any] | None]:
    """The objects of JSON lines, None for a line that is none; or those of one list around all of them.

    Raises:
        NotJson: a list that is damaged.
        LineTooLong: a line over LINE_BYTES.
    """
    start = stream.tell()
    first = stream.read(_HEAD).decode("utf-8-sig", "ignore").replace("\0", "").lstrip("\ufeff\ufffe \t\r\n")
    stream.seek(start)
    if first.startswith("[") and not _is_row(first):
        elements = _Text(stream).elements()
        yield from (element if isinstance(element, dict) else None for element in elements)
        return
    for _, line in lines(stream):
        yield read_objects(line)


def _is_row(text: str) -> bool:
    """Whether the first line is a whole value, and more follow: lines of which this one is no object."""
    line, _, rest = text.partition("\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return bool(rest.strip())


def read_objects(line: str) -> dict[str, Any] | None:
    """The object on one line; None where there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_labels(stream: BinaryIO, *, repeated: str) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of one large object; of the list under the key `repeated`, one element at a time.

    An object whose list is empty yields (repeated, None), as one where it is null does.

    Raises:
        NotJson: not an object, damaged, or a value of more than PIECE_CHARACTERS.
    """
    text = _Text(stream)
    text.take("{")
    if text.peek() == "}":
        return
    while True:
        key = text.value()
        text.take(":")
        if key == repeated and text.peek() == "[":
            yield repeated, None
            for element in text.elements():
                yield repeated, element
        else:
            yield str(key), text.value()
        if text.take(",}") == "}":
            return


class _Text:
    """The part of a text that is being looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = opened(stream)
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before `_text`

    def _more(self, size: int = _READ_CHARACTERS) -> bool:
        came = self._stream.read(size)
        self._passed += self._at
        self._text = self._text[self._at :] + came
        self._at = 0
        return bool(came)

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None, "no space at all is a match too"
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise NotJson(f"ends after character {self._passed}")

    def take(self, known: str) -> str:
        character = self.peek()
        if character not in known:
            raise NotJson(f"character {self._passed + self._at} is no {' or '.join(known)}")
        self._at += 1
        return character

    def value(self) -> Any:
        """The next value of any kind."""
        self.peek()
        size = _READ_CHARACTERS
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise NotJson(f"too deep at character {self._passed + self._at}") from None
            except ValueError:
                end = None
            if end is not None and end < len(self._text):  # at the very end a number could go on
                self._at = end
                return value
            size = max(size, 2 * (len(self._text) - self._at))
            if len(self._text) - self._at > PIECE_CHARACTERS or not self._more(size):
                raise NotJson(f"no whole value at character {self._passed + self._at}")

    def elements(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return
