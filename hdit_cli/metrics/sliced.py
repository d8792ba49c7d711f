"""Sliced Wasserstein distance of Laplacian-pyramid patches (Karras et al. 2018, arXiv 1710.10196, section 5).

Each picture is split into frequency bands; random 7x7 patches of each band, normalised per colour channel over the set,
are projected on random directions, where the Wasserstein distance is a difference of sorted values. No weights needed.
As each set is normalised by itself, as published, the distance does not see the overall brightness and contrast of a
set, only structure.

Legend: pictures are N H W C here until patches are cut; patches are N C h w.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from einops import rearrange

from hdit_cli import runtime
from hdit_cli.errors import DataError
from hdit_cli.metrics.metric import Arrays, Better, Bias, Needs

SEED = 0
PATCH = 7
PATCHES = 128  # per picture and level
REPEATS, DIRECTIONS = 4, 128  # 512 random projections
SMALLEST = 16  # side of the last level, the low-pass rest
_PROJECTED = 1 << 25  # values projected at a time: 128 MiB for each set
SCALE = 1e3  # the published tables are in units of 1e-3

_TAPS = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16  # the binomial filter of Burt & Adelson 1983


def smooth(x: np.ndarray, *, gain: float = 1.0) -> np.ndarray:
    """Binomial low-pass filter over height and width, edges mirrored: (N, H, W, C) => the same shape.

    Written as shifted sums: each picture comes out the same to the last bit whatever the batch.
    """
    for axis in (1, 2):
        padding = [(2, 2) if dim == axis else (0, 0) for dim in range(4)]
        padded = np.pad(x, padding, mode="reflect")
        size = x.shape[axis]
        shifted = (padded.take(range(k, k + size), axis=axis) * (tap * gain) for k, tap in enumerate(_TAPS))
        x = sum(shifted, start=np.zeros_like(x))
    return x


def down(x: np.ndarray) -> np.ndarray:
    """Half the size: (N, H, W, C) => (N, ⌈H/2⌉, ⌈W/2⌉, C)."""
    return smooth(x)[:, ::2, ::2]


def up(x: np.ndarray, *, like: np.ndarray) -> np.ndarray:
    """Twice the size, to the shape of `like`."""
    spread = np.zeros_like(like)
    spread[:, ::2, ::2] = x
    return smooth(spread, gain=2.0)  # a quarter of the pixels are set; the gain acts once along each axis


def laplacian_pyramid(x: np.ndarray) -> list[np.ndarray]:
    """Frequency bands of float32 (N, H, W, C), finest first; the last is the low-pass rest at about 16 pixels.

    Adding the bands up again, each enlarged by `up`, gives the picture back.
    """
    bands: list[np.ndarray] = []
    while min(x.shape[1:3]) // 2 >= SMALLEST:
        smaller = down(x)
        bands.append(x - up(smaller, like=x))
        x = smaller
    return [*bands, x]


def patches(band: np.ndarray, index: Sequence[int], *, level: int) -> np.ndarray:
    """Random 7x7 patches, a function of (picture number, level): (N, H, W, C) => float32 (N * 128, C, 7, 7)."""
    height, width = band.shape[1:3]
    place = runtime.uniform(SEED, f"swd-patch-{level}", index, 2 * PATCHES).numpy()  # (N, 256) in (0, 1)
    y = (place[:, :PATCHES] * (height - PATCH + 1)).astype(np.int64)
    x = (place[:, PATCHES:] * (width - PATCH + 1)).astype(np.int64)
    picture = np.arange(len(band))[:, None, None, None]
    rows = y[:, :, None, None] + np.arange(PATCH)[:, None]
    columns = x[:, :, None, None] + np.arange(PATCH)
    cut = band[picture, rows, columns]  # (N, 128, 7, 7, C)
    return rearrange(cut, "n p h w c -> (n p) c h w")


def normalise(x: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance per colour channel over the set: (M, C, 7, 7) => float32 (M, C * 7 * 7)."""
    mean = x.mean((0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = x.std((0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    scaled = (x - mean) / np.where(deviation > 0, deviation, 1)  # a set of one colour stays at zero
    return rearrange(scaled, "m c h w -> m (c h w)")


@lru_cache(maxsize=1)
def _steps(m: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The common steps of two quantile functions of m and n values: which value of each, and the width of each step."""
    edges = np.union1d(np.arange(1, m + 1, dtype=np.int64) * n, np.arange(1, n + 1, dtype=np.int64) * m)
    return (edges - 1) // n, (edges - 1) // m, np.diff(edges, prepend=0) / (m * n)


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Wasserstein-1 distance of samples on lines, one line per row: (K, M) and (K, N), M and N may differ."""
    a, b = np.sort(a, axis=1), np.sort(b, axis=1)
    if a.shape == b.shape:
        return float(np.abs(a - b).mean(dtype=np.float64))
    in_a, in_b, width = _steps(a.shape[1], b.shape[1])
    return float(np.mean([np.abs(x[in_a] - y[in_b]) @ width for x, y in zip(a, b, strict=True)]))


def sliced_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over 512 random directions, in units of 1e-3, of the Wasserstein distance between (M, D) and (N, D)."""
    values: list[float] = []  # of each direction
    at_once = max(1, min(DIRECTIONS, _PROJECTED // max(len(a), len(b))))
    for repeat in range(REPEATS):
        like = torch.empty(0)
        drawn = runtime.normal(SEED, "swd-direction", [repeat], (DIRECTIONS, a.shape[1]), like=like)[0].numpy()
        directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        for start in range(0, DIRECTIONS, at_once):
            some = directions[start : start + at_once]
            values += [wasserstein(some @ a.T, some @ b.T)] * len(some)
    return SCALE * float(np.mean(values))


class SWD:
    """Sliced Wasserstein distance, per level and their average."""

    name: ClassVar[str] = "swd"
    state: ClassVar[str] = "swd"
    needs: ClassVar[Needs] = None
    limit: ClassVar[int | None] = 16384  # as published: 75 kB of patches a picture and level
    fewest: ClassVar[int] = 1
    trusted: ClassVar[int] = 1
    bias: ClassVar[Bias] = None
    better: ClassVar[Better] = "lower"
    alone: ClassVar[bool] = False

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None
        self._index: list[np.ndarray] = []
        self._levels: dict[str, list[np.ndarray]] = {}  # height x width of the level: patches (N, 128, C, 7, 7)

    @property
    def count(self) -> int:
        return sum(len(index) for index in self._index)

    def update(self, index: Sequence[int], x: np.ndarray, *, label: np.ndarray | None = None) -> None:
        """uint8 (N, H, W, 3) pictures, all of one size, at least 7 x 7.

        Raises:
            DataError: a size of its own, or too small.
        """
        size = (x.shape[1], x.shape[2])
        self._size = self._size or size
        if size != self._size:
            raise DataError(
                f"pictures of {size[0]}x{size[1]} and {self._size[0]}x{self._size[1]} in one set",
                hint="the sliced Wasserstein distance needs one size: `hdit prepare` the folder first",
            )
        if min(size) < PATCH:
            raise DataError(
                f"pictures of {size[0]}x{size[1]} are smaller than a {PATCH}x{PATCH} patch",
                hint="use --metrics fid,kid",
            )
        self._index.append(np.asarray(index, dtype=np.int64))
        for level, band in enumerate(laplacian_pyramid(x.astype(np.float32))):
            cut = rearrange(patches(band, index, level=level), "(n p) c h w -> n p c h w", p=PATCHES)
            self._levels.setdefault(f"{band.shape[1]}x{band.shape[2]}", []).append(cut)

    def arrays(self) -> Arrays:
        if not self._index:
            return {"index": np.zeros(0, dtype=np.int64), "size": np.zeros(2, dtype=np.int64)}
        levels = {name: np.concatenate(parts) for name, parts in self._levels.items()}
        return {"index": np.concatenate(self._index), "size": np.array(self._size, dtype=np.int64), **levels}

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
            for name in part.keys() - {"index", "size"}:
                whole._levels.setdefault(name, []).append(part[name])
        return whole

    def _descriptors(self, level: str) -> np.ndarray:  # float32 (N * 128, D), by picture number
        order = np.argsort(np.concatenate(self._index), kind="stable")
        cut = np.concatenate(self._levels[level])[order]
        return normalise(rearrange(cut, "n p c h w -> (n p) c h w"))

    def score(self, reference: Self) -> dict[str, Any]:
        """Raises:
        DataError: the two sets differ in picture size.
        """
        if self._size != reference._size:
            raise DataError(
                f"pictures are {self._size}, those of the reference {reference._size} (height, width)",
                hint="prepare the reference at the size of the pictures",
            )
        levels = sorted(self._levels, key=lambda name: -int(name.split("x")[0]))
        scores = {name: sliced_wasserstein(self._descriptors(name), reference._descriptors(name)) for name in levels}
        return {"value": float(np.mean(list(scores.values()))), "levels": scores}
