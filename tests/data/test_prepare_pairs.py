"""What is true of every source: the order of its entries, and that a picture keeps its own class and caption or tells why not."""

import csv
import io
import json
import os
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import jsonl, listed, pairs, picture, prepared, write_folder, write_tar, write_zip

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.sources.passed_over import passed_over
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import load_manifest
from hdit_cli.errors import DataError, UsageError

parts = st.text("ab.-/_0é\\", min_size=1, max_size=4).filter(lambda part: "/" not in part and part.strip("."))
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)


def without_files_as_folders(names):
    folders = {"/".join(name.split("/")[:deep]) for name in names for deep in range(1, name.count("/") + 1)}
    return sorted(set(names) - folders)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(paths, min_size=1, max_size=12).map(without_files_as_folders))
def test_order_of_bytes_in_any_folder_and_any_zip(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("order")
    files = dict.fromkeys(names, b"x")
    _, entries = listed(write_folder(root / "set", files))  # the order is checked there
    told = {passed_over(name) or name for name in names}  # of a hidden folder its name alone
    assert list(entries) == sorted(told, key=str.encode)
    packed = {name.strip("\\") for name in names} | {"ok.png"}  # a zip's names have "/" for it
    listed(write_zip(root / "z.zip", dict.fromkeys(packed - {""}, b"x")))


STEMS = ["a", "b", "a.b", "A", "é"]
FOLDERS = ["", "x/", "x/y/", "z/"]
SUFFIXES = [".png", ".PNG", ".webp"]
KINDS = ["folder", "zip", "list.csv", "list.jsonl"]


@st.composite
def worlds(draw):
    """Files with colliding names, side files and tables, and what may be said of each picture by whom."""
    places = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(STEMS), st.sampled_from(SUFFIXES))
    names = draw(st.lists(places, min_size=1, max_size=8, unique=True))
    files, labels, captions = {}, {}, {}
    for number, (folder, name, suffix) in enumerate(names):
        path = f"{folder}{name}{suffix}"
        files[path] = picture(number)
        labels[number], captions[number] = {"folder": folder.partition("/")[0] or None}, {}
    for folder, name in sorted({(folder, name) for folder, name, _ in names}):
        here = [n for n, place in enumerate(names) if place[:2] == (folder, name)]
        key = f"{folder}{name}".replace("/", "_")
        if draw(st.booleans()):
            files[f"{folder}{name}.txt"] = f"txt {key}".encode()
            for n in here:
                captions[n]["txt"] = f"txt {key}"
        if draw(st.booleans()):
            files[f"{folder}{name}.json"] = json.dumps({"label": f"json {key}", "text": f"json text {key}"}).encode()
            for n in here:
                labels[n]["json"], captions[n]["json"] = f"json {key}", f"json text {key}"
    kind = draw(st.sampled_from(KINDS))
    tables = [f"set/{kind}"] if kind.startswith("list") else draw(
        st.lists(st.sampled_from(["", "x/", "x/y/"]).flatmap(
            lambda folder: st.sampled_from([f"{folder}metadata.csv", f"{folder}metadata.jsonl"])), unique=True, max_size=3)
    )  # fmt: skip
    for table in sorted(tables):
        folder = "" if kind.startswith("list") else table.rpartition("/")[0] + "/" if "/" in table else ""
        rows = []
        for number, place in enumerate(names):
            path = "".join(place)
            for again in range(draw(st.sampled_from([1, 1, 1, 0, 2])) if path.startswith(folder) else 0):
                told = {
                    "file_name": path.removeprefix(folder),
                    "label": f"{table} {number} {again}",
                    "text": f"text {table} {number}",
                }
                rows.append(told)
                labels[number].setdefault(table, set()).add(told["label"])
                captions[number][table] = told["text"]
        rows.append({"file_name": "gone.png", "label": "gone", "text": "gone"})
        rows.append({"file_name": "../a.png", "label": "out", "text": "out"})
        files[table.removeprefix("set/")] = written(table, draw(st.permutations(rows)))
    return kind, files, labels, captions


