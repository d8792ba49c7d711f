"""The lines of a text file that may be anything: bounded in length, and text whatever its bytes are."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from hdit_cli.data.prepare.facts.words import encoding_of

LINE_BYTES = 1 << 20  # characters, where the text is not ASCII

_HEAD = 1 << 16


class LineTooLong(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def opened(stream: BinaryIO) -> io.TextIOWrapper:
    """A seekable stream as text, in UTF-8 or UTF-16 as its beginning says; other bytes become U+FFFD.

    Lines end with "\\n", or with "\\r" where there is no "\\n" in its beginning.
    """
    start = stream.tell()
    head = stream.read(_HEAD)
    stream.seek(start)
    ends = "\r" if b"\r" in head and b"\n" not in head else "\n"
    return io.TextIOWrapper(stream, encoding=encoding_of(head), errors="replace", newline=ends)


def lines(stream: BinaryIO, *, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    """Yields (number, text) of each line.

    Raises:
        LineTooLong: over LINE_BYTES.
    """
    text, number = opened(stream), 0
    while line := text.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise LineTooLong(number)
        line = line.rstrip("\r\n")
        if keep_empty or line.strip():
            yield number, line
    text.detach()
