"""JSON that may be anything, read piece by piece: one row of JSON lines, one pair of a long list of labels."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

PIECE_CHARACTERS = 1 << 24  # the most that one value may have

_READ_BYTES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class NotJson(Exception):
    """What is wrong, and where."""


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
        self._stream = stream
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before `_text`
        self._rest = b""  # of a character cut in two
        self._more()
        self._text = self._text.removeprefix("\ufeff")

    def _more(self, size: int = _READ_BYTES) -> bool:
        raw = self._stream.read(size)
        self._passed += self._at
        came = self._decoded(raw)
        self._text = self._text[self._at :] + came
        self._at = 0
        return bool(raw or came)

    def _decoded(self, raw: bytes) -> str:
        whole = self._rest + raw
        cut = len(whole)
        if raw:  # a character has four bytes at the most
            cut = max((at for at in range(max(0, cut - 4), cut) if whole[at] & 0xC0 != 0x80), default=cut)
        self._rest = whole[cut:]
        return whole[:cut].decode("utf-8", "replace")

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
        size = _READ_BYTES
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
