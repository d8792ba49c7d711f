"""The help of all commands side by side: one grammar of names, values, choices and defaults."""

import re

import pytest

from hdit_cli import catalog, cli

KINDS = [
    "N",
    "X",
    "TEXT",
    "NAME",
    "PATH",
    "FILE",
    "DIR",
    "CKPT",
    "SIZE",
    "COLOUR",
    "HxW",
    "I/N",
    "LO:HI",
    "KEY=VALUE",
    "NAME=VALUES",
    "A:B[:C...]",
    "N,...",
    "X,...",
    "NAME,...",
    "A,B",
    "L,T,R,B",
]
VALUE = re.compile(rf"{'|'.join(map(re.escape, KINDS))}|[a-z0-9-]+(?:\|[a-z0-9-]+)+")
OPTION = re.compile(r"(?:-[a-z], )?-{1,2}[a-z-]+(?: / --[a-z-]+)?(?: (\S+))?")


def help_of(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def rows(text, title):
    """(left column, help in one line) of a section."""
    section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n  (?=\S)", "\n" + section)[1:]
    return [
        (re.split(r" {2,}|\n", entry, maxsplit=1)[0], re.sub(r"(?<=[a-z]-) ", "", " ".join(entry.split())))
        for entry in entries
    ]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_one_grammar(command, capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, command)
    assert re.match(rf"Usage: hdit {command} \[OPTIONS\](?: (?:[A-Z_]+|\[[A-Z_]+\])(?:\.\.\.)?)?\n", text)
    for left, _ in rows(text, "Arguments"):
        assert re.fullmatch("[A-Z_]+", left), left
    for left, told in rows(text, "Options"):
        found = OPTION.fullmatch(left)
        assert found and (found[1] is None or VALUE.fullmatch(found[1])), left
        said = re.sub(r"  ?\[(default: [^(\s][^\]]*|required)\]", "", told)
        assert "[default" not in said and "(default" not in said and "range]" not in said, told
        assert said.rstrip().rstrip("]").endswith("."), told
    assert "<str>" not in text and "default: (" not in text and "default: none" not in text.lower()


def test_what_can_be_chosen_is_listed(capsys, monkeypatch):
    for command in ("sample", "eval-fid"):
        text = help_of(capsys, monkeypatch, command)
        said = dict(rows(text, "Options"))
        assert all(f"{name}" in said["--sampler NAME"] for name in catalog.names("sampler"))
        assert "--schedule karras|exponential" in said
        if command == "eval-fid":
            assert all(name in said["--metrics NAME,..."] for name in catalog.names("metric"))


def test_shared_options_read_the_same(capsys, monkeypatch):
    first, second = (dict(rows(help_of(capsys, monkeypatch, name), "Options")) for name in ("sample", "eval-fid"))
    for left in (
        "--steps N",
        "--eta X",
        "--rho X",
        "--class NAME",
        "--cfg X",
        "--cfg-channels N",
        "--size HxW",
        "--device NAME",
        "--seed N",
    ):
        assert first[left] == second[left]
