"""Files of moments, as others write them and as they should not be."""

import pickle

import numpy as np
import pytest

from hdit_cli.errors import DataError
from hdit_cli.metrics.statistics_file import read_statistics

D = 6


def moments() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(50, D))
    return x.mean(0), np.cov(x, rowvar=False)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "more", [{}, {"mu_s": np.zeros(9), "sigma_s": np.eye(9), "arr_0": np.zeros((4, 8, 8, 3), np.uint8)}]
)
def test_files_of_others_are_read(tmp_path, dtype, save, more):
    """clean-fid, pytorch-fid and EDM write mu and sigma; ADM adds moments of maps, and pictures."""
    mean, covariance = moments()
    save(tmp_path / "s.npz", mu=mean.astype(dtype), sigma=covariance.astype(dtype), **more)
    found = read_statistics(tmp_path / "s.npz")
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5, atol=1e-7)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert found.count is None


def test_few_pictures_behind_a_float32_file(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 300)).astype(np.float32) * 100
    np.savez(tmp_path / "s.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False).astype(np.float32))
    assert read_statistics(tmp_path / "s.npz").covariance.shape == (300, 300)


def bad(**changes) -> dict[str, np.ndarray]:
    mean, covariance = moments()
    return {"mu": mean, "sigma": covariance, **changes}


CASES = {
    "do not belong": bad(mu=np.zeros(D + 1)),
    "of shape": bad(sigma=np.zeros(D)),
    "NaN": bad(mu=np.full(D, np.nan)),
    "NaN or inf": bad(sigma=np.full((D, D), np.inf)),
    "not symmetric": bad(sigma=np.triu(np.ones((D, D)))),
    "negative eigenvalues": bad(sigma=-np.eye(D)),
    "not real numbers": bad(sigma=np.eye(D, dtype=complex)),
    "no sigma": {"mu": np.zeros(D)},
    "no mu": {"sigma": np.eye(D)},
    "Object arrays": bad(mu=np.array([None] * D, dtype=object)),
}


@pytest.mark.parametrize("words", CASES)
def test_what_is_no_moments(tmp_path, words):
    np.savez(tmp_path / "s.npz", **CASES[words])
    with pytest.raises(DataError, match=words) as caught:
        read_statistics(tmp_path / "s.npz")
    assert "mu (D,)" in caught.value.hint


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_no_pickle_is_read(tmp_path):
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="pickle") as caught:
        read_statistics(tmp_path / "edm2.pkl")
    assert "savez" in caught.value.hint
    np.savez(tmp_path / "trap.npz", mu=np.array([Trap()], dtype=object), sigma=np.eye(1))
    with pytest.raises(DataError):
        read_statistics(tmp_path / "trap.npz")


def test_missing_cut_or_other_files(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_statistics(tmp_path / "no.npz")
    np.savez(tmp_path / "s.npz", **bad())
    whole = (tmp_path / "s.npz").read_bytes()
    for name, data in (
        ("cut", whole[: len(whole) // 2]),
        ("text", b"hello"),
        ("flipped", whole[:90] + b"?" + whole[91:]),
    ):
        (tmp_path / f"{name}.npz").write_bytes(data)
        with pytest.raises(DataError):
            read_statistics(tmp_path / f"{name}.npz")
