"""The folder of a set of samples: what its `samples.json` names, a new one beside earlier ones, an old set cleared away."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files, runtime

FORMAT = "hdit-samples/1"
RECORD = "samples.json"
GRID, STRIP = "grid.png", "strip.png"  # written beside the pictures, and none of them
_MOST = 256 << 20  # bytes of a record that is read; a million images have some 150 MB


@dataclass(frozen=True)
class Named:
    """The pictures that a record names, as plain file names, and whether all of them were made."""

    pictures: tuple[str, ...]
    finished: bool


def read_record(path: Path) -> dict[str, Any]:
    """A `samples.json` as it stands.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record of samples.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    if path.stat().st_size > _MOST:
        raise ValueError(f"larger than {_MOST >> 20} MiB")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError):
        raise ValueError("not a JSON text") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError("another format")
    return record


def named_in(folder: Path) -> Named | None:
    """What the record in a folder names; None where there is none, or another file of that name.

    Only plain names of pictures count, of the kind that a set has: a record may come from anywhere, and nothing outside its
    folder is read or removed for it.
    """
    try:
        record = read_record(folder / RECORD)
    except (OSError, ValueError):
        return None
    images = record.get("images")
    told = [image.get("file") for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    names = dict.fromkeys(name for name in told if isinstance(name, str) and _is_plain(name))
    return Named(tuple(name for name in names if name not in (GRID, STRIP)), record.get("finished") is not False)


def _is_plain(name: str) -> bool:
    try:
        fits = len(os.fsencode(name)) <= 255  # bytes, as file systems have it
    except UnicodeEncodeError:  # half a character, which no name has
        fits = False
    return fits and name.endswith(".png") and not name.startswith(".") and not set(name) & set("/\\:\0")


def clear(folder: Path) -> None:
    """Removes the earlier set that the folder's record names; the record goes last, so that a broken-off removal goes on."""
    earlier = named_in(folder)
    if earlier is None:
        return
    for name in (*earlier.pictures, GRID, STRIP, RECORD):
        if (folder / name).is_symlink() or (folder / name).is_file():
            files.remove_file(folder / name)


@contextlib.contextmanager
def new_folder(base: Path) -> Iterator[Path]:
    """A new folder called `base`, or `base-2`, `base-3` … where earlier ones are; all processes get the same.

    It goes again where the block fails before anything is in it.
    """
    main = runtime.ranks().is_main
    found: Path | None = None
    if main:
        files.make_folder(base.parent)
        numbered = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
        found = next(path for path in itertools.chain([base], numbered) if files.claim_folder(path))
    folder = runtime.gather(found)[0]
    try:
        yield folder
    except BaseException:
        if main and not any(folder.iterdir()):
            files.remove_folder(folder)
        raise
