"""`hdit prepare` as a user types it: what is printed where, and what stops it."""

import json
import re

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from hdit_cli.commands.prepare import prepare
from hdit_cli.errors import DataError, HditError, UsageError

RUNNER = CliRunner()
APP = typer.Typer()
APP.command()(prepare)


def run(*arguments):
    return RUNNER.invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue"):
        folder = tmp_path / "my pictures" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (30 + number, 20), name).save(folder / f"{number}.png")
    (tmp_path / "my pictures" / "blue" / "broken.jpg").write_text("oops")
    return tmp_path / "my pictures"


def test_table_json_and_default_folder(pictures, tmp_path):
    made = run(pictures, "--size", "16x24", "--workers", "1")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "data" / "my pictures16x24" / "manifest.json").is_file()
    lines = [line.split() for line in made.stdout.splitlines()]
    for line in (["seen", "5"], ["kept", "4"], ["refused", "1"], ["class", "blue", "2"], ["not-a-picture", "1"]):
        assert line in lines
    assert re.search(r"5/5 .*image/s, kept=4, refused=1", made.stderr)
    again = run(pictures, "--size", "16X24", "--workers", "1", "--json")
    told = json.loads(again.stdout)
    assert again.exit_code == 0 and told["complete_before"] and told["classes"] == {"blue": 2, "red": 2}
    assert (told["seen"], told["kept"], told["refused"], told["side"]) == (5, 4, 1, 0)
    assert told["image_size"] == [16, 24] and told["first_refused"] == ["blue/broken.jpg", "not-a-picture"]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["nowhere"], DataError),
        (["my pictures", "--strict", "--workers", "1"], DataError),
        (["my pictures", "--size", "big"], UsageError),
        (["my pictures", "--fit", "stretch"], UsageError),
        (["my pictures", "--format", "gif"], UsageError),
        (["my pictures", "--background", "none at all"], UsageError),
        (["my pictures", "--workers", "0"], UsageError),
        (["my pictures", "--out", "my pictures/red"], UsageError),
    ],
)
def test_mistakes_are_told_with_a_hint(pictures, arguments, kind):
    ended = run(*arguments)
    assert isinstance(ended.exception, kind) and isinstance(ended.exception, HditError)
    assert ended.exception.hint and ended.exception.exit_code == {DataError: 3, UsageError: 2}[kind]


def test_held_out_pictures_are_told(pictures, tmp_path):
    made = run(pictures, "--size", "16", "--workers", "1", "--hold-out", "0.5", "--out", tmp_path / "out")
    count = len([*(tmp_path / "out").glob("held-out/manifest.json")])
    told = [line.split() for line in made.stdout.splitlines()]
    held = next(int(line[2]) for line in told if line[:2] == ["held", "out"])
    assert made.exit_code == 0 and bool(held) == bool(count)
    assert ("held-out pictures are a data set" in made.stdout) == bool(held)
    none = run(pictures, "--size", "16", "--workers", "1", "--hold-out", "1e-9", "--out", tmp_path / "none")
    assert ["held", "out", "0"] in [line.split() for line in none.stdout.splitlines()]
    assert "no picture fell under --hold-out" in none.stdout
    assert "held out" not in run(pictures, "--size", "16", "--workers", "1", "--out", tmp_path / "plain").stdout


def test_a_share_tells_what_is_missing_and_the_last_one_finishes(pictures, tmp_path):
    common = (pictures, "--size", "16", "--workers", "1", "--shard-size", "1", "--out", tmp_path / "out")
    first = run(*common, "--shards", "2/3")
    assert first.exit_code == 0 and "still missing: 3 shards, number 0, 2-3" in first.stdout, first.output
    told = json.loads(run(*common, "--shards", "2/3", "--json").stdout)
    assert (told["complete"], told["missing"], told["tasks"], told["own"]) == (False, [0, 2, 3], 5, 2)
    run(*common, "--shards", "1/3")
    last = run(*common, "--shards", "3/3")
    assert ["kept", "4"] in [line.split() for line in last.stdout.splitlines()]
    refused = run(*common, "--shards", "4/3")
    assert isinstance(refused.exception, UsageError) and "SLURM" in refused.exception.hint


def test_what_was_done_to_the_pictures_is_told(pictures, tmp_path):
    """Equal ones left out, small ones refused; `hdit info` tells the same."""
    from hdit_cli.commands.info import info

    Image.new("RGB", (90, 8)).save(pictures / "red" / "small.png")
    made = run(pictures, "--size", "32", "--workers", "1", "--dedupe", "--min-size", "10", "--out", tmp_path / "out")
    lines = [line.split() for line in made.stdout.splitlines()]
    for line in (["kept", "2"], ["duplicates", "2"], ["too-small", "1"], ["cropped", "2"], ["below", "32", "100.0%"]):
        assert line in lines, made.output
    assert "2 pictures equal an earlier one, in 2 groups; they were left out" in made.stdout
    app = typer.Typer()
    app.command()(info)
    told = json.loads(RUNNER.invoke(app, [str(tmp_path / "out"), "--json"]).stdout)
    assert told["duplicates"] == 2 and told["shorter_side"] == {"min": 20, "median": 20, "max": 20, "share_below": 1.0}
    assert told["codes"]["too-small"] == 1 and told["seen"] == 6
