"""`--precision` as typed: what it makes, what the record says, and what is refused."""

import json

import pytest

from hdit_cli import cli


def hdit(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def pictures(folder):
    return [path.read_bytes() for path in sorted(folder.glob("0*.png"))]


def test_a_record_makes_the_same_again(capsys, made, tmp_path):
    ours = ["sample", made / "run", "-n", 2, "--steps", 2, "--class", "rose", "--out"]
    assert hdit(capsys, *ours, tmp_path / "plain")[0] == 0
    assert hdit(capsys, *ours, tmp_path / "fp32", "--precision", "fp32")[0] == 0
    assert hdit(capsys, *ours, tmp_path / "bf16", "--precision", "bf16")[0] == 0
    told = {name: json.loads((tmp_path / name / "samples.json").read_text()) for name in ("plain", "fp32", "bf16")}
    assert {name: record["sampling"]["precision"] for name, record in told.items()} == {
        "plain": "fp32", "fp32": "fp32", "bf16": "bf16",
    }  # fmt: skip
    assert pictures(tmp_path / "plain") == pictures(tmp_path / "fp32") != pictures(tmp_path / "bf16")
    for name in told:
        assert (
            hdit(capsys, "sample", "--from", tmp_path / name / "samples.json", "--out", tmp_path / "again" / name)[0]
            == 0
        )
        assert pictures(tmp_path / "again" / name) == pictures(tmp_path / name)
    code, _, err = hdit(capsys, "sample", "--from", tmp_path / "bf16" / "samples.json", "--precision", "fp32")
    assert code == 2 and "leave out --precision" in err


def test_a_score_says_it(capsys, made):
    words = ["eval-fid", made / "run", "-n", 8, "--metrics", "swd", "--steps", 1, "--precision", "bf16"]
    code, out, _ = hdit(capsys, *words, "--json", "--reference", made / "data")
    assert code == 0 and json.loads(out)["sampling"]["precision"] == "bf16"
    code, out, _ = hdit(capsys, *words, "--reference", made / "data")
    assert code == 0 and ", bf16" in out


@pytest.mark.parametrize("command", ["sample", "eval-fid"])
def test_what_does_nothing_here_is_refused(capsys, made, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, err = hdit(capsys, command, made / "run", "--precision", "tf32", "--device", "cpu", "-n", 8)
    assert code == 2 and "NVIDIA" in err and "--precision fp32" in err and "Traceback" not in err
    assert hdit(capsys, command, made / "run", "--precision", "fp8")[0] == 2
    assert not list(tmp_path.iterdir())
    code, _, err = hdit(capsys, "eval-fid", made / "data", "--reference", made / "data", "--precision", "bf16")
    assert code == 2 and "leave out --precision" in err
