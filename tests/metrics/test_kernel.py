"""KID against its definition, and its random subsets."""

import numpy as np
import pytest

from hdit_cli.errors import NonFiniteError
from hdit_cli.metrics import kernel
from hdit_cli.metrics.kernel import KID, squared_mmd, subset


def kid_of(x: np.ndarray) -> KID:
    kid = KID()
    kid.update(range(len(x)), x)
    return kid


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD, pair by pair (Gretton et al. 2012, eq. 3)."""

    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (2, 9, 5), (13, 8, 40), (20, 20, 3)])
def test_the_estimator_is_its_definition(n, m, d):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.3
    assert squared_mmd(x, y) == pytest.approx(by_definition(x, y), rel=1e-10, abs=1e-12)


def test_whole_sets_are_scored_once():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 6)).astype(np.float32)
    score = kid_of(x).score(kid_of(y))
    assert (score["subsets"], score["subset_size"], score["standard_deviation"]) == (1, 30, 0)
    assert score["value"] == pytest.approx(by_definition(x.astype(float), y.astype(float)), rel=1e-10)


def test_subsets_give_the_mean_and_the_spread(monkeypatch):
    monkeypatch.setattr(kernel, "SUBSETS", 7)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 10)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(25, 4)).astype(np.float32), rng.normal(size=(40, 4)).astype(np.float32)
    values = [
        by_definition(
            x[subset("generated", i, size=10, total=25)].astype(float),
            y[subset("reference", i, size=10, total=40)].astype(float),
        )
        for i in range(7)
    ]
    score = kid_of(x).score(kid_of(y))
    assert score["value"] == pytest.approx(np.mean(values), rel=1e-9)
    assert score["standard_deviation"] == pytest.approx(np.std(values), rel=1e-9)
    assert (score["subsets"], score["subset_size"]) == (7, 10)


def test_subsets_are_deterministic_without_repeats_and_differ():
    first = subset("generated", 0, size=50, total=200)
    assert len(set(first.tolist())) == 50
    assert first.min() >= 0 and first.max() < 200
    np.testing.assert_array_equal(first, subset("generated", 0, size=50, total=200))
    assert set(first) != set(subset("generated", 1, size=50, total=200))
    assert set(first) != set(subset("reference", 0, size=50, total=200))
    drawn = np.bincount(np.concatenate([subset("x", i, size=50, total=200) for i in range(400)]), minlength=200)
    assert drawn.min() > 60 and drawn.max() < 140  # 100 expected, standard deviation 8.7


def test_zero_on_average_for_one_distribution_and_growing_with_a_shift():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 400, 8))
    scores = [kid_of(x + shift).score(kid_of(y))["value"] for shift in (0, 0.2, 0.5, 1, 2)]
    assert abs(scores[0]) < 0.02
    assert scores == sorted(scores)


def test_does_not_depend_on_order_batches_or_processes(monkeypatch):
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 20)
    rng = np.random.default_rng(3)
    x, reference = rng.normal(size=(53, 5)), kid_of(rng.normal(size=(60, 5)))
    expected = kid_of(x).score(reference)["value"]
    parts = []
    for rank in range(3):
        part, mine = KID(), rng.permutation(np.arange(rank, 53, 3))
        for index in np.array_split(mine, 4):
            part.update(index.tolist(), x[index])
        parts.append(part.arrays())
    whole = KID.merged([*parts, KID().arrays()])
    assert whole.count == 53
    assert whole.score(reference)["value"] == expected


def test_one_bad_number_is_refused():
    with pytest.raises(NonFiniteError):
        KID().update([0], np.array([[1.0, np.inf]]))
