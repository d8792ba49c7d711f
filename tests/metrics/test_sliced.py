"""Sliced Wasserstein distance: its parts against plain definitions, its invariances, its direction."""

import itertools

import numpy as np
import pytest

from hdit_cli.errors import DataError
from hdit_cli.metrics import sliced
from hdit_cli.metrics.sliced import SWD, down, laplacian_pyramid, normalise, patches, smooth, up, wasserstein


def pictures(n: int, *, size: tuple[int, int] = (32, 32), seed: int = 0, grain: int = 4) -> np.ndarray:
    """Random blobs of about `grain` pixels: uint8 (n, H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, -(-size[0] // grain), -(-size[1] // grain), 3))
    return coarse.repeat(grain, 1).repeat(grain, 2)[:, : size[0], : size[1]].astype(np.uint8)


def swd_of(x: np.ndarray, *, batch: int = 64) -> SWD:
    swd = SWD()
    for start in range(0, len(x), batch):
        swd.update(range(start, min(start + batch, len(x))), x[start : start + batch])
    return swd


def test_filter_is_the_five_by_five_binomial():
    spike = np.zeros((1, 9, 9, 1), dtype=np.float32)
    spike[0, 4, 4] = 256
    expected = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    np.testing.assert_array_equal(smooth(spike)[0, 2:7, 2:7, 0], expected)
    flat = np.full((1, 9, 11, 3), 5, dtype=np.float32)
    np.testing.assert_array_equal(smooth(flat), flat)  # mirrored edges lose nothing


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (33, 70), (128, 37), (8, 8)])
def test_bands_add_up_to_the_picture(size):
    x = pictures(2, size=size).astype(np.float32)
    bands = laplacian_pyramid(x)
    whole = bands[-1]
    for band in bands[-2::-1]:
        whole = up(whole, like=band) + band
    np.testing.assert_allclose(whole, x, atol=1e-3)


@pytest.mark.parametrize(("side", "levels"), [(8, 1), (16, 1), (31, 1), (32, 2), (64, 3), (256, 5)])
def test_levels_end_at_sixteen(side, levels):
    assert len(laplacian_pyramid(pictures(1, size=(side, side)).astype(np.float32))) == levels


def test_a_flat_picture_has_no_detail():
    flat = np.full((1, 64, 64, 3), 7, dtype=np.float32)
    *details, rest = laplacian_pyramid(flat)
    assert all(not band.any() for band in details)
    np.testing.assert_array_equal(rest, np.full((1, 16, 16, 3), 7))
    assert down(flat).shape == (1, 32, 32, 3)


def test_patches_are_windows_of_their_picture():
    x = np.arange(3 * 12 * 10, dtype=np.float32).reshape(3, 12, 10, 1)
    cut = patches(x, [4, 5, 6], level=0)
    assert cut.shape == (3 * 128, 1, 7, 7)
    for number, patch in enumerate(cut[:, 0]):
        corner = int(patch[0, 0]) - (number // 128) * 120
        row, column = divmod(corner, 10)
        np.testing.assert_array_equal(patch, x[number // 128, row : row + 7, column : column + 7, 0])
    corners = {int(patch[0, 0]) for patch in cut[:, 0]}
    assert len(corners) > 60  # of 72 places in all


def test_patches_depend_on_the_picture_number_alone():
    x = pictures(5, size=(20, 20)).astype(np.float32)
    together = patches(x, [10, 11, 12, 13, 14], level=1)
    np.testing.assert_array_equal(together[256:384], patches(x[2:3], [12], level=1))
    assert (patches(x[2:3], [12], level=0) != patches(x[2:3], [12], level=1)).any()


def test_normalised_per_channel():
    x = np.random.default_rng(0).normal(size=(50, 3, 7, 7)).astype(np.float32) * [[[[1]], [[2]], [[5]]]] + 9
    channels = normalise(x.astype(np.float32)).reshape(50, 3, 49)
    np.testing.assert_allclose(channels.mean((0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(channels.std((0, 2)), 1, atol=1e-5)
    assert not normalise(np.full((4, 3, 7, 7), 8, dtype=np.float32)).any()


def test_wasserstein_of_equal_and_unequal_numbers():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 12)), rng.normal(size=(3, 12)) + 1
    assert wasserstein(a, a + 0.5) == pytest.approx(0.5)
    # each value repeated: the same distribution with another number of samples
    assert wasserstein(a.repeat(3, 1), b.repeat(2, 1)) == pytest.approx(wasserstein(a, b))
    assert wasserstein(np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 3.0]])) == pytest.approx(
        (0 + 0.5 + 0.5 * 2 + 1) / 3
    )
    assert wasserstein(a, b[:, :5]) == pytest.approx(wasserstein(b[:, :5], a))


@pytest.mark.slow
def test_wasserstein_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(4, 31)), rng.gamma(1.0, size=(4, 17))
    expected = np.mean([stats.wasserstein_distance(x, y) for x, y in zip(a, b, strict=True)])
    assert wasserstein(a, b) == pytest.approx(expected, rel=1e-10)


def test_the_score_is_its_definition():
    """Against a plain rewriting of section 5 for one level."""
    x, y = pictures(6, size=(16, 16)), pictures(6, size=(16, 16), seed=1, grain=2)
    score = swd_of(x).score(swd_of(y))
    a, b = (normalise(patches(s.astype(np.float32), range(6), level=0)).astype(float) for s in (x, y))
    total = 0.0
    for repeat in range(4):
        drawn = sliced.runtime.normal(0, "swd-direction", [repeat], (128, 147), like=sliced.torch.empty(0))[0]
        for direction in drawn.numpy().astype(float):
            direction = direction / np.sqrt((direction**2).sum())
            total += np.abs(np.sort(a @ direction) - np.sort(b @ direction)).mean() / 512
    assert score["levels"] == {"16x16": pytest.approx(1000 * total, rel=1e-5)}


def test_nothing_on_itself_and_the_average_is_of_the_levels():
    x = pictures(12)
    assert swd_of(x).score(swd_of(x)) == {"value": 0, "levels": {"32x32": 0, "16x16": 0}}
    score = swd_of(x).score(swd_of(pictures(12, seed=5)))
    assert score["value"] == pytest.approx(np.mean(list(score["levels"].values())))


def blurred(x: np.ndarray, times: int) -> np.ndarray:
    y = x.astype(np.float32)
    for _ in range(times):
        y = smooth(y)
    return y.round().astype(np.uint8)


def test_grows_with_blur_and_with_noise():
    x = pictures(8)
    reference = swd_of(x)
    blurs = [swd_of(blurred(x, times)).score(reference)["value"] for times in (0, 1, 3, 8)]
    assert all(a < b for a, b in itertools.pairwise(blurs))
    noise = np.random.default_rng(0).normal(size=x.shape)
    noises = [
        swd_of((x + scale * noise).clip(0, 255).astype(np.uint8)).score(reference)["value"] for scale in (0, 8, 30, 90)
    ]
    assert all(a < b for a, b in itertools.pairwise(noises))


def test_grows_as_more_pictures_are_of_another_kind():
    x, other = pictures(8), pictures(8, seed=3, grain=16)
    reference = swd_of(x)
    scores = [swd_of(np.concatenate([other[:k], x[k:]])).score(reference)["value"] for k in (0, 2, 4, 8)]
    assert all(a < b for a, b in itertools.pairwise(scores))


def test_does_not_depend_on_order_batches_or_processes():
    x, reference = pictures(13), swd_of(pictures(9, seed=2))
    expected = swd_of(x).score(reference)
    for batch in (1, 5):
        assert swd_of(x, batch=batch).score(reference) == expected
    parts = []
    for rank in range(2):
        part = SWD()
        for number in range(rank, 13, 2):
            part.update([number], x[number : number + 1])
        parts.append(part.arrays())
    whole = SWD.merged([parts[1], parts[0], SWD().arrays()])
    assert whole.count == 13
    assert whole.score(reference) == expected


def test_refuses_sizes_that_do_not_fit():
    swd = swd_of(pictures(2))
    with pytest.raises(DataError, match="one set"):
        swd.update([2], pictures(1, size=(16, 16)))
    with pytest.raises(DataError, match="reference"):
        swd.score(swd_of(pictures(2, size=(16, 16))))
    with pytest.raises(DataError, match="patch"):
        SWD().update([0], pictures(1, size=(6, 6)))
