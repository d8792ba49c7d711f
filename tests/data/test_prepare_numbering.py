"""Classes of which no picture was kept are no classes, and the labels count without them: in manifest, index and .cls."""

import json
import tarfile

import pytest
from prepare_jobs import digests
from sources import picture, write_folder, write_zip

from hdit_cli.data.prepare import PrepareOptions, Share, prepare, prepare_share
from hdit_cli.data.prepare.finishing import finish as finishing
from hdit_cli.data.prepare.run import Pending
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import load_manifest
from hdit_cli.engine.run.verify import verify_data

OPTIONS = PrepareOptions(size=(2, 2), format="png", shard_size=3)


@pytest.fixture
def source(tmp_path):
    """Classes b and d with pictures, and four that only seem to be some: the first, one between, the last, one of copies."""
    files = {f"b/{n}.png": picture(n) for n in range(4)} | {f"d/{n}.png": picture(10 + n) for n in range(4)}
    files |= {"a/broken.jpg": b"\xff\xd8\xff", "c/rename.py": b"import os", "f/0.png": b"", "only-text/notes.txt": b"x"}
    return write_folder(tmp_path / "source", files | {"e/copy.png": picture(0), "loose.png": picture(20)})


def labels_of(out):
    """(path's number, label in .cls) of each sample in the tars."""
    found = {}
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            texts = {name: archive.extractfile(name).read() for name in archive.getnames() if ".png" not in name}  # pyright: ignore
        for name in texts:
            key = name.partition(".")[0]
            found[key] = int(texts.get(f"{key}.cls", b"-1"))
    return [label for _, label in sorted(found.items())]


def check(out, classes, labels):
    """That manifest, indices and .cls tell the same, and the account too."""
    reader = ShardReader(out)
    assert load_manifest(out).classes == classes
    assert reader.labels.tolist() == labels_of(out) == labels
    assert [each.problem for each in verify_data(out) if each.problem] == []


def test_classes_are_those_of_kept_pictures(source, tmp_path):
    report = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert report.classes == {"b": 4, "d": 4, "e": 1} and report.unlabelled == 1
    check(tmp_path / "out", ["b", "d", "e"], [0] * 4 + [1] * 4 + [2, -1])
    again = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert again.complete_before and again.classes == report.classes


def test_a_class_of_duplicates_or_of_small_pictures_is_none(source, tmp_path):
    (source / "b" / "3.png").unlink()
    options = PrepareOptions(size=(2, 2), format="png", shard_size=3, dedupe=True)
    assert prepare(source, out=tmp_path / "out", options=options, workers=1).classes == {"b": 3, "d": 4}
    check(tmp_path / "out", ["b", "d"], [0] * 3 + [1] * 4 + [-1])


def test_held_out_pictures_keep_their_class(source, tmp_path):
    """Training and validation count through one list; a class with held-out pictures alone is on it."""
    options = PrepareOptions(size=(2, 2), format="png", shard_size=3, hold_out=0.5)
    prepare(source, out=tmp_path / "out", options=options, workers=1)
    kept, held = tmp_path / "out", tmp_path / "out" / "held-out"
    assert load_manifest(kept).classes == load_manifest(held).classes == ["b", "d", "e"]
    check(held, ["b", "d", "e"], labels_of(held))
    assert sorted(labels_of(kept) + labels_of(held)) == [-1] + [0] * 4 + [1] * 4 + [2]


def test_the_pictures_are_those_of_a_source_without_the_others(tmp_path):
    """Byte for byte, where what is refused comes last."""
    files = {f"{name}/{n}.png": picture(n) for n, name in enumerate("bbddd")}
    clean = write_folder(tmp_path / "x" / "s", files)
    dirty = write_folder(tmp_path / "y" / "s", {**files, "z/broken.png": b"no"})
    for source in (clean, dirty):
        prepare(source, out=source.parent / "out", options=OPTIONS, workers=1)
    one, other = digests(clean.parent / "out"), digests(dirty.parent / "out")
    assert {name: told for name, told in one.items() if name.endswith((".tar", ".idx"))} == {
        name: told for name, told in other.items() if name.endswith((".tar", ".idx"))
    }


