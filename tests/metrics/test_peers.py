"""The maths against other tools, as facts: inputs by seed, and what their own functions gave for them once.

clean-fid 0.1.35 (frechet_distance, kernel_distance), pytorch-fid 0.3.0 (calculate_frechet_distance), torch-fidelity 0.4.0
(fid_statistics_to_metric, kid_features_to_metric, calculate_precision_recall_full, isc_features_to_metric), with
scipy 1.17.1 and numpy 2.4.6, 2026-11-21. Their main branches stood at clean-fid e88c4d6,
pytorch-fid b9c1811 and torch-fidelity 5e211a9 then.
"""

import numpy as np
import pytest
import torch

from hdit_cli.metrics import inception_score, kernel
from hdit_cli.metrics.frechet import frechet_distance
from hdit_cli.metrics.inception_score import InceptionScore, part_of
from hdit_cli.metrics.kernel import KID, squared_mmd
from hdit_cli.metrics.manifold import manifold_scores
from hdit_cli.metrics.moments import Gaussian, Moments


def pair(n: int, m: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.gamma(0.5, size=(n, d)) * np.geomspace(1, 1e-2, d)
    y = rng.gamma(0.6, size=(m, d)) * np.geomspace(1, 1e-2, d) + 0.01
    return x.astype(np.float32), y.astype(np.float32)


def moments_of(x: np.ndarray) -> Moments:
    moments = Moments()
    moments.update(x)
    return moments


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((500, 300, 64, 0), 0.26955085196017947),  # all three agree to the last digits
        ((40, 50, 64, 1), 1.6842476070674355),  # rank-deficient
        ((2000, 2000, 128, 2), 0.36562648391155506),
    ],
)
def test_frechet_distance(shape, expected):
    x, y = pair(*shape)
    assert frechet_distance(moments_of(x), moments_of(y)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((200, 200, 64, 3), 0.003460853649339981), ((50, 50, 16, 4), -0.003649598178027418)],
)
def test_kernel_distance(shape, expected):
    x, y = pair(*shape)
    assert squared_mmd(x.astype(np.float64), y.astype(np.float64)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_pytorch_fids_own_test():
    """Equal covariances, means of zeros and ones: the distance is the squared norm of the difference."""
    a, b = (Gaussian(np.full(2048, value), np.eye(2048)) for value in (0.0, 1.0))
    assert frechet_distance(a, b) == pytest.approx(2048, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "precision", "recall"), [((300, 200, 8, 5), 281 / 300, 185 / 200), ((150, 400, 4, 6), 138 / 150, 0.95)]
)
def test_precision_and_recall(shape, precision, recall):
    found = manifold_scores(*pair(*shape))
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-12)


def test_torch_fidelitys_collapsed_modes():
    generator = torch.Generator().manual_seed(42)
    tight = torch.randn(200, 16, generator=generator).numpy() * 0.1
    wide = torch.randn(200, 16, generator=generator).numpy() * 3
    found = manifold_scores(tight, wide)
    assert (found["precision"], found["recall"]) == (1, 0)


def scored(logits: np.ndarray) -> dict:
    metric = InceptionScore()
    metric.update(range(len(logits)), logits)
    return metric.score(metric)


def test_inception_score(monkeypatch):
    rng = np.random.default_rng(7)
    logits = (rng.normal(size=(100, 20)) * 3).astype(np.float32)
    in_turn = np.empty_like(logits)  # torch-fidelity's ten parts are the ten runs of ten: give each our part's numbers
    parts = part_of(np.arange(100))
    for part in range(10):
        in_turn[parts == part] = logits[part * 10 : part * 10 + 10]
    found = scored(in_turn)
    assert found["value"] == pytest.approx(3.9971576334039107, rel=1e-9)
    assert found["standard_deviation"] == pytest.approx(0.5567525010637776, rel=1e-9)
    monkeypatch.setattr(inception_score, "PARTS", 1)
    assert scored(logits)["value"] == pytest.approx(5.787975182230709, rel=1e-9)


def test_kid_of_subsets_is_clean_fids_mean(monkeypatch):
    """clean-fid's subsets are its own random ones: the means agree within their spread, the definition exactly."""
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 100)
    x, y = pair(200, 200, 64, 3)
    kids = []
    for rows in (x, y):
        kids.append(KID())
        kids[-1].update(range(200), rows)
    found = kids[0].score(kids[1])
    assert found["value"] == pytest.approx(0.003460853649339981, abs=4 * found["standard_deviation"] / 10)
    assert (found["subsets"], found["subset_size"]) == (100, 100)
