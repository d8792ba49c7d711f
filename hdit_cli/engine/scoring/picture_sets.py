"""Sets of pictures to be scored: a data set, a folder, or what a model generates. Read by number, in batches."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from hdit_cli import files, runtime
from hdit_cli.data.folder import READING, FolderReader
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.sample_file import SampleFileReader, arrays_in, holds_samples
from hdit_cli.data.shards import MANIFEST
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.file_kind import SAMPLES, looked_at
from hdit_cli.engine.sampling.generate import stream
from hdit_cli.engine.sampling.sample_folder import GRID, RECORD, STRIP, named_in
from hdit_cli.engine.sampling.watched import Stop, Watched
from hdit_cli.errors import DataError
from hdit_cli.metrics.frechet import FID
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.moments import Gaussian
from hdit_cli.metrics.statistics_file import SPATIAL, read_statistics
from hdit_cli.tasks.sampling import Sampling

Batch = tuple[list[int], list[np.ndarray]]  # numbers, and uint8 (H, W, 3) for each; sizes may differ in a folder
_READ = 64  # pictures read at a time
_SHOWN = 3  # names told of files that were passed over


class PictureSet(Protocol):
    """Pictures number 0 ... count - 1."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def count(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first picture."""
        ...

    @property
    def sizes(self) -> int:
        """How many sizes its pictures are known to have: more than one in a data set with buckets."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (count,) classes, -1 for none; None where pictures have no classes."""
        ...

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        ...

    def batches(self, index: Sequence[int]) -> Iterator[Batch]:
        """The pictures of these numbers."""
        ...


