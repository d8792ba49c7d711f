"""The lines of a text file that may be anything: bounded in length, and text whatever its bytes are."""

from collections.abc import Iterator
from typing import BinaryIO

LINE_BYTES = 1 << 20

_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16, and UTF-32 in part


class LineTooLong(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def lines(stream: BinaryIO, *, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    """Yields (number, text) of each line; bytes that are not UTF-8 become U+FFFD.

    Raises:
        LineTooLong: over LINE_BYTES.
        UnicodeError: UTF-16 or UTF-32.
    """
    number = 0
    while line := stream.readline(LINE_BYTES + 1):
        number += 1
        if number == 1:
            if line.startswith(_OTHER_BOMS):
                raise UnicodeError("a byte order mark of UTF-16")
            line = line.removeprefix(_BOM)
        if len(line) > LINE_BYTES:
            raise LineTooLong(number)
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if keep_empty or text.strip():
            yield number, text
