"""`hdit sample`: from a picture, between samples, and again from a record."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from hdit_cli import cli


def run(capsys, *words):
    """Exit code, stdout and stderr of `hdit sample WORDS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", *map(str, words)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def refused(capsys, *words, code=2):
    found, out, err = run(capsys, *words)
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    return err


def test_from_a_picture_and_again(made, tmp_path, capsys):
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (30, 20), "orange").save(picture)
    code, out, _ = run(capsys, made / "run", "--init-image", picture, "-n", 2, "--class", 1, "--out", tmp_path / "a")
    assert code == 0
    assert "class tulip" in out
    assert "strength 0.6" in out
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["sampling"]["strength"] == 0.6
    code, out, _ = run(capsys, "--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b")
    assert code == 0
    for name in ("00000.png", "00001.png", "grid.png", "samples.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    moved = tmp_path / "moved.jpg"
    picture.rename(moved)
    words = ("--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "c")
    assert "cannot read" in refused(capsys, *words, code=3)
    assert run(capsys, *words, "--init-image", moved)[0] == 0
    assert (tmp_path / "a" / "00001.png").read_bytes() == (tmp_path / "c" / "00001.png").read_bytes()
    Image.new("RGB", (30, 20), "black").save(moved)
    assert "has changed" in refused(capsys, *words, "--init-image", moved, "--force", code=3)


def test_strips(made, tmp_path, capsys):
    words = (made / "run", "--interpolate-classes", "rose:tulip", "-n", 3, "--interpolate-seeds", "5:9")
    code, out, _ = run(capsys, *words, "--out", tmp_path / "s")
    assert code == 0
    assert "3 frames, seeds 5:9, rose:tulip" in out
    assert {p.name for p in (tmp_path / "s").iterdir()} == {
        "00000.png", "00001.png", "00002.png", "strip.png", "samples.json"
    }  # fmt: skip
    run(capsys, made / "run", "--seed", 9, "-n", 1, "--class", "tulip", "--out", tmp_path / "end")
    assert (tmp_path / "s" / "00002.png").read_bytes() == (tmp_path / "end" / "00000.png").read_bytes()
    code, out, _ = run(capsys, made / "run", "--interpolate-seeds", "1:2:3", "--json", "--out", tmp_path / "t")
    assert json.loads(out)["n"] == 9


def test_a_record_whose_checkpoint_was_moved(made, tmp_path, capsys):
    shutil.copy(made / "run" / "ckpt.safetensors", tmp_path / "old.safetensors")
    assert run(capsys, tmp_path / "old.safetensors", "-n", 1, "--out", tmp_path / "a")[0] == 0
    (tmp_path / "old.safetensors").rename(tmp_path / "new.safetensors")
    words = ("--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b")
    assert "no checkpoint" in refused(capsys, *words, code=4)
    assert run(capsys, tmp_path / "new.safetensors", *words)[0] == 0
    raw = made / "run" / "checkpoints" / "step-00000003" / "model.safetensors"
    assert "hdit sample CKPT --from" in refused(capsys, raw, *words, "--force", code=4)


def test_options_that_would_do_nothing_are_refused(made, tmp_path, capsys):
    run(capsys, made / "run", "-n", 1, "--out", tmp_path / "a")
    redo = ("--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b")
    assert "leave out -n, --class" in refused(capsys, *redo, "-n", 2, "--class", "rose")
    assert "leave out --seed, --cfg" in refused(capsys, *redo, "--seed", 1, "--cfg", 2)
    assert "--interpolate-seeds" in refused(capsys, *redo, "--interpolate-seeds", "1:2")
    assert "from no picture" in refused(capsys, *redo, "--init-image", "x.png")
    here = (made / "run", "--out", tmp_path / "b")
    assert "--init-image FILE" in refused(capsys, *here, "--strength", 0.5)
    assert "leave --seed out" in refused(capsys, *here, "--interpolate-seeds", "1:2", "--seed", 0)
    assert "leave --class out" in refused(capsys, *here, "--interpolate-classes", "0:1", "--class", "rose")
    for text in ("", "1", "a:b", "1:"):
        assert "for example 0:7" in refused(capsys, *here, "--interpolate-seeds", text)
    for text in ("", "rose", "rose:"):
        assert "daisy:rose" in refused(capsys, *here, "--interpolate-classes", text)
    assert "one of: rose, tulip" in refused(capsys, *here, "--interpolate-classes", "rose:lily")
    assert "-n 3 or more" in refused(capsys, *here, "--interpolate-seeds", "1:2:3", "-n", 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    assert "above 0, at most 1" in refused(capsys, *here, "--init-image", tmp_path / "p.png", "--strength", 0)
    assert not (tmp_path / "b").exists()


# Several classes, several sets, settings


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def record_of(folder):
    return json.loads((folder / "samples.json").read_text())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--class", "tulip", "--class", "rose"), ["tulip", "rose"]),
        (("--class", "tulip,rose"), ["tulip", "rose"]),
        (("--class", "1, 0"), ["tulip", "rose"]),
    ],
)
def test_several_classes_are_dealt_evenly_and_come_again(words, wanted, made, tmp_path, capsys):
    code, out, _ = run(capsys, made / "run", *words, "-n", 4, "--out", tmp_path / "a")
    assert code == 0 and "classes tulip, rose" in out
    assert record_of(tmp_path / "a")["label"] == wanted
    assert [image["class"] for image in record_of(tmp_path / "a")["images"]] == ["tulip", "tulip", "rose", "rose"]
    assert run(capsys, "--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b")[0] == 0
    for name in names_in(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_classes_that_cannot_be(made, tmp_path, capsys):
    words = (made / "run", "--out", tmp_path / "a")
    assert "did you mean 'tulip'?" in refused(capsys, *words, "--class", "Tulips")
    assert "did you mean 'rose'?" in refused(capsys, *words, "--class", "tulip,ros")
    assert "leave the other classes out" in refused(capsys, *words, "--class", "all", "--class", "rose")
    assert "-n 2 or more" in refused(capsys, *words, "--class", "rose,tulip", "-n", 1)
    assert "unknown class ','" in refused(capsys, *words, "--class", ",")
    assert not (tmp_path / "a").exists()


def test_a_second_sampling_makes_a_second_folder(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("run", "run-2", "run-3"):
        code, out, _ = run(capsys, made / "run", "-n", 1, "--seed", len(place))
        assert code == 0 and f"in samples/{place}\n" in out
    assert record_of(tmp_path / "samples" / "run")["sampling"]["seed"] == 3
    first = (tmp_path / "samples" / "run" / "00000.png").read_bytes()
    assert run(capsys, "--from", "samples/run/samples.json")[0] == 0
    assert (tmp_path / "samples" / "run-4" / "00000.png").read_bytes() == first
    assert "is not empty" in refused(capsys, made / "run", "--out", "samples/run")
    assert "unknown class" in refused(capsys, made / "run", "--class", "none")
    assert names_in(tmp_path / "samples") == ["run", "run-2", "run-3", "run-4"]
    assert run(capsys, made / "run", "-n", 2, "--force")[0] == 0
    assert len(names_in(tmp_path / "samples" / "run")) == 4 and len(names_in(tmp_path / "samples")) == 4


def test_nothing_made_leaves_no_folder(made, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hdit_cli.engine.sampling.generate.denoise_batch", broken)
    assert run(capsys, made / "run", "-n", 1)[0] == 75
    assert names_in(tmp_path / "samples") == []


def test_force_takes_the_whole_earlier_set_away_and_nothing_else(made, tmp_path, capsys):
    out = tmp_path / "a"
    assert run(capsys, made / "run", "-n", 5, "--out", out)[0] == 0
    victims = [tmp_path / "victim.png", tmp_path / "absolute.png", out / "below" / "mine.png", out / ".hidden.png"]
    (out / "below").mkdir()
    for path in [*victims, out / "mine.png", out / "notes.txt"]:
        path.write_text("mine")
    (out / "00004.png").unlink()
    (out / "00004.png").symlink_to(tmp_path / "victim.png")
    record = record_of(out)
    bad = [
        "../victim.png",
        str(victims[1]),
        "below/mine.png",
        ".hidden.png",
        "notes.txt",
        "..",
        "",
        None,
        3,
        "below",
        "a\0.png",
    ]
    record["images"] += [{"file": name} for name in bad] + ["mine.png", None]
    (out / "samples.json").write_text(json.dumps(record))
    assert run(capsys, made / "run", "-n", 2, "--out", out, "--force")[0] == 0
    kept = [".hidden.png", "00000.png", "00001.png", "below", "grid.png", "mine.png", "notes.txt", "samples.json"]
    assert names_in(out) == kept
    assert {path.read_text() for path in victims} == {"mine"}
    for broken in ("[" * 100_000, "{}", '{"format": "hdit-samples/1", "images": 3}', "\udcff"):
        (out / "samples.json").write_text(broken, errors="surrogateescape")
        assert run(capsys, made / "run", "-n", 2, "--out", out, "--force")[0] == 0
        assert names_in(out) == kept
    words = ("--interpolate-seeds", "1:2", "-n", 2)
    assert run(capsys, made / "run", *words, "--out", out, "--force")[0] == 0
    assert "strip.png" in names_in(out) and "grid.png" not in names_in(out)


def test_a_set_broken_off_is_known_as_one(made, tmp_path, capsys, monkeypatch):
    from hdit_cli.engine.sampling import generate

    real, calls = generate.denoise_batch, []

    def second_fails(*words, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*words, **options)

    monkeypatch.setattr(generate, "denoise_batch", second_fails)
    out = tmp_path / "a"
    assert run(capsys, made / "run", "-n", 3, "--batch-size", 2, "--out", out)[0] == 75
    assert names_in(out) == ["00000.png", "00001.png", "samples.json"]
    assert record_of(out)["finished"] is False
    assert run(capsys, made / "run", "-n", 1, "--out", out, "--force")[0] == 0
    assert names_in(out) == ["00000.png", "grid.png", "samples.json"] and "finished" not in record_of(out)


def test_schedule_eta_rho_and_device_act_and_come_again(made, tmp_path, capsys):
    words = (made / "run", "-n", 1, "--steps", 4, "--device", "cpu", "--out")
    changes = {
        "plain": (),
        "same": ("--schedule", "karras", "--eta", 1, "--rho", 7),
        "schedule": ("--schedule", "exponential"),
        "eta": ("--eta", 0.5),
        "rho": ("--rho", 3),
    }
    pictures = {}
    for name, options in changes.items():
        assert run(capsys, *words, tmp_path / name, *options)[0] == 0
        pictures[name] = (tmp_path / name / "00000.png").read_bytes()
        again = tmp_path / f"{name}-again"
        assert run(capsys, "--from", tmp_path / name / "samples.json", "--out", again)[0] == 0
        assert (again / "00000.png").read_bytes() == pictures[name]
    assert pictures["plain"] == pictures["same"] and len(set(pictures.values())) == 4
    assert record_of(tmp_path / "eta")["sampling"]["eta"] == 0.5
    assert record_of(tmp_path / "eta")["environment"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sampler", "heun", "--eta", 0.5), "deterministic"),
        (("--schedule", "exponential", "--rho", 3), "--rho is of the karras schedule"),
        (("--eta", "nan"), "--eta"),
        (("--eta", "-0.1"), "--eta"),
        (("--rho", 0), "a number above 0, at most 100"),
        (("--rho", "inf"), "a number above 0, at most 100"),
        (("--schedule", "karas"), "did you mean 'karras'?"),
        (("--device", "gpu"), "no device 'gpu'"),
        (("--device", "meta"), "no device 'meta'"),
        (("--device", ""), "no device ''"),
    ],
)
def test_settings_that_cannot_act_are_told(words, told, made, tmp_path, capsys):
    assert told in refused(capsys, made / "run", *words, "-n", 1, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_records_from_anywhere(made, tmp_path, capsys):
    assert run(capsys, made / "run", "-n", 1, "--out", tmp_path / "a")[0] == 0
    good, file = record_of(tmp_path / "a"), tmp_path / "record.json"
    assert good["environment"]["device"] == "cpu"
    for changes in (
        {"n": "many"}, {"n": 0}, {"n": True}, {"label": []}, {"label": [3]}, {"checkpoint": 4}, {"weights": None},
        {"sampling": {**good["sampling"], "eta": float("nan")}}, {"sampling": {**good["sampling"], "steps": 2.5}},
        {"sampling": {**good["sampling"], "size": "big"}}, {"sampling": {**good["sampling"], "evil": 1}},
        {"sampling": []}, {"interpolate": {"seeds": [1, "b"]}}, {"environment": []}, {"init_image": {"path": 3}},
        {"n": 10**30}, {"sampling": {**good["sampling"], "steps": 10**30}}, {"sampling": {**good["sampling"], "rho": 10**400}},
        {"sampling": {**good["sampling"], "cfg": -(10**30)}}, {"sampling": {**good["sampling"], "size": [10**30, 8]}},
        {"sampling": {**good["sampling"], "cfg_interval": [float("nan"), 1.0]}},
    ):  # fmt: skip
        file.write_text(json.dumps({**good, **changes}))
        assert "is not a record of samples" in refused(capsys, "--from", file, "--out", tmp_path / "b")
    file.write_text(json.dumps({**good, "environment": {"device": "abacus"}}))
    code, _, err = run(capsys, "--from", file, "--out", tmp_path / "b")
    assert code == 0 and "made on abacus, and this is cpu" in err


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "\ud800.png"], ids=["too long", "no name"])
def test_a_record_that_names_what_no_file_can_be_called(name, made, tmp_path, capsys):
    folder = tmp_path / "a"
    assert run(capsys, made / "run", "-n", 1, "--steps", 1, "--out", folder)[0] == 0
    record = {**record_of(folder), "images": [{"file": name}]}
    (folder / "samples.json").write_text(json.dumps(record))
    assert run(capsys, made / "run", "-n", 1, "--steps", 1, "--out", folder, "--force")[0] == 0
    assert [image["file"] for image in record_of(folder)["images"]] == ["00000.png"]


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names there are UTF-8")
def test_a_folder_whose_name_is_no_utf_8(made, tmp_path, capsys):
    """As old systems and archives leave them: sampled, made again, exported, begun from."""
    runs = Path(os.fsdecode(bytes(tmp_path / "r") + b"\xff"))
    shutil.copytree(made / "run", runs)
    assert run(capsys, runs, "-n", 1, "--steps", 1, "--out", tmp_path / "a")[0] == 0
    assert record_of(tmp_path / "a")["checkpoint"] == str(runs)
    assert run(capsys, "--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b")[0] == 0
    for words in (
        ("export", runs, "--no-grid", "--out", os.fsdecode(bytes(tmp_path / "e") + b"\xff")),
        ("train", made / "tiny.toml", "--data", made / "data", "--run", tmp_path / "new", "--init", runs),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        assert stop.value.code == 0, capsys.readouterr().err
