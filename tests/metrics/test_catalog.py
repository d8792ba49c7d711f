"""The laws that every metric of features keeps, over the catalog; and the closed forms of each."""

import numpy as np
import pytest

from hdit_cli import catalog
from hdit_cli.errors import DataError, NonFiniteError
from hdit_cli.metrics import neighbours
from hdit_cli.metrics.frechet import FID, expected_at, frechet_distance
from hdit_cli.metrics.inception_score import InceptionScore, part_of
from hdit_cli.metrics.manifold import PrecisionRecall, manifold_scores
from hdit_cli.metrics.memorisation import Memorisation, share_closer
from hdit_cli.metrics.moments import Gaussian, Moments
from hdit_cli.metrics.neighbours import nearest
from hdit_cli.metrics.per_class import PerClassFID, frechet_of_rows

ALL = [catalog.get("metric", name) for name in catalog.names("metric")]
OF_FEATURES = [kind for kind in ALL if kind.needs in ("features", "inception")]
N, D = 150, 12


def features(seed: int, *, n: int = N, shift: float = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, D)) + shift).astype(np.float32)


def fed(kind, x: np.ndarray, *, index=None):
    metric, index = kind(), np.arange(len(x)) if index is None else index
    metric.update(index.tolist(), x, label=index % 2)
    return metric


def values(kind, x: np.ndarray, reference) -> dict[str, float]:
    found = fed(kind, x).score(reference)
    return found.get("values") or {kind.name: found["value"]}


def test_names_are_those_of_the_catalog():
    assert [kind.name for kind in ALL] == catalog.names("metric")


def test_metrics_of_one_state_agree_on_it():
    for kind in ALL:
        for other in ALL:
            if kind.state == other.state:
                assert kind.limit == other.limit
                assert (kind.needs == "logits") == (other.needs == "logits")
                assert set(kind().arrays()) == set(other().arrays())


@pytest.mark.parametrize("kind", OF_FEATURES, ids=lambda kind: kind.name)
def test_best_on_itself_and_worse_with_a_growing_shift(kind):
    if kind.better is None:
        pytest.skip("a distance to know, neither good nor bad by itself")
    reference = fed(kind, features(1))
    tables = [values(kind, features(1 + (shift > 0), shift=shift), reference) for shift in (0, 0.3, 1, 3)]
    sign = 1 if kind.better == "lower" else -1
    for name in tables[0]:
        scores = [sign * table[name] for table in tables]
        assert scores == sorted(scores), name
        assert scores[0] < scores[-1], name


@pytest.mark.parametrize("kind", [*OF_FEATURES, InceptionScore], ids=lambda kind: kind.name)
def test_a_number_that_is_none_is_refused(kind):
    x = features(0)
    x[3, 2] = np.inf
    with pytest.raises(NonFiniteError):
        fed(kind, x)


@pytest.mark.parametrize("kind", OF_FEATURES, ids=lambda kind: kind.name)
def test_features_of_two_nets_are_refused(kind):
    with pytest.raises(DataError, match="features"):
        fed(kind, features(0)).score(fed(kind, np.ones((N, 3), dtype=np.float32)))


# Fréchet


