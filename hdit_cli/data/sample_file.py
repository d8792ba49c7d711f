"""Samples in one `.npz` file, as guided-diffusion and DiT write them, read like a data set: by number, at bounded memory.

`arr_0` holds the pictures, uint8 (N, H, W, 3); `arr_1`, where there is one, their classes by number, (N,). The array is read
in pieces out of the zip archive, one picture at a time, and never as a whole: 50,000 pictures of 512 pixels have 39 GB.
No pickle is read.
"""

import math
import zipfile
import zlib
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from hdit_cli import files
from hdit_cli.errors import DataError

_PIECE = 1 << 20  # bytes passed over at a time
_MOST_PIXELS = 150_000_000  # of one picture, as `hdit prepare` takes them
_MOST_ARRAYS = 64
_MOST_PACKED = 1100  # bytes that deflate makes of one, at most
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)
_HINT = "an .npz whose arr_0 is uint8 (N, H, W, 3), as guided-diffusion and DiT write it"


def arrays_in(path: Path) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of each array of an `.npz` file; none is read.

    Raises:
        DataError: no such file, or not whole.
    """
    found = {}
    with _told(path), zipfile.ZipFile(path) as archive:
        for name in [name for name in archive.namelist() if name.endswith(".npy")][:_MOST_ARRAYS]:
            with archive.open(name) as stream:
                shape, _, kind = _header(stream)
                found[name.removesuffix(".npy")] = kind, shape
    return found


def holds_samples(path: Path) -> bool:
    """Whether an `.npz` file holds an array of pictures, of whatever type."""
    return "arr_0" in arrays_in(path) or _only_pictures(arrays_in(path)) is not None


def _only_pictures(arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str | None:
    """The name of the one array of pictures, where it is not called arr_0."""
    pictures = [name for name, (kind, shape) in arrays.items() if kind == np.uint8 and len(shape) == 4]
    return pictures[0] if len(pictures) == 1 else None


@contextmanager
def _told(path: Path) -> Any:
    """What a damaged file makes the readers raise becomes a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"no file {path}", hint="check the path") from None
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read: {error}", hint=f"it may be cut short; {_HINT}") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type, from the head of an array; the stream then stands at its first number."""
    version = np.lib.format.read_magic(stream)  # pyright: ignore[reportArgumentType]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)  # pyright: ignore[reportArgumentType]


class SampleFileReader:
    """The pictures of an `.npz` file, in their order.

    Args:
        path: of the file.

    Raises:
        DataError: no such file, damaged, or no array of pictures in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrays = arrays_in(path)
        self._name = "arr_0" if "arr_0" in arrays else _only_pictures(arrays)
        if self._name is None:
            moments = {"mu", "sigma"} <= arrays.keys()
            what = "moments (mu, sigma), no pictures" if moments else f"no arr_0, only {', '.join(arrays) or 'nothing'}"
            hint = f"--reference {path} compares with them" if moments else _HINT
            raise DataError(f"{path} holds {what}", hint=hint)
        kind, shape = arrays[self._name]
        problem, hint = _problem(kind, shape)
        if problem:
            told = f"{kind} {tuple(shape)}"
            raise DataError(
                f"{path}: {self._name} is {told}, and pictures are uint8 (N, H, W, 3): {problem}", hint=hint
            )
        self._count, self._shape = shape[0], shape[1:]
        self._bytes = math.prod(self._shape)
        self._archive: zipfile.ZipFile | None = None
        self._stream: IO[bytes] | None = None
        self._next = 0  # number of the picture that the stream stands before
        self.has_labels = self._labels_fit(arrays)
        self.classes: list[str] = []
        with _told(path), zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{self._name}.npy").file_size
            if size < self._count * self._bytes or size > _MOST_PACKED * path.stat().st_size:
                raise ValueError(f"{self._name} is shorter than its {self._count:,} pictures")
        self._open()

    def _labels_fit(self, arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bool:
        kind, shape = arrays.get("arr_1", (np.dtype(float), ()))
        return kind.kind in "iu" and shape == (self._count,)

    def _open(self) -> None:
        """Puts the stream before the first picture."""
        self.close()
        with _told(self.path):
            self._archive = zipfile.ZipFile(self.path)
            self._stream = self._archive.open(f"{self._name}.npy")
            by_columns = _header(self._stream)[1]
            if by_columns:
                raise ValueError("its array is in Fortran order; numpy.ascontiguousarray turns it round")
        self._next = 0

    def close(self) -> None:
        """Lets go of the file."""
        for each in (self._stream, self._archive):
            if each is not None:
                each.close()

    def __len__(self) -> int:
        return self._count

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self._shape[0], self._shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return files.sha256(self.path)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,): the classes of the pictures, -1 for all where the file says nothing."""
        if not self.has_labels:
            return np.full(self._count, -1, np.int64)
        with _told(self.path), zipfile.ZipFile(self.path) as archive, archive.open("arr_1.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False).astype(np.int64)  # pyright: ignore[reportArgumentType]

    def picture(self, index: int) -> np.ndarray:
        """Picture number `index`; fast in ascending order.

        Returns:
            uint8 (H, W, 3).

        Raises:
            DataError: the file is damaged.
        """
        if index < self._next:
            self._open()
        with _told(self.path):
            left = (index - self._next) * self._bytes
            while left:
                left -= len(self._read(min(left, _PIECE)))
            data = self._read(self._bytes)
        self._next = index + 1
        picture = np.frombuffer(data, np.uint8).reshape(self._shape)
        return picture.repeat(3, axis=2) if self._shape[2] == 1 else picture

    def _read(self, size: int) -> bytes:
        assert self._stream is not None
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError("its array ends too early")
        return data


def _problem(kind: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, str]:
    """What keeps an array from being pictures, and what to do; ("", "") for nothing."""
    if kind != np.uint8:
        turn = ".transpose(0, 2, 3, 1)" if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3) else ""
        return (
            "these are other numbers",
            f"of x in [-1, 1]: ((x + 1) * 127.5).round().clip(0, 255).astype('uint8'){turn}",
        )
    if len(shape) != 4 or shape[3] not in (1, 3):
        channels_first = len(shape) == 4 and shape[1] in (1, 3)
        return "the axes are others", "x.transpose(0, 2, 3, 1)" if channels_first else _HINT
    if min(shape) < 1:  # a header may say -5
        return "there is none", _HINT
    if shape[1] * shape[2] > _MOST_PIXELS:
        return "they are too large", _HINT
    return "", ""
