"""What is found in folders, zips and tars: order, classes, captions, and what is no file at all. Nothing blocks."""

import errno
import gzip
import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest

from hdit_cli.data.prepare.sources.places import open_place, read_small
from hdit_cli.data.prepare.sources.refused import Refused
from hdit_cli.data.prepare.sources.scan import scan as scan_all
from hdit_cli.data.prepare.sources.scan import source_name
from hdit_cli.errors import DataError


def scan(*sources):
    """A listing that was told to its end, with its entries."""
    listing = scan_all(sources)
    listing.entries = list(listing.stream())
    return listing


def fill(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def told(listing):
    return {entry.path: (entry.group, entry.code) for entry in listing.entries}


def zipped(path, names, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return path


def tarred(path, members):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_first_folders_are_classes_in_the_order_of_bytes(tmp_path):
    names = ["rose/b.jpg", "rose/deep/er/a.jpg", "10/x.jpg", "9/x.jpg", "Äh/x.jpg", "top.jpg", "empty.only/readme.md"]
    listing = scan(fill(tmp_path, names))
    assert listing.classes == ["10", "9", "rose", "Äh"]
    assert [entry.path for entry in listing.entries] == sorted(names, key=str.encode)
    assert told(listing)["rose/deep/er/a.jpg"] == ("rose", "") and told(listing)["top.jpg"] == (None, "")


def test_side_files_and_captions(tmp_path):
    names = [
        "a.jpg",
        "a.txt",
        "b.jpg",
        "b.json",
        "c.TXT",
        "d.csv",
        "e.jsonl",
        "LICENSE.md",
        "._a.txt",
        "x/a.png",
        "x/a.txt",
    ]
    listing = scan(fill(tmp_path, names))
    codes = {path: code for path, (_, code) in told(listing).items()}
    assert codes == {
        "a.jpg": "", "a.txt": "caption", "b.jpg": "", "b.json": "side-file", "c.TXT": "side-file", "d.csv": "side-file",
        "e.jsonl": "side-file", "LICENSE.md": "side-file", "._a.txt": "", "x/a.png": "", "x/a.txt": "caption",
    }  # fmt: skip
    captions = {e.path: read_small(e.caption, limit=99) for e in listing.entries if e.caption}
    assert captions == {"a.jpg": b"a.txt", "x/a.png": b"x/a.txt"}


def test_what_is_no_file_is_refused_and_blocks_nothing(tmp_path):
    fill(tmp_path, ["class/good.jpg", "other/z.jpg"])
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket must be short
        try:
            listener.bind("socket.png")
        finally:
            os.chdir(before)
    os.symlink("gone.jpg", tmp_path / "dangling.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.symlink("..", tmp_path / "class" / "up")
    os.symlink("/dev/zero", tmp_path / "zero.jpg")
    os.symlink("class/good.jpg", tmp_path / "linked.jpg")
    os.symlink("other", tmp_path / "same")
    found = told(scan(tmp_path))
    assert found == {
        "class/good.jpg": ("class", ""), "other/z.jpg": ("other", ""), "same/z.jpg": ("same", ""), "linked.jpg": (None, ""),
        "fifo.jpg": (None, "not-a-file"), "socket.png": (None, "not-a-file"), "zero.jpg": (None, "not-a-file"),
        "dangling.jpg": (None, "broken-link"), "loop.jpg": (None, "symlink-loop"), "class/up": (None, "symlink-loop"),
    }  # fmt: skip


def test_links_between_folders_in_a_circle_end(tmp_path):
    fill(tmp_path, ["a/x.jpg", "b/y.jpg"])
    os.symlink("../b", tmp_path / "a" / "to_b")
    os.symlink("../a", tmp_path / "b" / "to_a")
    found = told(scan(tmp_path))
    assert found["a/to_b/y.jpg"] == ("a", "") and found["a/to_b/to_a"] == (None, "symlink-loop")


def test_files_that_change_or_hide_after_the_scan_are_refused(tmp_path):
    listing = scan(fill(tmp_path, ["a.jpg", "b.jpg"]))
    places = [entry.place for entry in listing.entries]
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").unlink()
    for place, code in zip(places, ("not-a-file", "unreadable"), strict=True):
        with pytest.raises(Refused) as caught:
            open_place(place)
        assert caught.value.code == code


def test_unreadable_files_and_folders_are_refused(tmp_path, monkeypatch):
    """Denied by the seam, since a test may run as root, whom nothing is denied."""
    listing = scan(fill(tmp_path, ["a.jpg", "shut/b.jpg"]))

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(Refused) as caught:
        patch.setattr(os, "open", denied)
        open_place(listing.entries[0].place)
    assert caught.value.code == "unreadable" and "EACCES" in caught.value.detail
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: denied() if os.fspath(path).endswith(b"shut") else real(path))
    assert told(scan(tmp_path)) == {"a.jpg": (None, ""), "shut": (None, "unreadable")}


def test_strange_names_are_told_as_utf8(tmp_path):
    fill(tmp_path, ["a b#?%d{0}.jpg", "new\nline.jpg", "-dash.jpg", "花.jpg", ".hidden.jpg"])
    raw = os.path.join(os.fsencode(tmp_path), b"latin-\xe9.jpg")
    with open(raw, "wb") as handle:
        handle.write(b"bytes")
    listing = scan(tmp_path)
    strange = next(entry for entry in listing.entries if entry.path.startswith("latin"))
    assert strange.path == "latin-\\xe9.jpg" and read_small(strange.place, limit=9) == b"bytes"
    assert all(entry.path.encode() for entry in listing.entries) and len(listing.entries) == 6


def test_zip_like_a_folder(tmp_path):
    names = ["rose/b.jpg", "daisy/deep/a.jpg", "daisy/deep/a.txt", "top.jpg", "__MACOSX/rose/._b.jpg", "../out.jpg"]
    listing = scan(zipped(tmp_path / "pictures.zip", [*names, "void/"], compression=zipfile.ZIP_DEFLATED))
    assert listing.classes == ["daisy", "rose"] and listing.source()["kind"] == "zip" and listing.name == "pictures"
    assert told(listing) == {
        "rose/b.jpg": ("rose", ""), "daisy/deep/a.jpg": ("daisy", ""), "daisy/deep/a.txt": ("daisy", "caption"),
        "top.jpg": (None, ""), "__MACOSX": (None, "passed-over"), "../out.jpg": (None, "bad-path"),
    }  # fmt: skip
    for entry in listing.entries:
        if entry.place:
            assert read_small(entry.place, limit=99) == entry.path.encode()


def test_the_folder_a_zip_is_named_after_is_no_class(tmp_path):
    inner = ["pictures/rose/b.jpg", "pictures/daisy/a.jpg", "pictures/c.jpg"]
    assert scan(zipped(tmp_path / "pictures.zip", [*inner, "__MACOSX/pictures/._c.jpg"])).classes == ["daisy", "rose"]
    assert scan(zipped(tmp_path / "other.zip", inner)).classes == ["pictures"]


def test_damaged_zip_members_are_refused(tmp_path):
    path = zipped(tmp_path / "z.zip", ["a.jpg" * 9, "b.jpg"])
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"a.jpg" * 9, 60) + 5] ^= 1  # the content, not the name
    path.write_bytes(raw)
    listing = scan(path)
    with pytest.raises(Refused) as caught:
        open_place(listing.entries[0].place)
    assert caught.value.code == "damaged"
    assert read_small(listing.entries[1].place, limit=9) == b"b.jpg"