@pytest.mark.parametrize("seed", range(200))
def test_gaussians_in_closed_form(seed):
    """Σb = T Σa T with T symmetric and positive: the root of Σa Σb has the trace of Σa T, commuting or not."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 40))
    a, t = (s @ s.T / d + 0.01 * np.eye(d) for s in rng.normal(size=(2, d, d)))
    mean_a, mean_b = rng.normal(size=(2, d))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a) + np.trace(t @ a @ t) - 2 * np.trace(a @ t)
    found = [
        frechet_distance(Gaussian(mean_a, a), Gaussian(mean_b, t @ a @ t)),
        frechet_distance(Gaussian(mean_b, t @ a @ t), Gaussian(mean_a, a)),
    ]
    assert found == pytest.approx([expected] * 2, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 20, 63])
def test_singular_covariances_of_an_unknown_number_of_rows(rank):
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(500, rank)) @ rng.normal(size=(rank, 64))
    y = rng.normal(size=(500, 64))
    a, b = (Gaussian(v.mean(0), np.cov(v, rowvar=False)) for v in (x, y))
    within = np.linalg.norm((x - x.mean(0)) @ (y - y.mean(0)).T, ord="nuc") / 499
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * within
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) <= 1e-3


def test_dead_features_are_no_trouble():
    x, y = np.zeros((2, 400, 30))
    x[:, :20], y[:, 10:] = np.random.default_rng(0).normal(size=(2, 400, 20))
    found = frechet_distance(*(Gaussian(v.mean(0), np.cov(v, rowvar=False)) for v in (x, y)))
    assert np.isfinite(found) and found > 0


@pytest.mark.parametrize("n", [30, 64, 200, 5000])
def test_the_bias_is_what_draws_of_the_reference_score(n):
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 1e-2, 64)
    truth = Gaussian(np.zeros(64), np.diag(spread**2))
    scores = []
    for _ in range(8):
        drawn = Moments()
        drawn.update(rng.normal(size=(n, 64)) * spread)
        scores.append(frechet_distance(drawn, truth))
    assert expected_at(n, truth) == pytest.approx(np.mean(scores), rel=0.2)


def test_the_bias_of_a_set_without_spread_is_nothing():
    assert expected_at(50, Gaussian(np.ones(4), np.zeros((4, 4)))) == 0
    assert fed(FID, np.ones((5, 4))).score(fed(FID, np.ones((9, 4))))["of_a_perfect_model"] == 0


@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 200), (200, 150), (2, 2)])
def test_rows_and_moments_give_one_distance(n, m):
    x, y = features(0, n=n), features(1, n=m, shift=0.5)
    ours, theirs = Moments(), Moments()
    ours.update(x)
    theirs.update(y)
    assert frechet_of_rows(x, y) == pytest.approx(frechet_distance(ours, theirs), rel=1e-9)


def test_a_class_is_scored_by_itself():
    x, y = features(0), features(1)
    x[1::2] += 1  # class 1 alone is off
    found = fed(PerClassFID, x).score(fed(PerClassFID, y))
    assert set(found["classes"]) == {0, 1}
    for k, row in found["classes"].items():
        assert row["fid"] == pytest.approx(frechet_of_rows(x[k::2], y[k::2]))
        assert (row["n"], row["n_reference"]) == (75, 75)
    assert found["classes"][1]["fid"] > found["classes"][0]["fid"] + 5
    assert found["value"] == pytest.approx(np.mean([row["fid"] for row in found["classes"].values()]))


def test_pictures_without_a_class_are_in_none():
    metric = PerClassFID()
    metric.update(range(N), features(0))
    with pytest.raises(DataError, match="no class"):
        metric.score(fed(PerClassFID, features(1)))


# Neighbours


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_those_of_all_pairs(monkeypatch, block, k):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    x, y = features(0, n=23), features(1, n=31)
    for ours, itself in ((x, False), (y, True)):
        table = np.linalg.norm(ours[:, None].astype(np.float64) - y[None], axis=2)
        if itself:
            np.fill_diagonal(table, np.inf)
        distance, position = nearest(ours, y, k=k, itself=itself)
        np.testing.assert_array_equal(position, np.argsort(table, axis=1)[:, :k])
        np.testing.assert_allclose(distance, np.sort(table, axis=1)[:, :k], rtol=1e-9)


@pytest.mark.parametrize("block", [3, 1000])
def test_manifolds_by_their_definition(monkeypatch, block):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    x, y = features(0, n=40), features(1, n=25, shift=0.4)
    found = manifold_scores(x, y)

    def table(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)

    near, wide = (np.sort(table(y, y), axis=1)[:, k] for k in (3, 5))  # the row itself is number 0
    ours, cross = np.sort(table(x, x), axis=1)[:, 3], table(x, y)
    assert found["precision"] == np.mean([(row <= near).any() for row in cross])
    assert found["recall"] == np.mean([(column <= ours).any() for column in cross.T])
    assert found["density"] == pytest.approx(np.mean([(row < wide).sum() for row in cross]) / 5)
    assert found["coverage"] == np.mean([(cross[:, j] < wide[j]).any() for j in range(25)])


def test_a_set_is_precise_and_recalled_by_itself():
    found = fed(PrecisionRecall, features(0)).score(fed(PrecisionRecall, features(0)))["values"]
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_copies_are_found():
    train, held_out, new = features(0, n=300), features(1, n=100), features(2, n=90)
    samples = new.copy()
    samples[[7, 50]] = train[[123, 4]]
    reference = fed(Memorisation, train, index=np.arange(1000, 1300))
    found = fed(Memorisation, samples).score(reference, held_out=fed(Memorisation, held_out))
    closest = {(pair["picture"], pair["reference"]) for pair in found["closest"][:2]}
    assert closest == {(7, 1123), (50, 1004)}
    assert found["closest"][1]["distance"] < 1e-5 < found["closest"][2]["distance"]
    assert found["held_out"]["n"] == 100
    assert found["share_closer"] == pytest.approx(0.5, abs=0.12)
    copied = fed(Memorisation, train[:90]).score(reference, held_out=fed(Memorisation, held_out))
    assert copied["share_closer"] == 1
    assert "held_out" not in fed(Memorisation, samples).score(reference)


def test_share_closer_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 30), rng.integers(2, 12, 40)
    pairs = (a[:, None] < b).mean() + (a[:, None] == b).mean() / 2
    assert share_closer(a, b) == pytest.approx(pairs)


# Inception Score


def test_inception_score_of_certain_and_of_empty_predictions():
    sure = np.tile(np.eye(4) * 1000, (250, 1))
    found = fed(InceptionScore, sure)
    assert found.score(found)["value"] == pytest.approx(4, rel=0.05)  # four classes, each picture sure of one
    blank = fed(InceptionScore, np.zeros((100, 4)))
    assert blank.score(blank)["value"] == pytest.approx(1)


@pytest.mark.parametrize("n", [10, 57, 1000])
def test_parts_are_equal_and_mix_classes_that_come_in_turn(n):
    parts = part_of(np.arange(n))
    counts = np.bincount(parts, minlength=10)
    assert counts.max() - counts.min() <= 1
    if n == 1000:
        table = np.zeros((10, 10), dtype=int)
        np.add.at(table, (parts, np.arange(n) % 10), 1)
        assert table.max() <= 25  # ten expected


def test_states_of_moments_and_predictions_do_not_grow():
    sizes = [
        sum(array.nbytes for array in fed(kind, features(0, n=n)).arrays().values())
        for n in (20, 2000)
        for kind in (FID, InceptionScore)
    ]
    assert sizes[:2] == sizes[2:]
