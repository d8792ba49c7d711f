"""What a command prints: the one place where text leaves for a terminal.

Names of classes, files, weights and runs are anybody's text. Printed as they are, their control characters would move the
cursor, hide lines or set the window's title; a line break would make a line of its own. They are shown as `\\x1b`, `\\n` here.
"""

import json
import re
import sys
from typing import Any

# control characters, line and paragraph separators, marks that turn the direction of writing, and halves of characters
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """A line as it may be printed: what a terminal would act upon is written out, a tab is a blank."""
    return _UNSEEN.sub(lambda found: _written_out(found[0]), text.replace("\t", " "))


def _written_out(character: str) -> str:
    known = {"\n": "\\n", "\r": "\\r"}
    number = ord(character)
    return known.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def say(*lines: str, err: bool = False) -> None:
    """Prints lines, on stdout or stderr; a character that the terminal's encoding lacks is written out too."""
    _write("".join(f"{shown(line)}\n" for line in lines), err=err)


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints a value as JSON on stdout; inside texts, what a terminal would act upon is escaped, which means the same."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    parts = (_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
    _write("\n".join(parts) + "\n", err=False)


def _write(text: str, *, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # closed by whoever started this
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
