"""What file systems hold: links, pipes, odd names, files that change under the reader. One verdict for each name."""

import contextlib
import json
import os
import socket

import badimages
import pytest
from badimages import H, W

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.pictures import process as process_module
from hdit_cli.data.prepare.pictures.process import process
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.places import Place, open_place

OPTIONS = PrepareOptions(size=(H, W), format="png")
GOOD = badimages.VALID["png"]

KEPT = [
    ".hidden.jpg", "no suffix", "a.b.c.jpg", "__meta__.jpg", "-rf.jpg", "A.jpg", "a.JPG", "new\nline.jpg", "tab\t.jpg",
    'quote".jpg', "it's.jpg", "%d.jpg", "{0..9}.jpg", "a::b.jpg", "#.jpg", "?.jpg", "*.jpg", "$(touch x).jpg", "`x`.jpg", "|x.jpg",
    "\u202egpj.exe", "e\u0301.jpg", "\u00e9.jpg", "花.jpg", "x" * 251 + ".jpg", " .jpg", "..hidden/1.jpg", "con/1.jpg",
    "a/b/c/1.jpg", "~.jpg", "\\.jpg",
]  # fmt: skip


def write(path, data=GOOD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def refusals(folder):
    lines = json.loads((folder / "report.json").read_text())["files"]
    return {line["path"]: line["code"] for line in lines if line["verdict"] == "refused"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the file system of a Unix")
def test_all_that_a_folder_may_hold(tmp_path):
    source = tmp_path / "in"
    for name in KEPT:
        write(source / name)
    (source / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(GOOD)
    write(tmp_path / "elsewhere" / "far.png")
    os.link(source / "A.jpg", source / "hard link.jpg")
    (source / "link.jpg").symlink_to("A.jpg")
    (source / "link out.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (source / "link to folder").symlink_to(tmp_path / "elsewhere")
    (source / "d.jpg").mkdir()
    write(source / "d.jpg" / "1.png")
    refused = {
        "loop": "symlink-loop", "self": "symlink-loop", "dangling.jpg": "broken-link", "a.jpg pipe": "not-a-file",
        "b.png": "not-a-file", "zero.jpg": "not-a-file", "empty.jpg": "empty",
    }  # fmt: skip
    (source / "loop").symlink_to(source)
    (source / "self").symlink_to("self")
    (source / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(source / "a.jpg pipe")
    (source / "zero.jpg").symlink_to("/dev/zero")
    (source / "empty.jpg").write_bytes(b"")
    (source / "empty class").mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        previous = os.getcwd()
        os.chdir(source)  # the name of a socket may have some 100 bytes
        try:
            listening.bind("b.png")
        finally:
            os.chdir(previous)
    if os.geteuid():
        write(source / "secret.jpg")
        (source / "secret.jpg").chmod(0)
        refused["secret.jpg"] = "unreadable"
    report = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=2)
    assert refusals(tmp_path / "out") == refused
    assert (
        report.kept == len(KEPT) + 6 and report.refused == len(refused) and report.seen == report.kept + report.refused
    )
    print(f"{report.seen} names in a folder, {report.refused} refused")


def test_many_classes_of_one_picture_each(tmp_path):
    """And one folder with nothing but a text, which is no class."""
    for number in range(300):
        write(tmp_path / "in" / f"class {number}" / "1.png")
    write(tmp_path / "in" / "none" / "readme.txt", b"")
    report = prepare(tmp_path / "in", out=tmp_path / "out", options=OPTIONS, workers=2)
    assert report.kept == 300 and len(report.classes) == 300


def test_one_picture_fewer_than_a_shard_and_a_path_of_4000_letters(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    previous = os.getcwd()
    os.chdir(folder)  # a path this long can only be made step by step
    try:
        for _ in range(15):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        with open("deep.png", "wb") as file:
            file.write(GOOD)
    finally:
        os.chdir(previous)
    report = prepare(folder, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert (report.kept, report.shards, report.seen) == (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda path: path.unlink(), ("unreadable",)),
        (lambda path: path.write_bytes(GOOD[: len(GOOD) // 2]), ("truncated",)),
        (lambda path: path.write_bytes(b""), ("empty",)),
        (lambda path: path.write_bytes(GOOD + GOOD), ()),
        (lambda path: (path.unlink(), path.mkdir()), ("unreadable", "not-a-file")),
        (lambda path: (path.unlink(), os.mkfifo(path)), ("not-a-file",)),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), ("not-a-file",)),
        (lambda path: (path.unlink(), path.symlink_to(path)), ("unreadable",)),
    ],
    ids=["removed", "cut", "emptied", "grown", "folder", "pipe", "device", "loop"],
)
def test_files_that_change_after_they_were_listed(tmp_path, change, codes):
    path = tmp_path / "1.png"
    write(path)
    entry = Entry("1.png", Place(str(path), "file", 0, len(GOOD)))
    change(path)
    outcome = process(entry, OPTIONS)
    assert outcome.codes[:1] == codes[:1] or outcome.codes[0] in codes


@pytest.mark.parametrize("cut", [0, 1, 8, 500, len(GOOD) - 30])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch, cut):
    path = tmp_path / "1.png"
    write(path)

    def opened(place):
        stream = open_place(place)
        path.write_bytes(GOOD[:cut])
        return stream

    monkeypatch.setattr(process_module, "open_place", opened)
    outcome = process(Entry("1.png", Place(str(path), "file", 0, len(GOOD))), OPTIONS)
    assert outcome.verdict == "refused"
    assert outcome.codes[0] in ("empty", "not-a-picture", "truncated", "damaged")
