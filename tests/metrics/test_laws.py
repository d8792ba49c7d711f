"""One law for every metric: what a score says hangs on which pictures went in, by number, and on nothing else.

Not on their order, their batches, or the number of processes: 1e-9 relative in every number that a score tells, and exactly
n counted. What is drawn (the subsets of KID, the patches of SWD, the parts of IS) is drawn by the numbers of the pictures.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from hdit_cli import catalog
from hdit_cli.metrics import kernel
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.patch_grid import PatchGrid

ALL = [
    PatchGrid.of((2, 4)) if name == "patch-grid" else catalog.get("metric", name) for name in catalog.names("metric")
]
CLASSES = 3


@dataclass(frozen=True)
class Way:
    """How the same pictures come in: dealt out to processes, in batches, in order or not."""

    processes: int
    batch: int
    shuffled: bool = True


PLAIN = Way(1, 10_000, shuffled=False)
WAYS = [Way(1, 1), Way(1, 7, shuffled=False), Way(2, 16), Way(3, 5)]


def collected(kind: type[Metric], x: np.ndarray, way: Way, *, seed: int = 0) -> Metric:
    """The metric of a set, as the processes make it: each its share, in batches, then all states merged."""
    numbers = np.arange(len(x))
    labels = numbers % CLASSES
    parts = []
    for rank in range(way.processes):
        share = numbers[rank :: way.processes]
        if way.shuffled:
            share = np.random.default_rng([seed, rank]).permutation(share)
        part = kind()
        for start in range(0, len(share), way.batch):
            taken = share[start : start + way.batch]
            part.update(taken.tolist(), x[taken], label=labels[taken])
        parts.append(part.arrays())
    return kind.merged(parts)


def told(kind: type[Metric], sets: list[np.ndarray], way: Way) -> dict:
    """All that a score says; held-out pictures beside the memorisation check."""
    ours, theirs, held_out = (collected(kind, x, way, seed=i) for i, x in enumerate(sets))
    assert [ours.count, theirs.count, held_out.count] == [len(x) for x in sets]
    beside = {"held_out": held_out} if kind is Memorisation else {}
    return ours.score(theirs, **beside)


def same(found, expected, *, where: str = "") -> None:
    """Every number at any depth, to 1e-9 relative; all else equal."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for name in expected:
            same(found[name], expected[name], where=f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, where=f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-300), where
    else:
        assert found == expected, where


def pictures(rng: np.random.Generator, n: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2) // 2 + rng.integers(0, 128, (n, 32, 32, 3), dtype=np.uint8)


def features(rng: np.random.Generator, n: int, *, d: int, kind: str) -> np.ndarray:
    """float32 (n, d): `wide`, spread over four orders; `relu`, none below zero and some always zero, as a net gives them;
    `far`, the mean a thousand times the deviation; `twins`, every second row a copy of the one before."""
    x = rng.normal(size=(n, d)) * np.geomspace(1, 1e-2, d)
    x = {"wide": x, "relu": np.maximum(x + 0.1, 0), "far": x + 1000, "twins": x}[kind]
    if kind == "relu":
        x[:, : d // 4] = 0
    if kind == "twins":
        x[1::2] = x[: len(x) - len(x) % 2 : 2]
    return x.astype(np.float32)


@pytest.mark.parametrize("shape", [(70, 61, 12), (40, 52, 64)], ids=["n>d", "n<d"])
@pytest.mark.parametrize("values", ["wide", "relu", "far", "twins"])
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.needs], ids=lambda kind: kind.name)
def test_order_batches_and_processes_change_no_score_of_features(kind, values, shape, monkeypatch):
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 30)  # KID of subsets, not of the whole
    rng = np.random.default_rng(0)
    n, m, d = shape
    sets = [features(rng, count, d=d, kind=values) for count in (n, m, 20)]
    expected = told(kind, sets, PLAIN)
    for way in WAYS:
        same(told(kind, sets, way), expected, where=f"{way}")


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.needs is None], ids=lambda kind: kind.name)
def test_order_batches_and_processes_change_no_score_of_pixels(kind):
    rng = np.random.default_rng(0)
    sets = [pictures(rng, count) for count in (21, 18, 2)]
    expected = told(kind, sets, PLAIN)
    for way in WAYS:
        same(told(kind, sets, way), expected, where=f"{way}")
