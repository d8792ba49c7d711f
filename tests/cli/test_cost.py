"""`hdit train --dry-run` and `--find-batch`, as typed."""

import json

import pytest

from hdit_cli import cli
from hdit_cli.commands.cost import parse_memory
from hdit_cli.errors import UsageError


def hdit(capsys, *words):
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


@pytest.fixture
def train(made, tmp_path, monkeypatch):
    """The start of a command in an empty folder, in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    yield ["train", made / "tiny.toml", "--data", made / "data"]
    assert list(tmp_path.iterdir()) == []


def test_dry_run(train, capsys):
    code, out, _ = hdit(capsys, *train, "--dry-run", "--set", "optimizer.schedule=cosine")
    assert code == 0
    for words in (
        "parameters",
        "GMAC",
        "an epoch",
        "cosine: 0.0005 at step 0",
        "activations",
        "estimated",
        "s for 1,000 steps",
    ):
        assert words in out


def test_dry_run_as_json(train, capsys):
    code, out, err = hdit(capsys, *train, "--dry-run", "--json", "--processes", "2")
    facts = json.loads(out)
    assert (code, err, facts["micro_batch"], facts["processes"]) == (0, "", 2, 2)
    assert facts["trial"]["peak_bytes"] > facts["memory"]["weights"]


def test_find_batch(train, capsys):
    code, out, err = hdit(capsys, *train, "--find-batch", "--memory", "1M", "--set", "train.batch_size=64")
    assert code == 0
    assert "does not fit" in out and "--set train.batch_size=64 --set train.accumulate=" in out
    assert "fits" in err  # as it goes


def test_find_batch_as_json(train, capsys):
    code, out, _ = hdit(capsys, *train, "--find-batch", "--memory", "1M", "--json", "--set", "train.batch_size=64")
    facts = json.loads(out)
    assert code == 0 and facts["set"]["train.batch_size"] == 64
    assert [each["images"] for each in facts["tries"]] == sorted(each["images"] for each in facts["tries"])


def test_too_little_memory_is_6_with_switches(train, capsys):
    code, out, err = hdit(capsys, *train, "--find-batch", "--memory", "64K")
    assert (code, out) == (6, "")
    assert "at batch 1" in err and "hint: what helps: --set " in err


def test_a_dry_run_that_the_system_would_kill_is_6(train, capsys):
    code, out, err = hdit(capsys, *train, "--dry-run", "--set", "train.batch_size=1048576")
    assert code == 6 and "estimated" in out
    assert "at batch 1048576" in err and "--set train.accumulate=" in err
    assert hdit(capsys, *train, "--set", "train.batch_size=1048576", "--run", train[1].parent / "much")[0] == 6


def test_refusals(train, capsys, monkeypatch):
    assert hdit(capsys, *train, "--dry-run", "--find-batch")[0] == 2
    assert "--find-batch" in hdit(capsys, *train, "--memory", "8G")[2]
    assert "8G" in hdit(capsys, *train, "--find-batch", "--memory", "much")[2]
    assert hdit(capsys, *train, "--dry-run", "--processes", "3")[0] == 2
    assert hdit(capsys, *train, "--dry-run", "--processes", "0")[0] == 2
    monkeypatch.setenv("RANK", "0")
    assert "launcher" in hdit(capsys, *train, "--dry-run")[2]


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 * 2**30), ("1.5g", 3 * 2**29), ("512MiB", 2**29), ("64 KB", 2**16), ("100", 100), (None, None)],
)
def test_parse_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "1e9", "8 apples", "1" * 50])
def test_parse_memory_refuses(text):
    with pytest.raises(UsageError, match="not an amount"):
        parse_memory(text)
