"""No number that makes no sense gets past the command line: exit 2 and one sentence, for every option of every command."""

import inspect
import math
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from hdit_cli import cli, runtime
from hdit_cli.commands import sampling
from hdit_cli.commands.numbers import real, whole
from hdit_cli.engine.launch import check_count
from hdit_cli.errors import UsageError

NONSENSE = [
    "nan",
    "inf",
    "-inf",
    "1e999",
    "99999999999999999999",
    "-99999999999999999999",
    "-1",
    "9" * 5000,
    "²",
    "x",
    "",
]


def told(capsys, *words):
    """Runs a command that must be refused; returns its one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    text = capsys.readouterr().err
    assert stop.value.code == 2, (words, text)
    assert len(re.findall(r"^error: ", text, re.MULTILINE)) == 1, (words, text)
    assert "hint: " in text and "bug" not in text and "Traceback" not in text, (words, text)
    assert max(map(len, text.splitlines())) < 250, (words, text)
    return text


def numbers():
    """(command, option) of every option that is a number, read from the functions themselves."""
    for command, (function, _) in cli.COMMANDS.items():
        hints = get_type_hints(function, include_extras=True)
        for name in inspect.signature(function).parameters:
            if get_origin(hints[name]) is not Annotated:
                continue
            kind, info = get_args(hints[name])[:2]
            kinds = set(get_args(kind)) if get_origin(kind) is UnionType else {kind}
            if kinds & {int, float}:
                words = (info.default, *(info.param_decls or ()))  # typer takes the first one for a default here
                decls = [word for word in words if isinstance(word, str) and word.startswith("-")]
                yield command, (decls or [f"--{name.strip('_').replace('_', '-')}"])[0]


def required(command):
    """What a command cannot do without, so that nothing but the number is wrong."""
    return {"recipe": [], "doctor": [], "ema": ["x", "--std", "0.05"]}.get(command, ["x"])


def test_the_walk_finds_the_options():
    found = set(numbers())
    assert {("sample", "-n"), ("train", "--processes"), ("prepare", "--hold-out"), ("eval-fid", "--cfg")} <= found
    assert len(found) > 20


@pytest.mark.parametrize(("command", "option"), sorted(numbers()), ids=lambda word: word)
def test_nonsense_is_refused(capsys, command, option):
    for value in NONSENSE:
        assert option in told(capsys, command, *required(command), option, value)


TEXTS = [
    ("sample", "--cfg-interval", ["nan", "nan:1", "0:inf", "1:0", "-1:2", ":", "1e999:2"]),
    ("sample", "--size", ["nan", "-1", "0", "²", "8x²", "9" * 5000, "99999999999999999999", "8x8x8", "1e3"]),
    ("sample", "--weights", ["nan", "inf", "-1", "1e999", "99999999999999999999", "²"]),
    ("sample", "--interpolate-seeds", ["1", "1:x", "0:-1", "0:nan", "0:99999999999999999999", "0:²"]),
    ("eval-fid", "--patch", ["0", "-1", "nan", "²"]),
    (
        "eval-fid",
        "--sweep",
        [f"cfg={v}" for v in ("nan", "1e-999999999", "inf", "-1", "1e999", "1:inf:1", "1:2:0", "1001", "²")],
    ),
    ("eval-fid", "--sweep", [f"steps={v}" for v in ("nan", "0", "-1", "1.5", "1e999", "99999999999999999999")]),
    ("eval-fid", "--sweep", [f"seed={v}" for v in ("nan", "-1", "99999999999999999999", "0:9e99:1e99")]),
    ("eval-fid", "--sweep", [f"weights={v}" for v in ("nan", "inf", "-1", "1e999")]),
    ("ema", "--std", ["nan", "inf", "-1", "1e999", "0.05,nan", "²", ""]),
    ("bench", "--sizes", ["nan", "-1", "0", "99999999999999999999", "²"]),
    ("bench", "--batches", ["nan", "-1", "0", "99999999999999999999"]),
    ("prepare", "--size", ["nan", "-1", "0", "99999999999999999999", "²"]),
    ("prepare", "--shards", ["nan", "0/1", "2/1", "-1/2", "1/99999999999999999999"]),
]


@pytest.mark.parametrize(("command", "option", "values"), TEXTS, ids=[f"{c} {o}{v[0]}" for c, o, v in TEXTS])
def test_nonsense_inside_a_text_is_refused(capsys, tmp_path, monkeypatch, command, option, values):
    monkeypatch.chdir(tmp_path)
    before = ["smoke/tiny"] if command == "bench" else ["x"]
    for value in values:
        told(capsys, command, *before, option, value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", ["train.steps=nan", "sample.cfg=nan", "sample.cfg=inf", "train.seed=-1", "optimizer.lr=1e999",
    "train.steps=99999999999999999999", f"train.steps={'9' * 5000}", "sample.cfg=-1", "train.batch_size=0"]
)  # fmt: skip
def test_nonsense_in_a_recipe_is_refused(capsys, tmp_path, change):
    words = ["train", "smoke/tiny", "--data", tmp_path, "--run", tmp_path / "run", "--set", change]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    text = capsys.readouterr().err
    assert stop.value.code == 2, text
    assert change.split("=")[0] in text and "bug" not in text
    assert not (tmp_path / "run").exists()


def test_the_ends_of_a_range_are_in_it():
    read = whole("-n", least=1, most=100)
    assert [read(word) for word in ("1", " 7 ", "+100", 5)] == [1, 7, 100, 5]
    share = real("--strength", least=0, most=1, above=True)
    assert [share(word) for word in ("1e-9", "1")] == [1e-9, 1.0]
    for word in ("0", "1.0000001", math.nan):
        with pytest.raises(UsageError, match="--strength"):
            share(word)
    assert sampling.read_seed(str(2**63 - 1)) == 2**63 - 1
    assert sampling.parse_interval("0.3:5") == (0.3, 5.0)
    assert sampling.parse_size("8x16") == (8, 16)


# More processes than devices


def test_more_processes_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(runtime, "places", lambda: (2, "core"))
    check_count(2, oversubscribe=False)
    check_count(3, oversubscribe=True)
    with pytest.raises(UsageError, match="--processes 3 are more than the 2 cores") as caught:
        check_count(3, oversubscribe=False)
    assert "--oversubscribe" in caught.value.hint
    monkeypatch.setattr(runtime, "places", lambda: (1, "GPU"))
    with pytest.raises(UsageError, match="more than the 1 GPU of"):
        check_count(2, oversubscribe=False)


@pytest.mark.parametrize("command", ["train", "sample", "eval-fid"])
def test_no_process_is_started_where_there_is_no_room(capsys, made, tmp_path, monkeypatch, command):
    """Without a stand-in for `Popen` this test could take the machine: it must never be reached."""
    started = []
    monkeypatch.setattr(runtime, "places", lambda: (2, "core"))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a) or pytest.fail("a process was started"))
    monkeypatch.chdir(tmp_path)
    words = {
        "train": ["train", made / "tiny.toml", "--data", made / "data"],
        "sample": ["sample", made / "run"],
        "eval-fid": ["eval-fid", made / "run", "--metrics", "swd", "-n", "8"],
    }[command]
    for count in (3, 1000):
        assert "--oversubscribe" in told(capsys, *words, "--processes", count)
    assert "add --processes" in told(capsys, *words, "--oversubscribe")
    assert started == []
    assert list(tmp_path.iterdir()) == []


def test_prepare_does_not_start_any_number_of_workers(capsys, pictures, tmp_path):
    assert "one per core" in told(capsys, "prepare", pictures, "--out", tmp_path / "o", "--workers", 1000)
    assert not (tmp_path / "o").exists()


# What a launcher says


def env(monkeypatch, **values):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "HDIT_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "broken",
    [
        {"RANK": "x"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "x"}, {"RANK": "1"}, {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "9" * 5000, "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1.0", "WORLD_SIZE": "2"}, {"RANK": "²", "WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
        {"HDIT_PROCESSES": "x"}, {"HDIT_PROCESSES": "2"},
    ],
    ids=lambda broken: " ".join(f"{name}={value[:9]}" for name, value in broken.items()),
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "sample", "eval-fid"])
def test_a_broken_environment_of_a_launcher(capsys, made, tmp_path, monkeypatch, command, broken):
    env(monkeypatch, **broken)
    words = {
        "train": ["train", made / "tiny.toml", "--data", made / "data", "--run", tmp_path / "run", "--fresh"],
        "sample": ["sample", made / "run", "--out", tmp_path / "s"],
        "eval-fid": ["eval-fid", made / "run", "--metrics", "swd", "-n", "8"],
    }[command]
    monkeypatch.setattr("hdit_cli.engine.launch._end_with_launcher", lambda: None)
    text = told(capsys, *words)
    assert any(word in text for word in ("torchrun", "--processes N"))
    assert list(tmp_path.iterdir()) == []


def test_processes_under_a_launcher(capsys, made, tmp_path, monkeypatch):
    env(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert "leave --processes out" in told(capsys, "sample", made / "run", "--out", tmp_path / "s", "--processes", 2)


def test_an_empty_rank_is_none(monkeypatch):
    env(monkeypatch, RANK="", WORLD_SIZE="")
    assert runtime.ranks() == runtime.Ranks(0, 1)


def test_a_cache_in_nobodys_home(monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UsageError, match="HDIT_CACHE"):
        runtime.cache_folder()
    monkeypatch.setenv("HDIT_CACHE", "~/cache")
    assert runtime.cache_folder() == Path.home() / "cache"