class Stored:
    """The pictures of a data set or a plain folder, or a random part of them.

    Args:
        reader: where the pictures are.
        name: what to call them.
        n: how many; None is all. Which ones depends on their number alone.
        notes: what is odd about them.

    Raises:
        DataError: there are fewer than n.
    """

    def __init__(
        self,
        reader: ShardReader | FolderReader | SampleFileReader,
        *,
        name: str,
        n: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if isinstance(reader, ShardReader):
            reader.require_pictures("a score")
        self.reader = reader
        self.name = name
        self.moments: StatisticsFile | None = None  # of a larger set, where the file holds them beside pictures
        self._odd = list(notes)
        self.count = len(reader) if n is None else n
        if self.count > len(reader):
            raise DataError(f"{name} holds {len(reader):,} pictures, not {n:,}", hint=f"-n {len(reader)} or less")
        self._chosen = some_of(len(reader), self.count)

    @property
    def size(self) -> tuple[int, int]:
        return self.reader.image_size

    @property
    def sizes(self) -> int:
        return max(1, len(self.every_size))

    @property
    def every_size(self) -> list[tuple[int, int]]:
        """Each (H, W) of the data set or folder, by area."""
        if isinstance(self.reader, SampleFileReader):
            return [self.reader.image_size]
        return sorted(self.reader.sizes, key=lambda size: (size[0] * size[1], size))

    @property
    def cut(self) -> tuple[int, int] | None:
        """(H, W) that larger stored pictures are cut to, at their centres."""
        return self.reader.cut if isinstance(self.reader, ShardReader) else None

    @property
    def reading(self) -> list[int]:
        """What the pixels depend on besides the files and `cut`; nothing for a data set."""
        return [] if isinstance(self.reader, ShardReader) else [READING]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the contents of the whole data set or folder."""
        return self.reader.fingerprint

    @property
    def notes(self) -> list[str]:
        """What to know of how it was read."""
        over = self.reader.passed_over if isinstance(self.reader, FolderReader) else []
        if not over:
            return self._odd
        some = ", ".join(sorted(over)[:_SHOWN]) + (", ..." if len(over) > _SHOWN else "")
        what = "file or folder" if len(over) == 1 else "files and folders"
        return [*self._odd, f"{self.name}: {len(over)} hidden or system {what} passed over ({some})"]

    @property
    def labels(self) -> np.ndarray | None:
        if isinstance(self.reader, FolderReader) or (isinstance(self.reader, SampleFileReader) and not self.classes):
            return None
        return self.reader.labels[self._chosen].astype(np.int64)

    @property
    def classes(self) -> list[str]:
        return [] if isinstance(self.reader, FolderReader) else self.reader.classes

    def name_classes(self, names: Sequence[str]) -> list[str]:
        """Gives the numbers in a file of samples the names of these classes; none: they are not used.

        Returns:
            what to know about the labels.

        Raises:
            DataError: there are other numbers.
        """
        if not isinstance(self.reader, SampleFileReader) or not self.reader.has_labels:
            return []
        if not names:
            return [f"{self.name}: its labels (arr_1) are not used; --metrics fid-per-class would"]
        numbers = self.reader.labels
        if numbers.min() < 0 or numbers.max() >= len(names):
            raise DataError(
                f"{self.name}: its labels (arr_1) are {numbers.min()} ... {numbers.max()}, and the reference has "
                f"{len(names)} classes",
                hint="a reference with the classes that the samples were made of, or leave fid-per-class out",
            )
        self.reader.classes = list(names)
        return [f"{self.name}: its labels (arr_1) are the classes of the reference, by their number"]

    def batches(self, index: Sequence[int]) -> Iterator[Batch]:
        for start in range(0, len(index), _READ):
            numbers = [int(i) for i in index[start : start + _READ]]
            yield numbers, [self.reader.picture(int(self._chosen[i])) for i in numbers]


@dataclass(frozen=True)
class StatisticsFile:
    """The moments of a set that is not here.

    Attributes:
        gaussian: of pooled features.
        fingerprint: SHA-256 of the file.
        spatial: of spatial features, for sFID; None where the file has none.
    """

    name: str
    gaussian: Gaussian
    fingerprint: str
    spatial: Gaussian | None = None

    def of(self, kind: type[Metric]) -> Metric | None:
        """The set as a metric of moments sees it; None where the file lacks these, or the metric takes more than moments."""
        known = self.spatial if kind.needs == "spatial" else self.gaussian
        return kind.of(known) if issubclass(kind, FID) and known is not None else None


@dataclass
class Generated:
    """The first `count` pictures of a model.

    Attributes:
        wanted: labels, int64 (count,), or None for an unconditional model.
        keep: called with each batch, to store it.
    """

    model: Model
    count: int
    wanted: Tensor | None
    sampling: Sampling
    name: str = "generated"
    keep: Callable[[list[int], list[np.ndarray]], None] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.sampling.size or self.model.image_size

    @property
    def sizes(self) -> int:
        return 1

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.wanted is None else self.wanted.numpy()

    @property
    def classes(self) -> list[str]:
        return self.model.classes

    def batches(
        self,
        index: Sequence[int],
        *,
        stop: Stop | None = None,
        tell: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Batch]:
        """The pictures of these numbers.

        Args:
            stop: asked between two steps of the sampler.
            tell: called then with how many pictures the work so far would have made.

        Raises:
            BrokenOff: asked to stop.
        """
        steps = self.model.task.steps(self.sampling)
        size = self.sampling.batch_size
        watched = Watched(images=len(index), batch_size=size, steps=steps, stop=stop, tell=tell)
        for numbers, images in stream(
            self.model, indices=index, labels=self.wanted, sampling=self.sampling, on_step=watched
        ):
            pictures = list(images.numpy())
            if self.keep is not None:
                self.keep(numbers, pictures)
            yield numbers, [picture.repeat(3, 2) if picture.shape[2] == 1 else picture for picture in pictures]


def some_of(total: int, n: int) -> np.ndarray:
    """n of the numbers 0 ... total - 1 at random, ascending, always the same ones: int64 (n,)."""
    if n == total:
        return np.arange(total)
    words = runtime.bits(0, "some-of", np.arange(total))[:, 0]
    return np.sort(np.argsort(words, kind="stable")[:n])


def check_samples(path: Path) -> None:
    """Raises DataError where a file is of another kind than an `.npz`."""
    kind = looked_at(path)
    if kind is not SAMPLES:
        told = "no file of samples" if kind is None else kind.name
        raise DataError(
            f"{path} is {told}", hint="pictures: a data set, a folder, or an .npz with arr_0; moments: an .npz"
        )


def is_data_set(path: Path) -> bool:
    return os.path.isfile(path / MANIFEST)  # also of a name that is too long for a file


def open_reference(path: Path, *, moments: bool) -> Stored | StatisticsFile:
    """As `open_stored`, or a file of moments.

    Args:
        moments: moments are all that is asked of a file that holds pictures too, as guided-diffusion's references do; else
            they come with the pictures.

    Raises:
        DataError: missing, empty or damaged.
    """
    if path.suffix not in (".npz", ".pkl") and looked_at(path) is not SAMPLES:
        return open_stored(path)
    if path.suffix != ".pkl" and path.is_file():
        check_samples(path)
        has_moments = {"mu", "sigma"} <= arrays_in(path).keys()
        if holds_samples(path) and not (moments and has_moments):
            stored = open_stored(path)
            stored.moments = _open_moments(path) if has_moments else None
            return stored
    return _open_moments(path)


def _open_moments(path: Path) -> StatisticsFile:
    pooled = read_statistics(path)
    spatial = read_statistics(path, SPATIAL) if set(SPATIAL) <= arrays_in(path).keys() else None
    return StatisticsFile(str(path), pooled, files.sha256(path), spatial)


def open_stored(path: Path, *, n: int | None = None, cut: tuple[int, int] | None = None) -> Stored:
    """A data set made by `hdit prepare`, a plain folder of pictures, or an `.npz` file of samples.

    Args:
        cut: (H, W) that larger pictures of a data set are cut to, at their centres.

    Raises:
        DataError: missing, empty, damaged, or fewer than n pictures.
        UsageError: they cannot be cut to that.
    """
    if path.is_file():
        check_samples(path)
        return Stored(SampleFileReader(path), name=str(path), n=n)
    if is_data_set(path):
        reader = ShardReader(path)
        return Stored(reader if cut is None else reader.centred(cut), name=str(path), n=n)
    if (path / RECORD).exists():
        return _open_samples(path, n=n)
    return Stored(FolderReader(path), name=str(path), n=n)


def _open_samples(path: Path, *, n: int | None) -> Stored:
    """What `hdit sample` made: the pictures that its record names, and no others that lie there."""
    named = named_in(path)
    overviews = frozenset({GRID, STRIP})
    if named is None:
        note = f"{path / RECORD} is no record of samples: all pictures count but {GRID} and {STRIP}"
        return Stored(FolderReader(path, skip=overviews), name=str(path), n=n, notes=[note])
    reader = FolderReader(path, skip=overviews)
    there, wanted = set(reader.paths), set(named.pictures)
    if not there & wanted:
        raise DataError(
            f"{path} holds none of the {len(wanted):,} pictures that its {RECORD} names",
            hint=f"move {RECORD} away, and every picture there counts",
        )
    notes = []
    if there - wanted:
        notes.append(
            f"{len(there - wanted):,} pictures in {path} are none of those that its {RECORD} names: not counted"
        )
    if wanted - there:
        why = "" if named.finished else ": the sampling was broken off"
        notes.append(
            f"{len(wanted - there):,} of the {len(wanted):,} pictures that {path / RECORD} names are not there{why}"
        )
    reader.paths = [name for name in reader.paths if name in wanted]
    return Stored(reader, name=str(path), n=n, notes=notes)
