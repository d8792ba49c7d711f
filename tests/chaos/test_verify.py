"""`hdit verify`: says what is whole and what is not, by line, by JSON and by exit code; changes nothing."""

import json
import shutil

import pytest
from harness import digests
from small import save
from typer.testing import CliRunner

from hdit_cli import cli
from hdit_cli.engine.run import checkpoint, header
from hdit_cli.errors import CheckpointError, DataError


def verify(*words):
    return CliRunner().invoke(cli.app, ["verify", *map(str, words)])


@pytest.fixture
def run(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def test_a_whole_run(run):
    done = verify(run)
    assert done.exit_code == 0
    assert [line.split()[::3] for line in done.stdout.splitlines()] == [
        ["step-00000001", "whole"],
        ["step-00000002", "whole"],
        ["ckpt.safetensors", "whole"],
    ]


def test_a_damaged_checkpoint(run):
    victim = run / "checkpoints" / checkpoint.step_name(1) / "optimizer.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\xff")
    before = digests(run)
    done = verify(run, "--json")
    assert isinstance(done.exception, CheckpointError)
    told = json.loads(done.stdout)
    assert not told["whole"]
    assert [entry["problem"] for entry in told["checked"]] == [
        "optimizer.safetensors has changed since it was written", "", "",
    ]  # fmt: skip
    assert digests(run) == before


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"x"), lambda p: p.unlink()])
def test_the_public_file_is_compared_too(run, change):
    change(run / "ckpt.safetensors")
    assert isinstance(verify(run).exception, CheckpointError)


@pytest.mark.parametrize("change", [lambda p: None, lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_the_public_file_alone_is_no_comfort(run, change):
    """Every checkpoint was set aside: `hdit train` refuses this run, and nothing says what the file should hold."""
    change(run / "ckpt.safetensors")
    for folder in list((run / "checkpoints").iterdir()):
        folder.rename(folder.with_name(f"{folder.name}.bad"))
    done = verify(run)
    assert isinstance(done.exception, CheckpointError)
    assert "no whole checkpoint to compare it with" in done.stdout


def test_a_run_that_trains_meanwhile_is_whole(run, monkeypatch):
    """While the second checkpoint is read two more are saved, and rotation removes the first two."""
    whole = checkpoint.verify

    def slow(folder):
        if folder.name == checkpoint.step_name(2):
            monkeypatch.undo()
            save(run, 3)
            save(run, 4)
        return whole(folder)

    monkeypatch.setattr(checkpoint, "verify", slow)
    done = verify(run, "--json")
    assert done.exit_code == 0, done.stdout
    names = [entry["name"] for entry in json.loads(done.stdout)["checked"]]
    assert names == [*(checkpoint.step_name(step) for step in (1, 3, 4)), "ckpt.safetensors"]


def test_nothing_to_verify(tmp_path):
    assert isinstance(verify(tmp_path).exception, CheckpointError)


def test_a_part_of_a_run_is_no_data_set(run):
    """A snapshot of averages has a manifest and no state.json."""
    folder = run / "checkpoints" / checkpoint.step_name(1)
    (folder / "state.json").unlink()
    assert isinstance(verify(folder).exception, CheckpointError)


def test_tensors_and_header_are_of_one_file_while_the_run_saves(run, monkeypatch):
    read_table = header.read_table

    def late(handle):
        table = read_table(handle)
        save(run, 3)
        return table

    before, told = checkpoint.read_tensors(run / "ckpt.safetensors")
    monkeypatch.setattr(header, "read_table", late)
    tensors, metadata = checkpoint.read_tensors(run / "ckpt.safetensors")
    assert metadata == told
    assert float(tensors["layer0.weight"][0]) == float(before["layer0.weight"][0])
    monkeypatch.undo()
    assert checkpoint.read_header(run / "ckpt.safetensors")["step"] == "3"  # by now another file


@pytest.mark.parametrize(("suffix", "at"), [(".tar", 700), (".idx", 13)])
def test_a_data_set(chaos_data, tmp_path, suffix, at):
    data = tmp_path / "data"
    shutil.copytree(chaos_data, data)
    assert verify(data).exit_code == 0
    victim = sorted(data.glob(f"*{suffix}"))[1]
    damaged = bytearray(victim.read_bytes())
    damaged[at] ^= 1
    victim.write_bytes(damaged)
    done = verify(data)
    assert isinstance(done.exception, DataError)
    whole = {line.split()[0]: line.split()[-1] == "whole" for line in done.stdout.splitlines()}
    assert whole == {"00000.tar": True, "00001.tar": False, "report.json": True}
