"""`hdit sample`: from a picture, between samples, and again from a record."""

import json
import shutil

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
    assert "0.3 keeps much" in refused(capsys, *here, "--init-image", tmp_path / "p.png", "--strength", 0)
    assert not (tmp_path / "b").exists()
