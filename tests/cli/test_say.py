"""What is printed: nothing that a class, file or weight is called reaches the terminal as anything but text."""

import io
import json
import re
import sys

import pytest
from safetensors.torch import save_file
from torch import zeros

from hdit_cli import cli
from hdit_cli.commands import progress
from hdit_cli.commands.say import say, say_json, shown

EVIL = "\x1b[31mrose\x07\x9b2J\u202eposed\n\rerror: forged"
ACTED_UPON = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def run(capsys, *words, code):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    assert stop.value.code == code, printed.err
    assert not ACTED_UPON.search(printed.out + printed.err)
    return printed


def test_what_a_terminal_acts_upon_is_written_out():
    assert shown(EVIL) == r"\x1b[31mrose\x07\x9b2J\u202eposed\n\rerror: forged"
    assert shown("Größe 花 👩‍👩‍👧 naïve\tx") == "Größe 花 👩‍👩‍👧 naïve x"
    assert shown("caf\udce9") == r"caf\udce9"  # a name on the disk that is no UTF-8


def test_each_argument_is_one_line(capsys):
    say("a\nb", "c")
    assert capsys.readouterr().out == "a\\nb\nc\n"


def test_json_stays_json_and_is_as_harmless(capsys):
    value = {"class": EVIL, "half": "\udce9", "name": "Größe"}
    say_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert "Größe" in text
    assert not ACTED_UPON.search(text)


def test_a_letter_that_the_terminal_lacks_is_written_out(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("Größe 花")
    stream.seek(0)
    assert stream.read() == "Gr\\xf6\\xdfe \\u82b1\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_labels_and_lines_of_a_bar(monkeypatch, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(total=3, unit="image", label=EVIL) as bar:
        bar.write_line(EVIL)
        bar.set_postfix_str(EVIL)
        bar.refresh()
        bar.update(3)
    text = stream.getvalue()
    assert r"\x1b[31mrose" in text
    assert "\x1b[31m" not in text
    assert not re.search(r"[\x07\x9b\u202e]", text)


def test_errors_of_every_kind(tmp_path, capsys):
    place = tmp_path / EVIL.replace("/", "")
    assert r"\x1b[31mrose\x07" in run(capsys, "sample", place, code=4).err
    assert run(capsys, "sample", place, code=4).err.count("\n") == 2  # the message and its hint
    assert r"\x1b" in run(capsys, "info", place, "--debug", code=2).err  # a traceback too
    assert r"\x1b" in run(capsys, "info", "a", place, code=2).err  # typer's own words
    assert r"\x1b" in run(capsys, "export", "a", "--to", EVIL, code=2).err
    save_file({EVIL: zeros(2)}, tmp_path / "a.safetensors", {"hdit.format": EVIL, "config": EVIL})
    run(capsys, "info", tmp_path / "a.safetensors", code=4)
    run(capsys, "convert", tmp_path / "a.safetensors", "--out", tmp_path / "b", code=4)


def test_usage_errors_look_as_they_did(capsys):
    text = run(capsys, "export", "a", "--wrong", code=2).err
    assert "Usage: hdit export" in text
    assert "Try 'hdit export -h' for help." in text
    assert "No such option: --wrong" in text


def test_names_of_classes(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    for name in ("\x1b[31mrose", "tulip\x9b"):
        (tmp_path / "src" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "src" / name / "\x1b]0;title\x07.png")
    words = ["prepare", tmp_path / "src", "--out", tmp_path / "data", "--size", "16", "--workers", "1"]
    assert r"class \x1b[31mrose" in run(capsys, *words, code=0).out
    assert r"\x1b[31mrose" in run(capsys, "info", tmp_path / "data", code=0).out
    facts = json.loads(run(capsys, "info", tmp_path / "data", "--json", code=0).out)
    assert set(facts["classes"]) == {"\x1b[31mrose", "tulip\x9b"}
