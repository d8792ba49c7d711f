"""`hdit eval-fid CKPT` and no more: what can be scored is, what cannot is told in one line, and it takes ten minutes."""

import json
import signal

import pytest

from hdit_cli import cli
from hdit_cli.engine.scoring import affordable
from hdit_cli.engine.scoring.affordable import Count


def typed(capsys, *words):
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr(
        "hdit_cli.metrics.inception.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network"))
    )
    return tmp_path / "cache"


@pytest.fixture
def weights(own_cache, monkeypatch):
    """A small net in the place of the published one."""
    import numpy as np

    class Net:
        kind, resize, sha256, published, path = "inception", "bicubic-299", "0" * 64, True, own_cache
        classifier, spatial = False, 0

        def __init__(self, path, *, device):
            pass

        def __call__(self, pictures):
            return np.stack([picture.reshape(-1, 3).mean(0) for picture in pictures]).astype(np.float32)

    monkeypatch.setattr("hdit_cli.metrics.inception.locate", lambda path=None: own_cache)
    monkeypatch.setattr("hdit_cli.metrics.inception.Inception", Net)


def names(out):
    return [line.split()[0] for line in out.splitlines() if " n = " in line and not line.startswith("note")]


def test_without_weights_swd_alone(made, capsys):
    code, out, _ = typed(capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2")
    assert (code, names(out)) == (0, ["SWD"])
    (line,) = [line for line in out.splitlines() if "left out" in line]
    assert "FID (" in line and "2,048" in line and "--allow-small" in line
    assert "KID (" in line and "Inception weights" in line and "--inception PATH" in line
    code, out, _ = typed(capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2", "--allow-small", "--json")
    record = json.loads(out)
    assert [score["metric"] for score in record["scores"]] == ["swd"]
    assert sum("left out: FID and KID (" in note for note in record["notes"]) == 1


def test_of_few_pictures_kid_and_swd(made, weights, capsys):
    code, out, _ = typed(capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2")
    assert (code, names(out)) == (0, ["KID", "SWD"])
    assert sum("left out: FID (" in line for line in out.splitlines()) == 1
    code, out, _ = typed(capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2", "--allow-small")
    assert (code, names(out), "left out" in out) == (0, ["FID", "KID"], False)


def test_by_name_every_metric_is_strict(made, capsys):
    for words in (("fid",), ("fid,swd",), ("kid",), ("fid", "--allow-small")):
        code, out, err = typed(capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2", "--metrics", *words)
        assert (code, out, err.count("hint: ")) == (3, "", 1)
    code, _, err = typed(
        capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2", "--inception", "nowhere.pt", "--allow-small"
    )
    assert (code, "nowhere.pt" in err) == (3, True)  # as is a net


def test_nothing_that_can_be_is_an_error(made, tmp_path, capsys):
    code, _, _ = typed(capsys, "prepare", made / "data", "--out", tmp_path / "larger", "--size", "32", "--workers", "1")
    assert code == 0
    code, out, err = typed(
        capsys, "eval-fid", made / "run", "-n", "4", "--steps", "2", "--reference", tmp_path / "larger"
    )
    assert (code, out) == (3, "")
    assert "2,048" in err  # what was wanted first


def test_on_a_cpu_as_many_samples_as_ten_minutes_allow(made, own_cache, monkeypatch, capsys):
    monkeypatch.setattr(affordable, "_measured", lambda model, sampling: 13.0)
    code, out, err = typed(capsys, "eval-fid", made / "run", "--steps", "1", "--json")
    record = json.loads(out)
    note = (
        "46 samples (what this CPU makes in about ten minutes) instead of the recipe's 10,000; -n says another number"
    )
    assert (code, record["scores"][0]["n"]) == (0, 46)
    assert note in record["notes"]
    assert f"note: {note}" in err
    assert not list((own_cache / "unfinished").rglob("*"))  # nothing is kept of what is complete


def test_broken_off_it_goes_on_with_the_same_number(made, own_cache, monkeypatch, capsys):
    import os

    monkeypatch.setattr(affordable, "_measured", lambda model, sampling: 13.0)
    words = ("eval-fid", made / "run", "--steps", "1", "--batch-size", "8", "--json")
    record = json.loads(typed(capsys, *words)[1])
    from hdit_cli.commands.progress import Bars

    shown = Bars.pictures

    def broken(self, what, done, total):
        if what == "generated" and done >= 16:
            os.kill(os.getpid(), signal.SIGTERM)
        shown(self, what, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "pictures", broken)
        assert typed(capsys, *words)[0] == 75
    monkeypatch.setattr(affordable, "_measured", lambda model, sampling: 1.0)  # the machine has become faster
    code, out, _ = typed(capsys, *words)
    again = json.loads(out)
    assert code == 0
    assert [again["scores"], again["notes"]] == [record["scores"], record["notes"]]
    assert not list((own_cache / "unfinished").rglob("*"))
    assert json.loads(typed(capsys, *words[:4], "--batch-size", "64", "--json")[1])["scores"][0]["n"] == 600


def test_a_sweep_takes_one_number_for_all_its_points(made, tmp_path, monkeypatch, capsys):
    took = iter((13.0, 1.0, 1.0))
    monkeypatch.setattr(affordable, "_measured", lambda model, sampling: next(took))
    words = (
        "eval-fid",
        made / "run",
        "--sweep",
        "steps=1,2",
        "--out",
        tmp_path / "sweep",
        "--metrics",
        "swd",
        "--json",
    )
    table = json.loads(typed(capsys, *words)[1])
    assert [point["record"]["scores"][0]["n"] for point in table["points"]] == [46, 46]


@pytest.mark.parametrize(
    ("seconds", "n"),
    [(600 / 137, 130), (600 / 88.9, 88), (600 / 33, 33), (300.0, 16), (1e-6, 10_000), (600 / 12_345, 10_000)],
)
def test_the_number_is_round_and_never_too_small(made, monkeypatch, seconds, n):
    import hdit_cli

    monkeypatch.setattr(affordable, "_measured", lambda model, sampling: seconds)
    model = hdit_cli.load(made / "run", device="cpu")
    found = affordable.affordable(model, None, most=10_000, told=[seconds])
    assert found.n == n
    found.forget()


def test_what_is_few_says_how_long_it_takes():
    assert Count(32, 300.0).note(50_000).startswith("32 samples (the fewest that say anything, 160 minutes)")
    assert Count(100, 1.0).note(100) == ""
