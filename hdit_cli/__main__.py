"""`python -m hdit_cli` is the command `hdit`."""

import gc
import io
import os
import sys
from typing import TextIO

_OBJECTS = 100_000  # between two looks for garbage: of what `prepare` imports and holds hardly any is


class _Stderr(io.FileIO):
    """A stderr that may go away, with its terminal: that must not cost a run that is saving."""

    def write(self, data: "bytes | bytearray | memoryview") -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def mend_streams() -> None:
    """Gives a command that was started with a closed stdin, stdout or stderr (`>&-`) the null device in its place.

    Else the next file that is opened gets its number, and what is printed, by a library too, goes into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            setattr(sys, name, _text(io.FileIO(number, "r" if number == 0 else "w", closefd=False)))
    sys.stderr = _text(_Stderr(2, "w", closefd=False))


def _text(raw: io.FileIO) -> TextIO:
    buffer = io.BufferedWriter(raw) if raw.writable() else io.BufferedReader(raw)
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=raw.fileno() == 2)


def main() -> None:
    """Runs the command. Worker processes import this module too (it is their main module), and no command with it."""
    mend_streams()
    if sys.argv[1:2] == ["prepare"]:  # its processes start while the command line is read
        from hdit_cli.data.prepare.making.start import start_early

        start_early()
        gc.set_threshold(_OBJECTS)
    from hdit_cli.cli import main as run

    try:
        run()
    finally:
        gc.freeze()  # else Python looks at every object once more before it ends, which takes a tenth of a second


if __name__ == "__main__":
    main()