@pytest.mark.parametrize("dedupe", [False, True])
def test_shares_workers_and_a_stop_at_any_shard_come_to_the_same(source, tmp_path, monkeypatch, dedupe):
    options = PrepareOptions(size=(2, 2), format="png", shard_size=3, dedupe=dedupe, hold_out=0.3)
    prepare(source, out=tmp_path / "whole", options=options, workers=2)
    expected = digests(tmp_path / "whole")
    order = [Share(number, 3) for number in (2, 3, 1)]
    made = [prepare_share(source, share=share, out=tmp_path / "shares", options=options, workers=1) for share in order]
    assert isinstance(made[0], Pending) and not isinstance(made[2], Pending)
    assert digests(tmp_path / "shares") == expected

    rewrite, left = finishing.rewrite, [0]

    def stopping(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rewrite(*arguments)

    monkeypatch.setattr(finishing, "rewrite", stopping)
    for stop_after in (0, 1, 1, 99):  # each goes on where the one before was stopped
        left[0] = stop_after
        try:
            prepare(source, out=tmp_path / "stopped", options=options, workers=1)
        except Exception as error:
            assert type(error).__name__ == "Interrupted", error
    assert digests(tmp_path / "stopped") == expected


def test_a_list_that_the_source_fixes_stays(source, tmp_path):
    prepare(source, out=tmp_path / "first", options=OPTIONS, workers=1)
    small = PrepareOptions(size=(2, 2), format="png", shard_size=3, dedupe=True)
    report = prepare(tmp_path / "first", out=tmp_path / "second", options=small, workers=1)
    assert report.classes == {"b": 4, "d": 4, "e": 0}
    check(tmp_path / "second", ["b", "d", "e"], [0] * 4 + [1] * 4 + [-1])


def test_no_class_at_all_is_left(tmp_path):
    source = write_folder(tmp_path / "s", {"a/x.png": b"no", "1.png": picture(1)})
    prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
    check(tmp_path / "out", [], [-1])


def test_sets_without_such_classes_are_not_written_again(tmp_path, monkeypatch):
    files = {f"{name}/{n}.png": picture(n) for n, name in enumerate("aabbcc")}
    monkeypatch.setattr(finishing, "rewrite", lambda *_: pytest.fail("there is nothing to rewrite"))
    assert prepare(write_folder(tmp_path / "s", files), out=tmp_path / "out", options=OPTIONS, workers=1).kept == 6


@pytest.mark.parametrize("packed", [False, True])
def test_the_list_of_classes_in_a_dataset_json_is_the_list_of_the_set(tmp_path, packed):
    """In its order, with classes without a picture too: an index there is the label here."""
    table = json.dumps(
        {"labels": [[f"{n}.png", n % 3] for n in range(4)], "classes": ["zinnia", "aster", "iris", "rose"]}
    )
    files = {f"{n}.png": picture(n) for n in range(4)} | {"2.png": b"broken", "dataset.json": table.encode()}
    source = write_zip(tmp_path / "in.zip", files) if packed else write_folder(tmp_path / "in", files)
    report = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert report.classes == {"zinnia": 2, "aster": 1, "iris": 0, "rose": 0}
    check(tmp_path / "out", ["zinnia", "aster", "iris", "rose"], [0, 1, 0])


def test_a_class_beside_the_list_makes_it_no_list_of_all(tmp_path):
    table = json.dumps({"labels": [["0.png", 0]], "classes": ["zinnia", "iris"]}).encode()
    files = {"0.png": picture(0), "1.png": picture(1), "1.json": b'{"label": "other"}', "dataset.json": table}
    report = prepare(write_folder(tmp_path / "in", files), out=tmp_path / "out", options=OPTIONS, workers=1)
    assert report.classes == {"other": 1, "zinnia": 1}
