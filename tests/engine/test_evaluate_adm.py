"""eval-fid as the suite of guided-diffusion scores: its reference files, FID and sFID by moments, the rest by pictures."""

import json

import numpy as np
import pytest

from hdit_cli import cli
from hdit_cli.metrics import fid_inception
from hdit_cli.metrics.frechet import frechet_distance
from hdit_cli.metrics.moments import Gaussian

pytestmark = pytest.mark.usefixtures("small_net")
POOLED, SPATIAL = 6, 4


class Net:
    """A net in the place of Inception: a few means of a picture, and four of its pixels as spatial features."""

    kind, resize, published, sha256, path, classifier = "adm", "none", True, "0" * 64, "net", True
    spatial = SPATIAL

    def __init__(self, path=None, *, device=None):
        pass

    def __call__(self, pictures):
        x = np.stack(pictures).astype(np.float32)
        parts = [x[:, :16].mean((1, 2)), x[:, 16:].mean((1, 2)), x[:, ::31, ::31, 0].reshape(len(x), -1)]
        return np.concatenate(parts, axis=1)

    def logits(self, features):
        return features[:, :3] / 100


@pytest.fixture
def small_net(tmp_path, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fid_inception, "ADMInception", Net)


def pictures(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def moments(x):
    return Gaussian(x.mean(0).astype(np.float64), np.cov(x.astype(np.float64), rowvar=False))


@pytest.fixture
def place(tmp_path):
    whole, some = Net()(list(pictures(200, 1))), pictures(30, 1)
    (mu, sigma), (mu_s, sigma_s) = (
        (found.mean, found.covariance) for found in (moments(whole[:, :POOLED]), moments(whole[:, POOLED:]))
    )
    np.savez(tmp_path / "reference.npz", some, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    np.savez(tmp_path / "pooled.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "pictures.npz", some)
    np.savez(tmp_path / "samples.npz", pictures(40, 2))
    return tmp_path


def run(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval-fid", *map(str, words)])
    printed = capsys.readouterr()
    assert stop.value.code == code, printed.err
    return json.loads(printed.out) if not code else printed.err


def values(told):
    return {score["metric"]: score["value"] for score in told["scores"]}


def test_moments_and_pictures_of_one_file(place, capsys):
    ours = Net()(list(pictures(40, 2)))
    wanted = {}
    with np.load(place / "reference.npz") as stored:
        wanted["fid"] = frechet_distance(moments(ours[:, :POOLED]), Gaussian(stored["mu"], stored["sigma"]))
        wanted["sfid"] = frechet_distance(moments(ours[:, POOLED:]), Gaussian(stored["mu_s"], stored["sigma_s"]))
    words = ("--features", "adm", "--allow-small", "--json")
    told = run(
        capsys,
        place / "samples.npz",
        "--reference",
        place / "reference.npz",
        "--metrics",
        "fid,sfid,is,precision-recall",
        *words,
    )
    found = values(told)
    assert found["fid"] == pytest.approx(wanted["fid"], rel=1e-6)
    assert found["sfid"] == pytest.approx(wanted["sfid"], rel=1e-6)
    assert any("against the moments" in note and "30 pictures" in note for note in told["notes"])
    counts = {score["metric"]: score["n_reference"] for score in told["scores"]}
    assert counts["fid"] is None and counts["precision"] == 30
    alone = run(
        capsys, place / "samples.npz", "--reference", place / "pictures.npz", "--metrics", "precision-recall,is", *words
    )
    assert values(alone) == {name: found[name] for name in values(alone)}
    both = run(capsys, place / "samples.npz", "--reference", place / "reference.npz", "--metrics", "fid,sfid", *words)
    assert values(both) == {name: found[name] for name in ("fid", "sfid")}
    by_pictures = run(capsys, place / "samples.npz", "--reference", place / "pictures.npz", "--metrics", "sfid", *words)
    assert values(by_pictures)["sfid"] != found["sfid"]


def test_a_reference_without_spatial_moments(place, capsys):
    words = ("--features", "adm", "--allow-small", "--metrics", "sfid")
    told = run(capsys, place / "samples.npz", "--reference", place / "pooled.npz", *words, code=3)
    assert "mu_s and sigma_s" in told
    told = run(capsys, place / "samples.npz", "--reference", place / "reference.npz", "--metrics", "sfid", code=2)
    assert "--features adm" in told


def test_moments_are_of_one_net(place, capsys):
    words = ("--allow-small", "--metrics", "fid,precision-recall", "--features")
    assert "twice" in run(
        capsys, place / "samples.npz", "--reference", place / "reference.npz", *words, "adm,adm", code=2
    )