def written(table, rows):
    if table.endswith("jsonl"):
        return jsonl(*rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["label", "text", "file_name"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@settings(max_examples=100, deadline=None)
@given(world=worlds())
def test_each_picture_keeps_its_own(tmp_path_factory, world):
    kind, files, labels, captions = world
    root = tmp_path_factory.mktemp("world")
    source = write_zip(root / "set.zip", files) if kind == "zip" else write_folder(root / "set", files)
    outcomes = prepared(source / kind if kind.startswith("list") else source)
    kept = pairs(outcomes)
    assert len({number for number, *_ in kept}) == len(kept)
    if kind.startswith("list"):
        assert all(labels[number].keys() - {"folder", "json"} for number, *_ in kept)
    else:
        assert len(kept) == len(labels) and len(outcomes) == len(files)
    for number, label, caption, notes in kept:
        told = {who: what for who, what in labels[number].items() if isinstance(what, set)}
        nearest = max(told, key=lambda table: table.count("/"), default=None)
        rivals = set().union(*(what for who, what in told.items() if nearest and who.count("/") == nearest.count("/")))
        if len(rivals) > 1:
            assert label is None and "bad-label" in notes
        elif rivals:
            assert label in rivals
        elif "json" in labels[number]:
            assert label == labels[number]["json"]
        else:
            assert label == labels[number]["folder"] or (label is None and "no-label" in notes)
        own = set(captions[number].values())
        assert caption in own if own else caption is None


def test_what_comes_twice_beside_a_picture_or_lies_beside_two_is_nobodys(tmp_path):
    """As in a tar: in doubt no caption and no class, and that is told, whichever is written first."""
    members = [("r/a.png", picture(0)), ("r/a.txt", b"one"), ("r/a.png", picture(1)), ("r/a.json", b'{"label": "k"}')]
    members += [("r/b.png", picture(2)), ("r/b.txt", b"one"), ("r/b.TXT", b"two"), ("r/c.png", picture(3))]
    members += [
        ("r/c.json", b'{"label": "k"}'),
        ("r/c.JSON", b'{"label": "l"}'),
        ("r/d.png", picture(4)),
        ("r/d.txt", b"d"),
    ]
    doubt = ("bad-caption", "bad-json", "bad-label")
    expected = [
        (2, "r", None, ("bad-caption",)), (3, None, None, ("bad-json", "bad-label")), (4, "r", "d", ()),
    ]  # fmt: skip
    for number, order in enumerate((members, members[::-1])):
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for name, data in order:
                archive.writestr(name, data)
        told = sorted(pairs(prepared(tmp_path / f"{number}.zip")))
        assert told == [(0, None, None, doubt), (1, None, None, doubt), *expected]
    folder = write_folder(tmp_path / "set", dict(members[4:]))
    if len(os.listdir(folder / "r")) == len(members[4:]):  # a file system that tells .txt from .TXT
        assert pairs(prepared(folder)) == expected


# Several sources


def test_several_sources_make_one_set(tmp_path):
    write_folder(tmp_path / "one" / "set", {"rose/a.png": picture(0), "b.png": picture(1)})
    write_folder(tmp_path / "two" / "set", {"rose/a.png": picture(2), "9/c.png": picture(3), "rose/a.txt": b"words"})
    write_zip(tmp_path / "set-2.zip", {"tulip/a.png": picture(4)})
    write_tar(tmp_path / "0.tar", [("a.png", picture(5)), ("a.cls", b"10")])
    sources = [tmp_path / "one" / "set", tmp_path / "two" / "set", tmp_path / "set-2.zip", tmp_path / "0.tar"]
    listing, entries = listed(*sources)
    assert {path for path, entry in entries.items() if not entry.code} == {
        "set/rose/a.png", "set/b.png", "set-3/rose/a.png", "set-3/9/c.png", "set-2/tulip/a.png", "0/a.png",
    }  # fmt: skip
    assert listing.classes == ["9", "10", "rose", "tulip"]
    assert pairs(prepared(*sources))[-1][:3] == (0, "rose", None) and listing.name == "set"
    told = listing.source()
    assert told["kind"] == "several" and [one["kind"] for one in told["sources"]] == ["folder", "folder", "zip", "tar"]
    assert listed(*sources[:2])[0].source() != listed(*sources[1::-1])[0].source()


def test_an_empty_one_among_several_is_told(tmp_path):
    write_folder(tmp_path / "full", {"a.png": picture(0)})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing is empty"):
        listed(tmp_path / "full", tmp_path / "nothing")


def made(source, out, size=(4, 4)):
    return prepare(source, out=out, options=PrepareOptions(size=size, format="png"), workers=1)


def test_a_set_of_ours_keeps_captions_classes_and_their_order(tmp_path):
    files = {f"{name}/{n}.png": picture(10 * n + k) for k, name in enumerate(["10", "9", "rose"]) for n in range(3)}
    write_folder(
        tmp_path / "set",
        {**files, "rose/1.txt": b"words", "9/metadata.jsonl": jsonl({"file_name": "0.png", "text": "told"})},
    )
    made(tmp_path / "set", tmp_path / "first", size=(2, 2))
    made(tmp_path / "first", tmp_path / "again", size=(2, 2))
    first, again = (load_manifest(tmp_path / name) for name in ("first", "again"))
    assert first.classes == again.classes == ["10", "9", "rose"]
    one, other = ShardReader(tmp_path / "first"), ShardReader(tmp_path / "again")
    assert list(one.labels) == list(other.labels)
    kept = pairs(prepared(tmp_path / "again"))
    assert kept == pairs(prepared(tmp_path / "first")) and [k[2] for k in kept if k[2]] == ["told", "words"]


def test_the_same_sources_again_are_complete_and_others_are_not(tmp_path):
    write_folder(tmp_path / "a", {"x/1.png": picture(1), "metadata.csv": b"file_name,label,text\nx/1.png,k,words\n"})
    write_folder(tmp_path / "b", {"x/1.png": picture(2)})
    sources = [tmp_path / "a", tmp_path / "b"]
    report = made(sources, tmp_path / "out")
    assert report.classes == {"k": 1, "x": 1} and report.side == 1
    assert made(sources, tmp_path / "out").complete_before
    stamps = os.stat(tmp_path / "a" / "metadata.csv")
    (tmp_path / "a" / "metadata.csv").write_bytes(b"file_name,label,text\nx/1.png,k,WORDS\n")
    os.utime(tmp_path / "a" / "metadata.csv", ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    for changed in (sources, sources[:1], sources[::-1]):
        with pytest.raises(UsageError):
            made(changed, tmp_path / "out")
    with pytest.raises(UsageError, match="lies inside the source"):
        made(sources, tmp_path / "b" / "out")


@pytest.mark.slow
def test_memory_is_bounded_by_a_folder(tmp_path):
    peaks = []
    for count in (20, 200):
        for n in range(count):
            write_folder(tmp_path / f"{n:04d}", {f"{i}.png": b"" for i in range(40)})
        tracemalloc.start()
        from hdit_cli.data.prepare.sources.scan import scan

        assert sum(1 for _ in scan([Path(tmp_path)]).stream()) == 40 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 50_000, peaks
