"""What systems and tools leave among pictures: one rule for folders, zips, tars and lists; no class, no refusal, counted."""

import io
import json
import os

import pytest
from PIL import Image
from sources import OPTIONS, listed, picture, prepared, write_folder, write_tar, write_zip

from hdit_cli.data.prepare import prepare
from hdit_cli.data.prepare.sources.passed_over import is_tool_file, is_tool_folder, passed_over

PICTURES = {"rose/1.png": picture(1), "tulip/2.png": picture(2)}
LEFT = {
    ".git/HEAD": b"ref", ".git/objects/aa/1.png": picture(3), ".ipynb_checkpoints/1.png": picture(4),
    "rose/.thumbnails/1.png": picture(5), "rose/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": picture(6),
    "__MACOSX/rose/._1.png": b"fork", "$RECYCLE.BIN/x.png": picture(7), "System Volume Information/x.png": picture(8),
    "Thumbs.db": b"thumbs", "rose/desktop.ini": b"[x]", ".DS_Store": b"store", ".gitignore": b"*", "rose/.nomedia": b"",
    "rose/1.png:Zone.Identifier": b"[ZoneTransfer]", "rose/.1.png.Xy12Zq": b"half", "lost+found/1.png": picture(9),
}  # fmt: skip
OVER = {
    ".git", ".ipynb_checkpoints", "rose/.thumbnails", "rose/@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information",
    "Thumbs.db", "rose/desktop.ini", ".DS_Store", ".gitignore", "rose/.nomedia", "rose/1.png:Zone.Identifier",
    "rose/.1.png.Xy12Zq", "lost+found",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar with dots", "folder of tars"])
def test_passed_over_and_counted_in_sources_of_every_kind(tmp_path, kind):
    everything = {**PICTURES, **LEFT}
    around = ""
    if kind == "folder":
        source = write_folder(tmp_path / "in", everything)
    elif kind == "zip":
        source = write_zip(tmp_path / "in.zip", everything)
    elif kind == "folder of tars":
        source, around = write_tar(tmp_path / "in" / "0.tar", list(everything.items())).parent, "0.tar/"
    else:
        around = "./" if "dots" in kind else ""
        source = write_tar(tmp_path / "in.tar", [(around + name, data) for name, data in everything.items()])
    outcomes = prepared(source)
    told = {entry.path.removeprefix(around): (outcome.verdict, outcome.codes) for entry, outcome in outcomes}
    assert {path for path, verdict in told.items() if verdict == ("side", ("passed-over",))} == OVER
    assert {path for path, verdict in told.items() if verdict == ("kept", ())} == set(PICTURES)
    assert len(told) == len(outcomes) == len(OVER) + len(PICTURES)
    assert listed(source)[0].classes == ["rose", "tulip"]


def test_counts_and_lines_of_the_report_and_the_same_bytes_as_without(tmp_path):
    plain = prepare(write_folder(tmp_path / "in", PICTURES), out=tmp_path / "plain", options=OPTIONS, workers=1)
    write_folder(tmp_path / "in", LEFT)
    report = prepare(tmp_path / "in", out=tmp_path / "out", options=OPTIONS, workers=1, strict=True)
    assert (report.kept, report.refused, report.side) == (2, 0, len(OVER)) and report.seen == 2 + len(OVER)
    assert report.classes == plain.classes == {"rose": 1, "tulip": 1} and report.codes == {"passed-over": len(OVER)}
    lines = json.loads((tmp_path / "out" / "report.json").read_text())["files"]
    assert {line["path"] for line in lines} == OVER
    assert (tmp_path / "out" / "00000.tar").read_bytes() == (tmp_path / "plain" / "00000.tar").read_bytes()


@pytest.mark.parametrize(
    "write", [write_zip, lambda path, files: write_tar(path.with_suffix(".tar"), list(files.items()))]
)
def test_the_folder_around_an_archive_is_no_class_whatever_lies_beside_it(tmp_path, write):
    files = {f"birds/{name}": data for name, data in PICTURES.items()}
    files |= {".DS_Store": b"", "Thumbs.db": b"", "__MACOSX/birds/._1.png": b"", "birds/.git/x.png": picture(3)}
    assert listed(write(tmp_path / "birds.zip", files))[0].classes == ["rose", "tulip"]


def test_resource_forks_elsewhere_are_refused_and_hidden_pictures_are_pictures(tmp_path):
    source = write_folder(tmp_path / "in", {"._1.png": b"fork", ".2.png": picture(2), ".notes.txt": b"words"})
    assert {e.path: (o.verdict, o.codes) for e, o in prepared(source)} == {
        "._1.png": ("refused", ("not-a-picture",)), ".2.png": ("kept", ()), ".notes.txt": ("side", ("side-file",)),
    }  # fmt: skip


def test_a_list_means_the_folders_it_names(tmp_path):
    write_folder(tmp_path, {".cache/1.png": picture(1), ".cache/Thumbs.db": b"thumbs"})
    (tmp_path / "all.lst").write_text(".cache/1.png\n.cache/Thumbs.db\n")
    assert {e.path: (e.group, o.codes) for e, o in prepared(tmp_path / "all.lst")} == {
        ".cache/1.png": (None, ()), ".cache/Thumbs.db": (None, ("passed-over",)),
    }  # fmt: skip


def test_a_list_of_a_whole_folder_passes_over_what_tools_left_there(tmp_path):
    write_folder(tmp_path, {"rose/1.png": picture(1), ".thumbnails/1.png": picture(2), "rose/@eaDir/1.png": picture(3)})
    names = [".thumbnails/1.png", "rose/1.png", "rose/@eaDir/1.png"]
    (tmp_path / "all.txt").write_text("\n".join(names))
    listing, entries = listed(tmp_path / "all.txt")
    assert listing.classes == ["rose"]
    assert {path: entry.code for path, entry in entries.items()} == {
        names[0]: "passed-over", names[1]: "", names[2]: "passed-over",
    }  # fmt: skip
    (tmp_path / "told.csv").write_text("file_name,label\n" + "".join(f"{name},told\n" for name in names))
    listing, entries = listed(tmp_path / "told.csv")  # each row says what it means
    assert listing.classes == ["told"] and {entry.code for entry in entries.values()} == {""}


def test_a_hidden_folder_may_be_the_source_and_what_is_passed_over_is_not_opened(tmp_path):
    source = write_folder(tmp_path / ".cache" / "in", PICTURES)
    (source / ".Trashes").mkdir(mode=0)
    os.mkfifo(source / "Thumbs.db")
    os.symlink(source, source / ".loop")
    os.symlink("nowhere", source / ".DS_Store")
    told = {entry.path: outcome.codes for entry, outcome in prepared(source)}
    over = ("passed-over",)
    assert told == {
        **dict.fromkeys(PICTURES, ()),
        ".Trashes": over,
        "Thumbs.db": over,
        ".loop": over,
        ".DS_Store": over,
    }


def test_names_that_only_look_like_it():
    for name in ("git", "..data", ".", "..", "MACOSX", "thumbs", "a.git"):
        assert not is_tool_folder(name)
    for name in ("a.jpg", ".a.jpg", "._a.jpg", "._.DS_Store", ".png", ".cls", "thumbs.db.jpg", "no suffix", ""):
        assert not is_tool_file(name)
    assert passed_over("./a/b.jpg") == passed_over("../.x.jpg") == "" and passed_over("./.git/a/b") == "./.git"


def test_jpg_is_jpeg(tmp_path):
    source = write_folder(tmp_path / "in", PICTURES)
    for name in ("jpg", "JPEG", "jpeg"):
        told = prepare(source, out=tmp_path / name, options=type(OPTIONS)(size=(2, 2), format=name), workers=1)
        assert told.kept == 2
        assert (tmp_path / name / "manifest.json").read_bytes() == (tmp_path / "jpg" / "manifest.json").read_bytes()


def test_shards_are_read_by_the_decoders_of_what_prepare_writes(tmp_path):
    """A received shard may hold anything under the name of a picture; EPS would start Ghostscript."""
    from hdit_cli.data.pixels import Pixels

    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    for data in (eps, buffer.getvalue()):
        with pytest.raises(OSError, match="cannot identify"):
            Pixels()(data)
