"""The patch grid: the seams that a model which works on patches may leave at every multiple of the patch size.

A seam makes neighbouring pixels differ more (or less) at one place in every patch, whatever the picture shows there: the
mean absolute difference between neighbours, as a function of the column (or row), has a part of the period of the patch.
A fixed pattern on every patch gives the mean signed difference such a part. Either shows as lines in the spectrum, at the
patch frequency and its harmonics. The energy of the lines over that of the frequencies around them, averaged over all of
them, is about 1 where there is no grid. The metric is this ratio of the samples over that of the data: the data may have
a grid of its own (JPEG has one of 8 pixels), and its spectrum may fall near 1/2, which is the line of patches of 2.
A chessboard of single pixels has none of these parts and is not seen.

With white variance v per column of a profile of W columns, Hann window w, and a periodic part whose k-th Fourier
coefficient is c_k, a line has the expected ratio 1 + |c_k|² (Σ w)² / (v Σ w²) = 1 + (2/3) W |c_k|² / v.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from hdit_cli.errors import DataError, UsageError
from hdit_cli.metrics.metric import Arrays, Better, Bias, Needs

AROUND = (2, 3, 4)  # frequencies on each side that are compared with a line; the window spreads a line to the next one
FEWEST_PATCHES = 4  # along a side: with fewer, what is around one line is the next line


def profiles(x: np.ndarray, *, axis: int) -> np.ndarray:
    """How much neighbours differ along an axis, absolute and signed, relative to the picture: uint8 (N, H, W, C) =>
    float64 (N, 2, L).

    Entry p stands for the step from p - 1 to p, so that a seam before a patch has the place of its first pixel; entry 0,
    which has none, is 0. L is H for axis 1, W for axis 2.
    """
    steps = np.diff(x.astype(np.float32), axis=axis)
    both = np.stack([part.mean((3 - axis, 3), dtype=np.float64) for part in (np.abs(steps), steps)], 1)  # (N, 2, L - 1)
    scale = both[:, :1].mean(2, keepdims=True)
    centred = both - both.mean(2, keepdims=True)
    relative = np.divide(centred, scale, out=np.zeros_like(both), where=scale > 0)  # a flat picture has no grid
    return np.pad(relative, [(0, 0), (0, 0), (1, 0)])


def spectra(profile: np.ndarray) -> np.ndarray:
    """Power at the frequencies 0, 1/L, ..., 1/2 under a Hann window: (..., L) => float64 (..., L // 2 + 1)."""
    length = profile.shape[-1]
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    return np.abs(np.fft.rfft(profile * window, axis=-1)) ** 2


def ratio(power: np.ndarray, *, length: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Energy of the patch frequency and its harmonics over that of the frequencies around, and what each picture adds.

    What is around a line is the geometric mean over its neighbours of their mean power over the set: a spectrum that
    falls as a power of the frequency, as that of photographs, gives 1.

    Args:
        power: (N, L // 2 + 1), of profiles of `length` entries, a multiple of `patch`.

    Returns:
        the ratio of each line (K,), K = patch // 2, and each picture's influence on their mean (N,), which sums to 0.
    """
    spacing = length // patch
    reach = [offset for offset in AROUND if 2 * offset <= spacing]
    mean = power.mean(0)
    mean = np.maximum(mean, mean.max() * 1e-15)  # an exact grid has nothing around its lines
    ratios, influence = [], np.zeros(len(power))
    for place in np.arange(1, patch // 2 + 1) * spacing:
        near = [p for d in reach for p in (place - d, place + d) if 1 < p < len(mean)]
        around = np.exp(np.log(mean[near]).mean())
        ratios.append(mean[place] / around)
        influence += power[:, place] / around - ratios[-1] * (power[:, near] / mean[near]).mean(1)
    return np.array(ratios), influence / len(ratios)


class PatchGrid:
    """Energy at the patch frequency of pictures against data: 1 = no more grid than the data, larger = a grid.

    `PatchGrid.of((4, 4))` is the metric for one patch size.
    """

    name: ClassVar[str] = "patch-grid"
    state: ClassVar[str] = "patch-grid"
    needs: ClassVar[Needs] = None
    limit: ClassVar[int | None] = 10_000
    fewest: ClassVar[int] = 2
    trusted: ClassVar[int] = 2
    bias: ClassVar[Bias] = None
    better: ClassVar[Better] = "lower"
    alone: ClassVar[bool] = False
    patch: ClassVar[tuple[int, int]] = (0, 0)  # (h, w) in pixels

    def __init__(self) -> None:
        self._index: list[np.ndarray] = []
        self._power: list[list[np.ndarray]] = [[], []]  # down the rows and across the columns, (N, 2, L // 2 + 1)
        self._size: tuple[int, int] | None = None

    @classmethod
    def of(cls, patch: tuple[int, int]) -> type["PatchGrid"]:
        """The metric for patches of (h, w) pixels.

        Raises:
            UsageError: a patch of one pixel.
        """
        if max(patch) < 2:
            raise UsageError("a patch of one pixel leaves no grid", hint="leave patch-grid out of --metrics")
        return type(cls.__name__, (cls,), {"patch": patch})

    @property
    def count(self) -> int:
        return sum(len(index) for index in self._index)

    def update(self, index: Sequence[int], x: np.ndarray, *, label: np.ndarray | None = None) -> None:
        """uint8 (N, H, W, 3) pictures, all of one size: a multiple of the patch, at least four patches on a side.

        Raises:
            DataError: another size.
        """
        size = (x.shape[1], x.shape[2])
        self._size = self._size or size
        if size != self._size:
            raise DataError(f"pictures of {size} and {self._size} pixels in one set", hint="`hdit prepare` the folder")
        for side, patch in zip(size, self.patch, strict=True):
            if patch > 1 and (side % patch or side // patch < FEWEST_PATCHES):
                raise DataError(
                    f"pictures of {size[0]}x{size[1]} are not whole patches of {self.patch[0]}x{self.patch[1]}, "
                    f"at least {FEWEST_PATCHES} on a side",
                    hint="leave patch-grid out of --metrics, or give the patch size of the model with --patch",
                )
        self._index.append(np.asarray(index, dtype=np.int64))
        for axis in (1, 2):
            self._power[axis - 1].append(spectra(profiles(x, axis=axis)))

    def arrays(self) -> Arrays:
        if not self._index:
            return {"index": np.zeros(0, dtype=np.int64)}
        rows, columns = (np.concatenate(parts) for parts in self._power)
        return {
            "index": np.concatenate(self._index),
            "size": np.array(self._size, dtype=np.int64),
            "rows": rows,
            "columns": columns,
        }

    @classmethod
    def merged(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        whole = cls()
        for part in parts:
            if not len(part["index"]):
                continue
            size = (int(part["size"][0]), int(part["size"][1]))
            if whole._size not in (None, size):
                raise DataError("pictures of several sizes in one set", hint="`hdit prepare` the folder first")
            whole._size = size
            whole._index.append(part["index"])
            whole._power[0].append(part["rows"])
            whole._power[1].append(part["columns"])
        return whole

    def energy(self) -> tuple[float, float]:
        """The ratio of this set alone, over all lines of both directions, and its standard error over the pictures."""
        assert self._size is not None
        order = np.argsort(np.concatenate(self._index), kind="stable")
        found = [
            ratio(power[order], length=side, patch=patch)
            for parts, side, patch in zip(self._power, self._size, self.patch, strict=True)
            for power in np.concatenate(parts).swapaxes(0, 1)
            if patch > 1 and power.any()
        ]
        if not found:
            return 1.0, 0.0  # flat pictures
        weights = np.array([len(ratios) for ratios, _ in found], dtype=np.float64)
        weights /= weights.sum()
        influence = sum(weight * part for weight, (_, part) in zip(weights, found, strict=True))
        error = float(np.sqrt(np.square(influence).sum()) / self.count)
        return float(np.concatenate([ratios for ratios, _ in found]).mean()), error

    def score(self, reference: Self) -> dict[str, Any]:
        """Raises:
        DataError: the two sets differ in picture size.
        """
        if self._size != reference._size:
            raise DataError(
                f"pictures are {self._size}, those of the reference {reference._size} (height, width)",
                hint="prepare the reference at the size of the pictures",
            )
        (ours, our_error), (theirs, their_error) = self.energy(), reference.energy()
        value = ours / theirs
        return {
            "value": value,
            "standard_deviation": value * float(np.hypot(our_error / ours, their_error / theirs)),
            "levels": {"pictures": ours, "reference": theirs},
            "patch_height": self.patch[0],
            "patch_width": self.patch[1],
        }
