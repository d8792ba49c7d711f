"""Where each key of a TOML text stands: `tomllib` gives values without positions.

The text has been parsed already, so this scanner may take its grammar for granted.
"""

import re

KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''(?P<comment>\#[^\n]*)
      | (?P<string>"""(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?\'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
      | (?P<newline>\n)
      | (?P<mark>[\[\]{}=,.])
      | (?P<bare>[^\s\[\]{}=,."'\#]+)''',
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def _unquoted(token: str) -> str:
    """A key as it is stored: quotes gone, escapes of basic strings resolved."""
    if token[0] == "'":
        return token[1:-1]
    if token[0] != '"':
        return token

    def resolve(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if code[0] in "uU" else _ESCAPES.get(code, code)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", resolve, token[1:-1])


class _Scanner:
    """One pass over the tokens. `frames` holds the open arrays and inline tables; no recursion, so no depth limit."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}  # how many tables an array of tables has so far
        self.table: KeyPath = ()  # the table of the last [header]
        self.key: list[str] = []  # the key being read
        self.value_path: KeyPath | None = None  # set while a value is being read
        self.frames: list[tuple[str, KeyPath, int]] = []  # (opening mark, path, next index of an array)
        self.header: str | None = None

    def note(self, path: KeyPath, line: int) -> None:
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def end_header(self, line: int) -> None:
        path: KeyPath = ()
        for part in self.key:
            path = (*path, part)
            if path in self.counts and not (len(path) == len(self.key) and self.header == "[["):
                path = (*path, self.counts[path] - 1)  # a header below an array of tables means its last table
        if self.header == "[[":
            index = self.counts.get(path, 0)
            self.counts[path] = index + 1
            path = (*path, index)
        self.table, self.key, self.header = path, [], None
        self.note(path, line)

    def begin_value(self, line: int) -> None:
        inside = self.frames[-1][1] if self.frames else self.table
        self.value_path = (*inside, *self.key)
        self.key = []
        self.note(self.value_path, line)

    def open(self, mark: str, line: int) -> None:
        path = self.value_path
        if path is None:  # an entry of an array
            path = self.entry(line)
        self.frames.append((mark, path, 0))
        self.value_path = None

    def entry(self, line: int) -> KeyPath:
        """The path of the array entry that starts here."""
        mark, path, index = self.frames[-1]
        self.frames[-1] = (mark, path, index + 1)
        self.note((*path, index), line)
        return (*path, index)

    def close(self) -> None:
        self.frames.pop()
        self.value_path, self.key = None, []

    def in_array(self) -> bool:
        return bool(self.frames) and self.frames[-1][0] == "["

    def mark(self, mark: str, *, doubled: bool, line: int) -> bool:
        """Takes a punctuation mark; True if it and the one after it were taken as one."""
        reading_key = self.value_path is None and not self.in_array()
        if mark == "[" and reading_key and not self.frames:
            self.header = "[[" if doubled else "["
            return doubled
        if mark == "]" and self.header is not None:
            both = self.header == "[["
            self.end_header(line)
            return both
        if mark == "=" and reading_key:
            self.begin_value(line)
        elif mark in "[{":
            self.open(mark, line)
        elif mark in "]}":
            self.close()
        elif mark == ",":
            self.value_path, self.key = None, []
        return False

    def word(self, token: str, line: int) -> None:
        if self.value_path is not None:
            return  # the value itself
        if self.in_array():
            self.value_path = self.entry(line)
        else:
            self.key.append(_unquoted(token))

    def newline(self) -> None:
        if not self.frames:
            self.value_path, self.key = None, []


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line (from 1) on which each key, table and array entry of a valid TOML text first stands."""
    scanner, line, skip = _Scanner(), 1, -1
    for found in _TOKEN.finditer(text):
        token, kind = found[0], found.lastgroup
        if found.start() == skip:
            continue
        if kind == "newline":
            line += 1
            scanner.newline()
        elif kind == "mark":
            after = found.end()
            if scanner.mark(token, doubled=text[after : after + 1] == token, line=line):
                skip = after
        elif kind in ("bare", "string"):
            scanner.word(token, line)
            line += token.count("\n")
    return scanner.lines
