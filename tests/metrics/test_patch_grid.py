"""The patch grid: its closed form, 1 on photographs, worse with growing seams, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from hdit_cli.data.folder import FolderReader
from hdit_cli.errors import DataError, UsageError
from hdit_cli.metrics.patch_grid import PatchGrid, profiles, ratio, spectra

FLOWERS = Path(__file__).parents[2].parent / "shared" / "data" / "flowers128-small"


def energy(x, patch):
    metric = PatchGrid.of(patch)()
    metric.update(range(len(x)), x)
    return metric.energy()


def noise(n, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("length", "patch"), [(32, 2), (32, 4), (48, 3), (60, 6), (64, 8)])
@pytest.mark.parametrize("amplitude", [0.0, 0.3, 1.0])
def test_closed_form_of_a_line_in_white_noise(length, patch, amplitude):
    """1 + (2/3) L |c_k|² / v for each harmonic k, c the Fourier coefficients of the periodic part."""
    random = np.random.default_rng(1)
    shape = random.normal(size=patch)
    periodic = amplitude * np.tile(shape, length // patch)
    found, influence = ratio(spectra(random.normal(size=(20_000, length)) + periodic), length=length, patch=patch)
    c = np.fft.fft(shape)[1 : patch // 2 + 1] / patch * amplitude
    assert found == pytest.approx(1 + 2 / 3 * length * np.abs(c) ** 2, rel=0.05)
    assert abs(influence.sum()) < 1e-6 * np.abs(influence).sum()


def test_two_sets_of_one_kind_score_1():
    """And the standard error is right: 30 pairs scatter as it says."""
    kind, found = PatchGrid.of((4, 4)), []
    for seed in range(0, 60, 2):
        samples, data = kind(), kind()
        samples.update(range(50), noise(50, 32, 32, seed))
        data.update(range(50), noise(50, 32, 32, seed + 1))
        found.append(samples.score(data))
    values, errors = (np.array([score[key] for score in found]) for key in ("value", "standard_deviation"))
    assert values.mean() == pytest.approx(1, abs=3 * errors.mean() / 30**0.5)
    assert values.std() == pytest.approx(errors.mean(), rel=0.35)


def seams(x, patch, amplitude, seed=0):
    """Each patch a little brighter or darker than it should be."""
    n, height, width, _ = x.shape
    random = np.random.default_rng(seed)
    blocks = random.normal(0, amplitude, (n, height // patch[0], width // patch[1], 1))
    return np.clip(x + blocks.repeat(patch[0], 1).repeat(patch[1], 2), 0, 255).round().astype(np.uint8)


def mesh(x, patch, amplitude, seed=0):
    """The same small pattern on every patch."""
    pattern = np.random.default_rng(seed).normal(0, amplitude, (*patch, 1))
    tiled = np.tile(pattern, (x.shape[1] // patch[0], x.shape[2] // patch[1], 1))
    return np.clip(x + tiled, 0, 255).round().astype(np.uint8)


def smooth_pictures(n, height, width):
    """Sums of slow waves, with a little noise."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    waves = sum(
        random.normal(size=(n, 1, 1))
        * np.cos(random.uniform(0, 0.3, (n, 1, 1)) * x + random.uniform(0, 0.3, (n, 1, 1)) * y)
        for _ in range(4)
    )
    return (
        np.clip(128 + 20 * waves[..., None] + random.normal(0, 3, (n, height, width, 3)), 0, 255)
        .round()
        .astype(np.uint8)
    )


@pytest.mark.parametrize("defect", [seams, mesh])
@pytest.mark.parametrize("patch", [(4, 4), (2, 2), (3, 8)])
def test_it_worsens_with_a_growing_grid_(defect, patch):
    x = smooth_pictures(60, 48, 64)
    clean, error = energy(x, patch)
    assert clean == pytest.approx(1, abs=4 * error + 0.1)
    found = [energy(defect(x, patch, amplitude), patch)[0] for amplitude in (2, 6, 12)]
    assert clean * 1.1 < found[0] < found[1] < found[2]


def test_the_score_is_relative_to_the_data():
    x = smooth_pictures(60, 32, 32)
    kind = PatchGrid.of((4, 4))
    data, samples = kind(), kind()
    data.update(range(60), x)
    samples.update(range(60), seams(x, (4, 4), 4))
    found = samples.score(data)
    assert found["value"] == pytest.approx(found["levels"]["pictures"] / found["levels"]["reference"])
    assert found["value"] > 1 + 3 * found["standard_deviation"]
    assert data.score(data)["value"] == 1
    assert data.score(samples)["value"] == pytest.approx(1 / found["value"])


def test_neither_batches_nor_order_nor_processes_matter():
    x = noise(40, 16, 24)
    kind = PatchGrid.of((2, 4))
    whole = kind()
    whole.update(range(40), x)
    parts = []
    for rows in (range(1, 40, 2), range(0, 40, 2)):
        part = kind()
        for row in reversed(rows):
            part.update([row], x[[row]])
        parts.append(part.arrays())
    merged = kind.merged([*parts, kind().arrays()])
    assert merged.energy() == whole.energy()
    assert merged.count == whole.count == 40


def test_flat_pictures_have_no_grid():
    assert energy(np.full((3, 16, 16, 3), 7, np.uint8), (4, 4)) == (1.0, 0.0)


def test_an_exact_grid_is_large_and_finite():
    x = np.zeros((3, 32, 32, 3), np.uint8)
    x[:, ::4, ::4] = 200
    value, _ = energy(x, (4, 4))
    assert 1e3 < value < np.inf


def test_a_profile_has_the_seam_at_the_first_pixel_of_the_patch():
    x = np.zeros((1, 16, 16, 3), np.uint8)
    x[:, :, 8:] = 100
    absolute, signed = profiles(x, axis=2)[0]
    assert absolute.argmax() == signed.argmax() == 8
    assert not profiles(x, axis=1).any()


def test_what_is_refused():
    with pytest.raises(UsageError, match="one pixel"):
        PatchGrid.of((1, 1))
    for patch in ((5, 5), (8, 8)):  # not whole patches; three on a side
        with pytest.raises(DataError, match="not whole patches"):
            energy(noise(2, 24, 24), patch)
    metric = PatchGrid.of((2, 2))()
    metric.update([0], noise(1, 16, 16))
    with pytest.raises(DataError, match="in one set"):
        metric.update([1], noise(1, 16, 18))


@pytest.mark.skipif(not FLOWERS.is_dir(), reason="no photographs here")
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_photographs_have_none(patch, photographs):
    value, error = energy(photographs, (patch, patch))
    assert value == pytest.approx(1, abs=4 * error + 0.05)


@pytest.fixture(scope="module")
def photographs():
    """200 photographs at half their size, so that the grid of JPEG is not at 8 pixels, cut to 64x64."""
    reader = FolderReader(FLOWERS)
    halves = []
    for number in range(0, 1000, 5):
        x = reader.picture(number)[:128, :128].astype(np.uint16)
        halves.append(((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2] + 2) // 4).astype(np.uint8))
    return np.stack(halves)
