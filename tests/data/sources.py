"""Sources of all kinds, written for tests: each picture bears a number, by which it is told from any other."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures.outcome import at_sight
from hdit_cli.data.prepare.pictures.process import process
from hdit_cli.data.prepare.sources.scan import scan

OPTIONS = PrepareOptions(size=(2, 2), format="png")


def picture(number: int) -> bytes:
    """A PNG of 2 x 2 pixels with the number in the first of them."""
    stream = io.BytesIO()
    image = Image.new("RGB", (2, 2), "white")
    image.putpixel((0, 0), (number % 256, number // 256, 7))
    image.save(stream, "PNG")
    return stream.getvalue()


def number_of(png: bytes) -> int:
    red, green, blue = Image.open(io.BytesIO(png)).getpixel((0, 0))
    assert blue == 7
    return red + 256 * green


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def listed(*sources: Path):
    """A listing that was told to its end, and its entries by path."""
    listing = scan(sources)
    entries = list(listing.stream())
    assert [entry.path for entry in entries] == sorted((entry.path for entry in entries), key=str.encode)
    return listing, {entry.path: entry for entry in entries}


def prepared(*sources: Path):
    """(entry, outcome) of all, made without processes."""
    entries = list(scan(sources).stream())
    return [(entry, at_sight(entry) or process(entry, OPTIONS)) for entry in entries]


def pairs(outcomes):
    """(picture's number, class, caption, notes) of the kept ones."""
    return [
        (number_of(o.members[".png"]), e.group, o.members.get(".txt", b"").decode() or None, o.codes)
        for e, o in outcomes
        if o.verdict == "kept"
    ]
