"""`hdit eval-fid`: settings of sampling, several classes, a folder that `hdit sample` made, notes on guidance."""

import json
import shutil

import pytest
from PIL import Image

from hdit_cli import cli


def hdit(capsys, *words, code=0):
    """Stdout and stderr of a command that must end with `code`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, words)))
    printed = capsys.readouterr()
    assert stop.value.code == code, printed.err
    assert "Traceback" not in printed.err
    return printed.out, printed.err


@pytest.fixture
def score(made, capsys, tmp_path, monkeypatch):
    """Scores with swd against the data that was prepared, and gives the record."""
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))

    def scored(source, *words):
        fixed = ("--metrics", "swd", "--reference", made / "data", "--json")
        return json.loads(hdit(capsys, "eval-fid", source, *fixed, *words)[0])

    return scored


@pytest.fixture(scope="module")
def undropped(made, tmp_path_factory):
    """A run of a model that was trained without dropped classes."""
    run = tmp_path_factory.mktemp("undropped") / "run"
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", run, "--set", "diffusion.class_dropout=0"]
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in [*words, "--set", "train.steps=1"]])
    assert stop.value.code == 0
    return run


def test_settings_act_and_are_recorded(made, score):
    found = {}
    for name, words in {
        "plain": (),
        "same": ("--schedule", "karras", "--eta", 1, "--rho", 7, "--device", "cpu"),
        "schedule": ("--schedule", "exponential"),
        "eta": ("--eta", 0.5),
        "rho": ("--rho", 3),
    }.items():
        found[name] = score(made / "run", "-n", 4, "--steps", 4, *words)
    values = {name: record["scores"][0]["value"] for name, record in found.items()}
    assert values["plain"] == values["same"] and len(set(values.values())) == 4
    assert [found[name]["sampling"][name] for name in ("schedule", "eta", "rho")] == ["exponential", 0.5, 3]
    assert found["plain"]["environment"]["device"] == "cpu"


def test_settings_belong_to_what_a_broken_off_evaluation_is_known_by(made, monkeypatch):
    from hdit_cli.engine.scoring.job import plan
    from hdit_cli.engine.scoring.request import Request, Session
    from hdit_cli.engine.scoring.unfinished import key_of

    def key(**changes):
        sampling = {name: changes[name] for name in ("schedule", "eta", "rho") if name in changes}
        label = changes.get("label")
        request = Request(made / "run", 4, ("swd",), reference=made / "data", sampling=sampling, label=label)
        return key_of(plan(request, Session()).told())

    told = [
        key(),
        key(schedule="exponential"),
        key(eta=0.5),
        key(rho=3.0),
        key(label=("rose", "tulip")),
        key(label="rose"),
    ]
    assert len(set(told)) == len(told) and key(schedule="karras", eta=1.0, rho=7.0) == told[0]


def test_several_classes(made, score):
    record = score(made / "run", "-n", 4, "--class", "tulip", "--class", "rose")
    assert record["sampling"]["label"] == ["tulip", "rose"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sampler", "euler", "--eta", "0.5"), "deterministic"),
        (("--sweep", "sampler=euler,heun", "--eta", "0.5"), "deterministic"),
        (("--schedule", "exponential", "--rho", "3"), "karras schedule"),
        (("--schedule", "linear"), "one of: karras, exponential"),
        (("--rho", "-1"), "above 0"),
        (("--device", "cuda:99"), "no device 'cuda:99'"),
        (("--class", "rose,lily"), "unknown class 'lily'"),
    ],
)
def test_settings_that_cannot_act_are_told(words, told, made, tmp_path, capsys):
    words = ("-n", 4, "--metrics", "swd", "--out", tmp_path / "t", *words)
    words = words if "--sweep" in words else tuple(w for w in words if w not in ("--out", tmp_path / "t"))
    _, err = hdit(capsys, "eval-fid", made / "run", *words, code=2)
    assert told in err and err.count("error: ") == 1


def test_settings_are_nothing_to_a_folder_of_pictures(made, capsys):
    words = ("--reference", made / "data", "--eta", 1, "--schedule", "karras", "--class", "rose")
    _, err = hdit(capsys, "eval-fid", made / "data", *words, code=2)
    assert "leave out --class" in err and "--eta" in err and "--schedule" in err


def test_of_a_folder_of_samples_what_its_record_names_counts(made, score, capsys, tmp_path):
    out = tmp_path / "set"
    hdit(capsys, "sample", made / "run", "-n", 4, "--out", out)
    clean = score(out)
    assert clean["scores"][0]["n"] == 4 and not any("samples.json" in note for note in clean["notes"])
    for name in ("00004.png", "mine.png"):
        Image.new("RGB", (16, 16)).save(out / name)
    stale = score(out)
    assert stale["scores"] == clean["scores"] and stale["fingerprint"] == clean["fingerprint"]
    assert any("2 pictures in" in note and "not counted" in note for note in stale["notes"])
    (out / "00001.png").unlink()
    fewer = score(out)
    assert fewer["scores"][0]["n"] == 3 and any("1 of the 4 pictures" in note for note in fewer["notes"])
    record = json.loads((out / "samples.json").read_text())
    for names in (["../set/mine.png"], [str(out / "mine.png")], []):
        record["images"] = [{"file": name} for name in names]
        (out / "samples.json").write_text(json.dumps(record))
        words = ("eval-fid", out, "--metrics", "swd", "--reference", made / "data")
        assert "holds none of the" in hdit(capsys, *words, code=3)[1]
    (out / "samples.json").write_text("[]")
    loose = score(out)
    assert loose["scores"][0]["n"] == 5 and any("is no record of samples" in note for note in loose["notes"])


def test_guidance_on_a_model_trained_without_dropped_classes(undropped, made, score, capsys, tmp_path):
    words = ("sample", undropped, "-n", 1, "--out")
    told = "trained without dropped classes"
    assert told in hdit(capsys, *words, tmp_path / "a", "--cfg", 3)[1]
    assert told not in hdit(capsys, *words, tmp_path / "b")[1]
    assert told not in hdit(capsys, "sample", made / "run", "-n", 1, "--cfg", 3, "--out", tmp_path / "c")[1]
    assert "at cfg 1 it changes nothing" in hdit(capsys, *words, tmp_path / "d", "--cfg-interval", "0.3:5")[1]
    assert any(told in note for note in score(undropped, "-n", 4, "--cfg", 3)["notes"])
    assert not any(told in note for note in score(undropped, "-n", 4)["notes"])
    words = (
        "-n",
        4,
        "--sweep",
        "cfg=1,3",
        "--metrics",
        "swd",
        "--reference",
        made / "data",
        "--out",
        tmp_path / "sweep",
    )
    assert hdit(capsys, "eval-fid", undropped, *words)[0].count(told) == 1


def test_guidance_on_a_model_without_classes(made, capsys, tmp_path):
    run = tmp_path / "run"
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", run, "--set", "model.classes=0"]
    hdit(capsys, *words, "--set", "sample.cfg=3", "--set", "train.steps=1")
    _, err = hdit(capsys, "sample", run, "-n", 1, "--out", tmp_path / "a")
    assert "sample.cfg 3" in err and "has no classes" in err
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["sampling"]["cfg"] == 1
    assert "needs a model with classes" in hdit(capsys, "sample", run, "--cfg", 2, "--out", tmp_path / "b", code=2)[1]
    shutil.rmtree(run)
