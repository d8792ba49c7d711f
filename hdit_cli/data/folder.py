"""A plain folder of pictures, read like a data set: by number, at the size each one has."""

import hashlib
import os
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from hdit_cli import files
from hdit_cli.data.prepare.facts.paths import is_side_name, utf8
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures.fit import fit
from hdit_cli.data.prepare.pictures.pictures import read_picture, sniff
from hdit_cli.data.prepare.sources.passed_over import is_tool_file, is_tool_folder
from hdit_cli.data.prepare.sources.refused import Refused
from hdit_cli.errors import DataError

READING = 2  # counts up where the same file comes to other pixels than before: 2 since colour profiles are followed
_ORIENTATION = 0x0112  # EXIF tag
_WHOLE = PrepareOptions(size=(16_383, 16_383))  # larger than any picture: nothing is decoded at less than its own size


class FolderReader:
    """The pictures below a folder, in the order of their paths.

    Side files, hidden files, and what systems and tools leave in folders (`hdit prepare` has the same rule) are passed over;
    `passed_over` names all of it but the side files.

    Args:
        folder: any folder; what is not passed over must be a picture.
        skip: names of files directly in the folder that are no pictures of the set, such as an overview.

    Raises:
        DataError: no such folder, or nothing in it.
    """

    def __init__(self, folder: Path, *, skip: frozenset[str] = frozenset()) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"no folder {folder}", hint="check the path")
        self.passed_over: list[str] = []  # relative paths of files and of whole folders
        self.paths = sorted(self._listed(skip))
        if not self.paths:
            raise DataError(f"{folder} holds no pictures", hint="check the path")

    def _listed(self, skip: frozenset[str]) -> list[str]:
        found = []
        for parent, folders, names in os.walk(self.folder):
            below = os.path.relpath(parent, self.folder)
            over = [name for name in folders if is_tool_folder(name)]
            folders[:] = sorted(set(folders) - set(over))
            over += [name for name in names if name.startswith(".") or is_tool_file(name)]
            self.passed_over += [utf8(os.path.normpath(os.path.join(below, name))) for name in over]
            wanted = [name for name in names if name not in over and not is_side_name(name)]
            found += [
                os.path.normpath(os.path.join(below, name)) for name in wanted if below != "." or name not in skip
            ]
        return found

    def _regular(self, path: str) -> Path:
        """The file, which is no pipe that would be waited for."""
        found = self.folder / path
        if not found.is_file():
            raise DataError(f"{found} is not a regular file", hint="take it out of the folder")
        return found

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first picture; the others may differ."""
        height, width = self.picture(0).shape[:2]
        return height, width

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Every (H, W) that a picture has, smallest area first, from the heads of the files; what cannot be read has none."""
        found = {size for path in self.paths if (size := _size_of(self.folder / path)) is not None}
        return sorted(found, key=lambda size: (size[0] * size[1], size))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the files."""
        told = hashlib.sha256()
        for path in self.paths:
            told.update(f"{path}\0{files.sha256(self._regular(path))}\n".encode("utf-8", "surrogateescape"))
        return told.hexdigest()

    def picture(self, index: int) -> np.ndarray:
        """Picture number `index`, decoded and turned by the rules of `hdit prepare`, not resized.

        Returns:
            uint8 (H, W, 3).

        Raises:
            DataError: it cannot be read, or is no picture.
        """
        path = self._regular(self.paths[index])
        try:
            with open(path, "rb") as stream:
                picture = read_picture(stream, _WHOLE)
        except Refused as refused:
            raise DataError(
                f"{path}: {refused.code} {refused.detail}".rstrip(), hint="take it out of the folder"
            ) from None
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", hint="check the file's permissions") from error
        width, height = picture.size
        size = (width, height) if picture.orientation >= 5 else (height, width)  # quarter turns swap the sides
        return np.asarray(fit(picture, PrepareOptions(size=size, fit="squash"))[0])


def _size_of(path: Path) -> tuple[int, int] | None:
    """(H, W) of a picture as it is turned, from the head of its file; None where that cannot be told."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = sniff(stream)
            if kind == "PFM":
                (width, height), turn = read_picture(stream, _WHOLE).size, 1
            else:
                with Image.open(stream, formats=(kind,)) as image:
                    (width, height), turn = image.size, image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a decoder makes of a foreign file: reading the picture tells it
        return None
    return (width, height) if turn in (5, 6, 7, 8) else (height, width)
