"""Folders that were taken for classes and look as if they were none: one note, on stderr and in the report, nothing else."""

import json

import pytest
from sources import OPTIONS, listed, picture, write_folder, write_tar, write_zip

from hdit_cli.commands.account import print_report
from hdit_cli.data.prepare import prepare
from hdit_cli.data.prepare.sources.layout import Layout


def notes(*paths, labels=None):
    """Notes on pictures at these paths; classes are their first folders where no labels are given."""
    layout = Layout()
    for path in paths:
        group = path.partition("/")[0] if "/" in path else None
        layout.see(path, (labels or {}).get(path, group))
    return layout.notes([])


@pytest.mark.parametrize("names", [
    ("train", "val", "test"), ("training", "validation"), ("Train", "Test"), ("train2017", "val2017"),
    ("train_images", "test_images"),
    ("train", "val", "annotations"), ("test",), ("train", "held-out"),
])  # fmt: skip
def test_parts_of_a_data_set_are_no_kinds_of_picture(names):
    (told,) = notes(*(f"{name}/{number}.png" for name in names for number in range(2)))
    assert "split" in told and "validation.path" in told


@pytest.mark.parametrize("names", [
    ("00000", "00001"), ("00000",), ("0000", "0042", "1000"), ("part_1", "part_2"), ("chunk-0", "chunk-10"), ("batch01", "batch02"),
])  # fmt: skip
def test_numbered_portions(names):
    (told,) = notes(*(f"{name}/1.png" for name in names))
    assert "--set model.classes=0" in told


@pytest.mark.parametrize("names", [
    ("rose", "tulip"), ("0", "1", "10"), ("001.Albatross", "002.Auklet"), ("n01440764", "n01443537"), ("trains",),
    ("train", "bus", "car"), ("testing ground", "validated"), ("00000", "rose"), ("2 euro", "1 euro"),
])  # fmt: skip
def test_plain_classes_get_no_note(names):
    assert notes(*(f"{name}/{number}.png" for name in names for number in range(2))) == []


def test_one_folder_around_the_classes():
    (told,) = notes("birds/crow/1.png", "birds/owl/2.png")
    assert "the one folder birds" in told and "crow, owl" in told
    (told,) = notes("train/crow/1.png", "train/owl/2.png")
    assert "the one folder train" in told
    loose = ("birds/1.png", "birds/owl/2.png"), ("birds/a/1.png", "birds/b/2.png", "3.png")
    for paths in (*loose, ("birds/crow/1.png", "birds/crow/2.png")):
        assert notes(*paths) == []


def test_classes_that_tables_or_labels_tell_get_no_note():
    paths = ("00000/1.png", "00000/2.png", "train/3.png")
    assert notes(*paths, labels=dict(zip(paths, ("3", "5", "3"), strict=True))) == []


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "several"])
def test_sources_of_every_kind(tmp_path, kind):
    files = {"birds/crow/1.png": picture(1), "birds/owl/2.png": picture(2), ".git/x.png": picture(3)}
    sources = {
        "folder": lambda: write_folder(tmp_path / "in", files),
        "zip": lambda: write_zip(tmp_path / "in.zip", files),
        "tar": lambda: write_tar(tmp_path / "in.tar", list(files.items())),
        "several": lambda: write_folder(tmp_path / "in", files),
    }
    source = sources[kind]()
    more = [write_folder(tmp_path / "more", {"birds/crow/7.png": picture(7)})] if kind == "several" else []
    (told,) = listed(source, *more)[0].layout.notes([source])
    assert f"hdit prepare {source}/birds" in told if source.is_dir() else "unpack it" in told


def test_on_stderr_in_the_report_and_again_when_it_is_complete(tmp_path, capsys):
    files = {
        f"{name}/{number}.png": picture(number) for number, name in enumerate(("my train", "train", "val", "test"))
    }
    del files["my train/0.png"]
    source = write_folder(tmp_path / "my pictures", files)
    for _ in range(2):
        report = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
        print_report(report, as_json=True, asked_to_hold_out=False)
        captured = capsys.readouterr()
        assert captured.err.startswith("note: the classes test, train, val are called like the parts")
        assert f"hdit prepare '{source}/train'" in captured.err and captured.err.count("\n") == 1
        assert json.loads(captured.out)["notes"] == report.notes != []
    assert json.loads((tmp_path / "out" / "report.json").read_text())["notes"] == report.notes
    plain = write_folder(tmp_path / "plain", {"rose/1.png": picture(1)})
    prepare(plain, out=tmp_path / "two", options=OPTIONS, workers=1)
    assert "notes" not in json.loads((tmp_path / "two" / "report.json").read_text())
