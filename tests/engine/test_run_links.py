"""Links inside a run, a data set and a folder of samples: nothing outside is written, cut or cleared away."""

import hashlib
import os
import shutil

import pytest
from tiny_run import tiny_recipe

from hdit_cli import cli, files
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.engine.run.checkpoint import list_steps
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import UsageError

LOGS = ["metrics.jsonl", "timing.jsonl", "validation.jsonl", ".lock"]
FOLDERS = ["samples", "checkpoints", "ema", "tensorboard", "wandb"]
RENAMED = ["recipe.toml", "ckpt.safetensors"]  # a file that is renamed into place takes the link's place


def recipe():
    return tiny_recipe(
        optimizer__warmup=0,
        train__steps=2,
        train__save_every=1,
        train__sample_every=0,
        train__log_every=1,
        train__batch_size=2,
    )


@pytest.fixture
def outside(tmp_path):
    """Another's folder, with what a run would cut, overwrite or clear away there."""
    folder = tmp_path / "outside"
    (folder / ".tmp-theirs").mkdir(parents=True)
    for name in (".tmp-theirs/a", ".tmp-b", "metrics.jsonl", "file", "step-00000009.txt"):
        (folder / name).write_text("theirs")
    return folder


def digests(folder):
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start(run, tiny_data):
    return train(run, recipe(), data=tiny_data, watch=lambda event: None)


@pytest.mark.parametrize("dangling", [False, True], ids=["", "dangling"])
@pytest.mark.parametrize("name", [*LOGS, *FOLDERS])
def test_a_link_inside_a_run_is_refused(tiny_data, tmp_path, outside, name, dangling):
    run = tmp_path / "run"
    run.mkdir()
    target = outside / ("nowhere" if dangling else "file" if name in LOGS else "")
    (run / name).symlink_to(target)
    before = digests(outside)
    with pytest.raises(UsageError, match="is a link") as caught:
        start(run, tiny_data)
    assert name in caught.value.message and caught.value.hint
    assert digests(outside) == before
    assert [path.name for path in run.iterdir()] == [name]


def test_a_link_to_a_folder_of_the_same_name_elsewhere(tiny_data, tmp_path):
    """`checkpoints` of another run: it would be gone on from, rotated and cleared."""
    other, run = tmp_path / "other", tmp_path / "run"
    start(other, tiny_data)
    run.mkdir()
    (run / "checkpoints").symlink_to(other / "checkpoints")
    before = digests(other)
    with pytest.raises(UsageError, match="is a link"):
        start(run, tiny_data)
    assert digests(other) == before


@pytest.mark.parametrize("name", RENAMED)
def test_a_file_takes_the_place_of_a_link(tiny_data, tmp_path, outside, name):
    run = tmp_path / "run"
    run.mkdir()
    target = outside / "file"
    target.write_text(recipe().to_toml() if name == "recipe.toml" else "theirs")
    (run / name).symlink_to(target)
    before = digests(outside)
    start(run, tiny_data)
    assert digests(outside) == before
    assert list_steps(run) == [1, 2]
    assert not (run / name).is_symlink()


def test_the_run_folder_itself_may_be_a_link(tiny_data, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    start(tmp_path / "run", tiny_data)
    assert list_steps(tmp_path / "real") == [1, 2]
    assert start(tmp_path / "run", tiny_data).step == 2


def test_a_copy_made_of_hard_links_stays_as_it_is(tiny_data, tmp_path):
    """`cp -al run backup`, and the run goes on."""
    run, backup = tmp_path / "run", tmp_path / "backup"
    start(run, tiny_data)
    shutil.copytree(run, backup, copy_function=os.link)
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    before = digests(backup)
    start(run, tiny_data)
    after = digests(backup)
    assert {name for name in before if after[name] != before[name]} <= {".lock"}
    assert digests(run)["metrics.jsonl"] == before["metrics.jsonl"]


def test_what_another_command_writes_into_a_run_survives_its_start(tiny_data, tmp_path):
    """`report`, `ema` or `export` are about to rename their file while `train` starts."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".tmp-dead-1").write_bytes(b"of a process that was killed")
    with files.replacing(run / "report.html") as handle:
        handle.write(b"<html>")
        start(run, tiny_data)
    assert (run / "report.html").read_bytes() == b"<html>"
    assert not list(run.glob(".tmp-*"))


# Other folders that are written to


def source(tmp_path):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.full((16, 16, 3), 40 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["held-out", ".prepare"])
def test_links_in_the_output_of_prepare(tmp_path, outside, name):
    out = tmp_path / "out"
    (out / ".prepare").mkdir(parents=True)
    if name == ".prepare":
        (out / ".prepare").rmdir()
    (out / name).symlink_to(outside)
    before = digests(outside)
    with pytest.raises(UsageError):
        prepare(source(tmp_path), out=out, options=PrepareOptions(size=(16, 16), hold_out=0.5), workers=1)
    assert digests(outside) == before


@pytest.mark.parametrize("name", ["00000.tar", "00000.idx", "manifest.json", "report.json", "preview.png"])
def test_files_of_prepare_take_the_place_of_links(tmp_path, outside, name):
    out = tmp_path / "out"
    (out / ".prepare").mkdir(parents=True)
    (out / name).symlink_to(outside / ("file" if name != "manifest.json" else "nowhere"))
    before = digests(outside)
    made = prepare(source(tmp_path), out=out, options=PrepareOptions(size=(16, 16)), workers=1)
    assert made.kept == 6
    assert digests(outside) == before
    assert not (out / name).is_symlink()


def test_links_in_a_folder_of_samples(tiny_data, tmp_path, outside):
    run, out = tmp_path / "run", tmp_path / "out"
    start(run, tiny_data)
    out.mkdir()
    for name in ("00000.png", "samples.json", "grid.png"):
        (out / name).symlink_to(outside / "file")
    (out / "00001.png").symlink_to(outside)  # a folder
    before = digests(outside)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", str(run), "-n", "2", "--steps", "1", "--out", str(out), "--force"])
    assert digests(outside) == before
    assert stop.value.code in (0, 2)
    if stop.value.code == 0:
        assert not any(path.is_symlink() for path in out.iterdir())


def test_links_where_scores_go(tiny_data, tmp_path, outside, capsys):
    """Scores are printed, whatever becomes of the log; a sweep's table has nowhere to go, which is told first."""
    run = tmp_path / "run"
    start(run, tiny_data)
    (run / "scores.jsonl").symlink_to(outside / "file")
    (run / "sweeps").symlink_to(outside)
    before, words = digests(outside), ["eval-fid", str(run), "-n", "4", "--steps", "1", "--metrics", "swd"]
    for extra, code, told in (([], 0, "not added to"), (["--sweep", "seed=0,1"], 2, "is a link")):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, *extra])
        said = capsys.readouterr()
        assert stop.value.code == code and told in said.out + said.err
    assert digests(outside) == before