def test_tars_keep_their_labels_and_captions(tmp_path):
    members = [
        ("000.jpg", b"zero"), ("000.cls", b"10"), ("000.txt", b"words"),
        ("001.cls", b"9\n"), ("001.png", b"one"),
        ("002.jpg", b"two"), ("002.json", b'{"label": "tulip"}'),
        ("rose/003.x.jpg", b"three"), ("004.jpg", b"four"), ("004.json", b"not json"),
    ]  # fmt: skip
    listing = scan(tarred(tmp_path / "t.tar", members))
    assert listing.classes == ["9", "10", "rose", "tulip"]
    found = told(listing)
    pictures = ("000.jpg", "001.png", "002.jpg", "rose/003.x.jpg", "004.jpg")
    assert [found[name] for name in pictures] == [("10", ""), ("9", ""), ("tulip", ""), ("rose", ""), (None, "")]
    assert found["000.cls"][1] == "label" and found["000.txt"][1] == "caption" and found["002.json"][1] == "side-file"
    by_path = {entry.path: entry for entry in listing.entries}
    assert read_small(by_path["000.jpg"].place, limit=9) == b"zero"
    assert read_small(by_path["000.jpg"].caption, limit=9) == b"words"


def test_a_folder_of_tars_and_damaged_tars(tmp_path):
    tarred(tmp_path / "0.tar", [("a/x.jpg", b"x" * 600), ("b/y.jpg", b"y" * 600)])
    raw = bytearray((tmp_path / "0.tar").read_bytes())
    (tmp_path / "1.tar").write_bytes(raw[:2048])  # ends inside the second header's data
    (tmp_path / "2.tar").write_bytes(bytes(raw[: 512 + 1024]) + b"\xff" * 512 + bytes(raw[2048:]))
    (tmp_path / "3.tar").write_bytes(b"<html>")
    found = told(scan(tmp_path))
    assert found["0.tar/a/x.jpg"] == ("a", "") and found["0.tar/b/y.jpg"] == ("b", "")
    for name in ("1.tar", "2.tar", "3.tar"):
        assert found[name] == (None, "damaged")
    assert found["2.tar/a/x.jpg"] == ("a", "")


def test_links_and_devices_in_tars_are_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert {code for _, code in told(scan(tmp_path / "t.tar")).values()} == {"not-a-file"}


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.bin").write_text("hello")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(tarred(tmp_path / "t.tar", [("a.jpg", b"a")]).read_bytes()))
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "empty", "text.bin", "bad.zip", "t.tar.gz", "fifo"):
        with pytest.raises(DataError) as caught:
            scan(tmp_path / name)
        assert caught.value.exit_code == 3 and caught.value.hint and name in caught.value.message


def test_names_of_sources(tmp_path, monkeypatch):
    (tmp_path / "my.flowers").mkdir()
    zipped(tmp_path / "f.zip", ["a.jpg"])
    assert source_name(tmp_path / "my.flowers") == "my.flowers" and source_name(tmp_path / "f.zip") == "f"
    monkeypatch.chdir(tmp_path / "my.flowers")
    assert source_name(Path(".")) == "my.flowers"
