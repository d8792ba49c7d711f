"""Moments and the Fréchet distance: closed forms, invariances, degenerate ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdit_cli.errors import NonFiniteError
from hdit_cli.metrics.frechet import FID, frechet_distance
from hdit_cli.metrics.moments import Moments


def moments_of(x: np.ndarray) -> Moments:
    moments = Moments()
    moments.update(x)
    return moments


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(count=1001, mean=mean, scatter=covariance * 1000)


def fid_of(x: np.ndarray) -> FID:
    fid = FID()
    fid.update(range(len(x)), x)
    return fid


@pytest.mark.parametrize("seed", range(100))
def test_commuting_gaussians_have_a_closed_form(seed):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 48))
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    a, b = rng.gamma(0.5, size=(2, d)) * 10.0 ** rng.uniform(-3, 3)
    mean_a, mean_b = rng.normal(size=(2, d))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(gaussian(mean_a, (basis * a) @ basis.T), gaussian(mean_b, (basis * b) @ basis.T))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(2, 64), (3, 64), (63, 64), (64, 64), (65, 64), (500, 64), (50, 1)])
def test_distance_to_itself_is_nothing(n, d):
    x = np.random.default_rng(n).normal(size=(n, d)) * np.geomspace(1e-4, 10, d)
    assert 0 <= frechet_distance(moments_of(x), moments_of(x)) <= 1e-9


@pytest.mark.parametrize("n", [2, 5, 40])
def test_fewer_pictures_than_dimensions(n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 40)), rng.normal(size=(n + 3, 40)) + 0.5
    a, b = moments_of(x), moments_of(y)
    # the nuclear norm of X Yᵀ needs no root of a singular matrix
    nuclear = np.linalg.norm((x - x.mean(0)) @ (y - y.mean(0)).T, ord="nuc") / np.sqrt((n - 1) * (n + 2))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() - 2 * nuclear
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_constant_features():
    constant = moments_of(np.full((5, 8), 3.0))
    assert frechet_distance(constant, constant) == 0
    assert frechet_distance(constant, moments_of(np.full((9, 8), 4.0))) == pytest.approx(8)
    spread = np.random.default_rng(0).normal(size=(50, 8))
    expected = ((spread.mean(0) - 3) ** 2).sum() + spread.var(0, ddof=1).sum()
    assert frechet_distance(constant, moments_of(spread)) == pytest.approx(expected)


def test_symmetric():
    rng = np.random.default_rng(1)
    a, b = moments_of(rng.normal(size=(100, 30))), moments_of(rng.normal(size=(20, 30)) * 2)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_grows_with_a_shift_and_with_noise():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 16))
    reference = moments_of(x)
    shifts = [frechet_distance(moments_of(x + shift), reference) for shift in (0, 0.1, 0.3, 1, 3)]
    assert shifts == sorted(shifts)
    assert shifts[-1] == pytest.approx(16 * 9)
    noise = rng.normal(size=x.shape)
    noises = [frechet_distance(moments_of(x + scale * noise), reference) for scale in (0, 0.1, 0.3, 1, 3)]
    assert noises == sorted(noises)


def test_agrees_with_the_matrix_square_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24)), rng.normal(size=(400, 24)) + 1
    a, b = moments_of(x), moments_of(y)
    cross = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * cross)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 80), st.lists(st.integers(0, 17), max_size=12), st.integers(0, 2**32 - 1))
def test_moments_do_not_depend_on_batches_or_order(n, cuts, seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 7)) + 100).astype(np.float32)
    streamed = Moments()
    for part in np.split(rng.permutation(x), np.minimum(np.cumsum(cuts), n)):
        streamed.update(part)
    assert streamed.count == n
    np.testing.assert_allclose(streamed.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_score_does_not_depend_on_batches_or_processes(batch, world):
    rng = np.random.default_rng(4)
    x, reference = rng.normal(size=(101, 20)) + 5, fid_of(rng.normal(size=(80, 20)))
    parts = []
    for rank in range(world):
        mine, part = np.arange(rank, 101, world), FID()
        for start in range(0, len(mine), batch):
            part.update(mine[start : start + batch].tolist(), x[mine[start : start + batch]])
        parts.append(part.arrays())
    whole = FID.merged(parts)
    assert whole.count == 101
    assert whole.score(reference)["value"] == pytest.approx(fid_of(x).score(reference)["value"], rel=1e-9)


def test_merging_leaves_the_parts_alone():
    x = np.random.default_rng(5).normal(size=(10, 3))
    part = fid_of(x).arrays()
    FID.merged([part, fid_of(x + 1).arrays()])
    np.testing.assert_array_equal(part["mean"], x.mean(0))
    assert FID.merged([part, FID().arrays()]).count == 10


def test_one_bad_number_is_refused():
    x = np.zeros((3, 4))
    x[1, 2] = np.nan
    with pytest.raises(NonFiniteError):
        Moments().update(x)
