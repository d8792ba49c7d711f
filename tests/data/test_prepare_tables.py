"""Tables of labels and captions: who wins, whom a row belongs to, and that no table of any content does harm."""

import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import jsonl, listed, pairs, picture, prepared, write_folder, write_zip

from hdit_cli.commands.account import print_report
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.facts import names
from hdit_cli.data.prepare.facts.facts import facts_in
from hdit_cli.errors import DataError

PNG = picture(1)


def groups(entries):
    return {path: entry.group for path, entry in entries.items() if not entry.code}


def either(tmp_path, kind, files):
    return write_folder(tmp_path / "set", files) if kind == "folder" else write_zip(tmp_path / "set.zip", files)


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
def test_tables_go_before_json_and_that_before_the_folder(tmp_path, kind):
    files = {
        "rose/1.png": PNG, "rose/2.png": PNG, "rose/3.png": PNG, "rose/4.png": PNG,
        "rose/2.json": b'{"label": "described", "caption": "json says"}', "rose/2.txt": b"text says",
        "rose/3.json": b'{"class_name": "described", "prompt": "json says"}',
        "tulip/1.png": PNG, "tulip/1.json": b'{"label": 7}', "tulip/2.png": PNG,
        "rose/metadata.jsonl": jsonl(
            {"file_name": "1.png", "label": "told", "text": "table says"}, {"file_name": "2.png", "label": "told"}
        ),
    }  # fmt: skip
    listing, entries = listed(either(tmp_path, kind, files))
    assert groups(entries) == {
        "rose/1.png": "told", "rose/2.png": "told", "rose/3.png": "described", "rose/4.png": None,
        "tulip/1.png": "7", "tulip/2.png": "tulip",
    }  # fmt: skip
    assert entries["rose/4.png"].notes == ("no-label",) and not entries["tulip/2.png"].notes
    assert listing.classes == ["7", "described", "told", "tulip"]
    assert (entries["rose/1.png"].text, entries["rose/3.png"].text) == ("table says", "json says")
    assert entries["rose/2.png"].text is None and entries["rose/2.png"].caption == entries["rose/2.txt"].place
    assert entries["rose/metadata.jsonl"].code == "table" and entries["rose/2.txt"].code == "caption"


@both
def test_huggingface_imagefolder(tmp_path, kind):
    """Its documented layouts: a table in each split's folder, names relative to it, folders in between, several name columns."""
    files = {
        "train/metadata.csv": b'file_name,additional_feature,text\r\n0001.png,1,"one, two"\r\nsub/0002.png,2,"two\r\nlines"\r\n',
        "train/0001.png": PNG, "train/sub/0002.png": PNG,
        "test/metadata.jsonl": jsonl({"input_file_name": "a.png", "output_file_name": "b.png", "label": 3, "text": "pair"}),
        "test/a.png": PNG, "test/b.png": PNG,
    }  # fmt: skip
    _, entries = listed(either(tmp_path, kind, files))
    assert entries["train/0001.png"].text == "one, two" and entries["train/sub/0002.png"].text == "two\nlines"
    assert entries["train/0001.png"].group == "train"  # a table of captions leaves folders what they are
    assert {entries[f"test/{name}.png"].group for name in "ab"} == {"3"} == {str(3)}
    assert entries["test/b.png"].text == "pair"


@both
def test_a_nearer_table_goes_first_and_columns_add_up(tmp_path, kind):
    files = {
        "metadata.csv": b"file_name,label,text\na/x.png,outer,outer text\na/y.png,outer,\n",
        "a/metadata.jsonl": jsonl({"file_name": "./x.png", "caption": "inner text"}, {"file_name": "y.png", "label": "inner"}),
        "a/x.png": PNG, "a/y.png": PNG,
    }  # fmt: skip
    _, entries = listed(either(tmp_path, kind, files))
    assert (entries["a/x.png"].group, entries["a/x.png"].text) == ("outer", "inner text")
    assert (entries["a/y.png"].group, entries["a/y.png"].text) == ("inner", None)


@both
def test_dataset_json_of_edm(tmp_path, kind):
    """dataset_tool.py writes and reads {"labels": [[name, index], ...]}; names have "/" whatever the system."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(12)]
    told = [[name.replace("/", "\\") if i % 2 else name, i] for i, name in enumerate(names)]
    files = {"dataset.json": json.dumps({"labels": told}).encode(), **dict.fromkeys(names, PNG)}
    listing, entries = listed(either(tmp_path, kind, files))
    assert groups(entries) == {name: str(i) for i, name in enumerate(names)}
    assert listing.classes == [str(i) for i in range(12)]  # so that EDM's index is ours
    assert entries["dataset.json"].code == "table"


@pytest.mark.parametrize("labels", [None, []])
def test_dataset_json_without_labels_means_no_classes(tmp_path, labels):
    files = {"00000/a.png": PNG, "00001/b.png": PNG, "dataset.json": json.dumps({"labels": labels}).encode()}
    listing, entries = listed(write_zip(tmp_path / "z.zip", files))
    assert listing.classes == [] and all(not entry.notes for entry in entries.values())


def test_dataset_json_with_names_of_classes_and_inside_the_zips_own_folder(tmp_path):
    table = {"labels": [["a.png", 1], ["b.png", 0], ["c.png", 2]], "classes": ["cat", "dog"]}
    files = {"z/dataset.json": json.dumps(table).encode(), **{f"z/{name}.png": PNG for name in "abc"}}
    listing, entries = listed(write_zip(tmp_path / "z.zip", files))
    assert groups(entries) == {"z/a.png": "dog", "z/b.png": "cat", "z/c.png": None}
    assert entries["z/c.png"].notes == ("bad-label",) and listing.classes == ["cat", "dog"]


def test_a_dataset_json_deeper_down_is_a_side_file(tmp_path):
    files = {"a/x.png": PNG, "a/dataset.json": b'{"labels": [["x.png", 3]]}'}
    _, entries = listed(write_folder(tmp_path, files))
    assert entries["a/x.png"].group == "a" and entries["a/dataset.json"].code == "side-file"


# Bad tables


def test_rows_that_disagree_give_no_class(tmp_path):
    rows = [("same", "1"), ("same", "1"), ("other", "1"), ("other", "2"), ("other", "1"), ("half", ""), ("half", "3")]
    table = "file_name,label\n" + "".join(f"{name}.png,{label}\n" for name, label in rows)
    files = {"metadata.csv": table.encode(), "same.png": PNG, "other.png": PNG, "half.png": PNG}
    _, entries = listed(write_folder(tmp_path, files))
    assert groups(entries) == {"same.png": "1", "other.png": None, "half.png": "3"}
    assert entries["other.png"].notes == ("bad-label",) and not entries["same.png"].notes


def test_two_captions_of_a_picture_are_told(tmp_path):
    table = jsonl({"file_name": "a.png", "text": "first"}, {"file_name": "a.png", "text": "second"})
    _, entries = listed(write_folder(tmp_path, {"metadata.jsonl": table, "a.png": PNG}))
    assert entries["a.png"].text == "first" and entries["a.png"].notes == ("more-captions",)


DEEP = b"[" * 100_000
BAD_ROWS = {
    "not json": b"{file_name: a.png}\n",
    "an array": b'["a.png", 3]\n',
    "no name": b'{"label": 1}\n',
    "missing file": b'{"file_name": "gone.png", "label": 1}\n',
    "leads out": b'{"file_name": "../set/a.png", "label": 1}\n',
    "leads out, windows": b'{"file_name": "..\\\\a.png", "label": 1}\n',
    "absolute": b'{"file_name": "/etc/passwd", "label": 1}\n',
    "a number": b'{"file_name": 3, "label": 1}\n',
    "a nul": b'{"file_name": "a\\u0000.png", "label": 1}\n',
    "half a surrogate": b'{"file_name": "\\ud800.png", "label": 1}\n',
    "huge integer": b'{"file_name": "a.png", "label": ' + b"9" * 5000 + b"}\n",
    "deep": DEEP + b"\n",
    "latin name": b'{"file_name": "\xe9.png", "label": 1}\n',
    "long line": b'{"file_name": "a.png", "label": 1, "text": "' + b"x" * (2 << 20) + b'"}\n',
    "binary": bytes(range(256)) * 40,
}


@both
@pytest.mark.parametrize("what", sorted(BAD_ROWS))
def test_a_bad_row_is_counted_and_hurts_no_other(tmp_path, kind, what):
    good = b'\xef\xbb\xbf{"file_name": "b.png", "label": "good"}\n'
    files = {"metadata.jsonl": good + BAD_ROWS[what], "a.png": PNG, "b.png": PNG}
    _, entries = listed(either(tmp_path, kind, files))
    assert entries["metadata.jsonl"].code == "bad-table" and entries["metadata.jsonl"].detail
    assert entries["a.png"].group is None
    assert entries["b.png"].group == "good"


BAD_VALUES = [
    "[1, 2]",
    '{"a": 1}',
    "true",
    "NaN",
    "Infinity",
    "-Infinity",
    "1.5",
    "1e300",
    '"two\\nlines"',
    '"\\ud800"',
    '"' + "x" * 300 + '"',
]


@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_label_that_is_none_is_told_and_takes_no_others(tmp_path, value):
    row = b'{"file_name": "a.png", "label": %s}\n' % value.encode()
    _, entries = listed(write_folder(tmp_path, {"rose/metadata.jsonl": row, "rose/a.png": PNG}))
    assert entries["rose/a.png"].group is None and entries["rose/a.png"].notes == ("bad-label",)


@pytest.mark.parametrize(
    ("value", "label"), [("3", "3"), ("3.0", "3"), ("-1", "-1"), ('" a b "', "a b"), ("null", None), ('""', None)]
)
def test_labels_that_are_some(tmp_path, value, label):
    told = facts_in(b'{"label": %s}' % value.encode())
    assert told.label == label and not told.notes


BAD_CSV = {
    "unclosed quote": b'file_name,label\nb.png,good\na.png,"1\nb.png,2\n',
    "too few cells": b"file_name,label\nb.png,good\na.png\n",
    "too many cells": b"file_name,label\nb.png,good\na.png,1,2\n",
    "a column twice": b"file_name,label,label\na.png,1,2\n",
    "a huge cell": b'file_name,label\nb.png,good\na.png,"' + b"1\n" * 100_000 + b'"\n',
    "no column of files": b"bild;art\na.png;1\nb.png;2\n",
    "no columns at all": b"a.png,1\nb.png,2\n",
    "nothing": b"",
    "a header alone": b"file_name,label\n",
    "files without labels": b"file_name,width\na.png,2\nb.png,2\n",
    "cp1252": "file_name,label\na.png,Caf\u00e9\nb.png,good\n".encode("cp1252"),
}


@pytest.mark.parametrize("what", sorted(BAD_CSV))
def test_bad_csv(tmp_path, what):
    """What a table fails to say, the folder's name does not say either."""
    files = {f"rose/{name}": raw for name, raw in (("metadata.csv", BAD_CSV[what]), ("a.png", PNG), ("b.png", PNG))}
    _, entries = listed(write_folder(tmp_path, {**files, "tulip/c.png": PNG}))
    assert entries["rose/metadata.csv"].code == "bad-table" and entries["rose/metadata.csv"].detail
    assert entries["rose/a.png"].group is None and {"bad-label", "no-label"} & set(entries["rose/a.png"].notes)
    assert entries["rose/b.png"].group == ("good" if b"good" in BAD_CSV[what] else None)
    assert entries["tulip/c.png"].group == "tulip"


BAD_DATASETS = [
    b"{",
    b'{"labels": [["a.png", 1]',
    b'{"labels": [["a.png", 1], tru',
    b'{"labels": {"a.png": 1}}',
    b'{"labels": [["a.png"], 3, null, ["gone.png", 1], [3, 1]]}',
    b'{"labels": [["../a.png", 1]]}',
    b'{"labels": [["b.png", ' + b"9" * 5000 + b"]]}",
    b'{"labels": ' + DEEP,
]


@pytest.mark.parametrize("raw", BAD_DATASETS, ids=range(len(BAD_DATASETS)))
def test_bad_dataset_json(tmp_path, raw):
    _, entries = listed(write_folder(tmp_path, {"dataset.json": raw, "a.png": PNG}))
    assert entries["dataset.json"].code == "bad-table"
    assert entries["a.png"].group in (None, "1")


@pytest.mark.parametrize("raw", [b"[1, 2]", b"{}", b'{"images": []}', b"not json at all"])
def test_json_of_others_is_no_error(tmp_path, raw):
    files = {"a.png": PNG, "rose/b.png": PNG, "rose/b.json": raw}
    files |= {"dataset.json": raw} if raw.startswith(b"{") else {}
    _, entries = listed(write_folder(tmp_path, files))
    assert entries["a.png"].code == "" and entries["rose/b.png"].group == "rose"
    assert "dataset.json" not in entries or entries["dataset.json"].code == "side-file"


@both
@pytest.mark.parametrize(
    ("name", "raw"),
    [("metadata.jsonl", b'{"x": 1}\n'), ("dataset.json", b"[1, 2]"), ("dataset.json", b"no json"),
     ("metadata.jsonl", b"{'file_name': 'rose/b.png', 'label': 1,}\n"), ("metadata.jsonl", b'[{"file_name": "rose/b.png"} {}')],
)  # fmt: skip
def test_where_a_table_cannot_be_used_folders_are_no_classes(tmp_path, kind, name, raw):
    listing, entries = listed(either(tmp_path, kind, {"rose/b.png": PNG, "tulip/c.png": PNG, name: raw}))
    assert entries[name].code == "bad-table" and entries[name].detail
    assert listing.classes == [] and entries["rose/b.png"].notes == ("no-label",)


def test_a_table_of_captions_that_fails_leaves_folders_what_they_are(tmp_path):
    table = b"file_name,text\ngone.png,words\nb.png,more words\n"
    _, entries = listed(write_folder(tmp_path, {"rose/b.png": PNG, "rose/metadata.csv": table}))
    assert entries["rose/metadata.csv"].code == "bad-table" and entries["rose/b.png"].group == "rose"
    assert entries["rose/b.png"].text == "more words"


@settings(max_examples=60, deadline=None)
@given(
    raw=st.binary(max_size=300),
    suffix=st.sampled_from(["metadata.csv", "metadata.jsonl", "dataset.json", "a.json", "a.txt"]),
)
def test_any_bytes_are_a_table_without_harm(tmp_path_factory, raw, suffix):
    root = write_folder(tmp_path_factory.mktemp("any"), {suffix: raw, "a.png": PNG})
    assert [number for number, *_ in pairs(prepared(root))] == [1]


@pytest.mark.slow
def test_a_large_table_takes_little_memory(tmp_path):
    count = 20_000
    with open(tmp_path / "dataset.json", "w") as handle:
        handle.write('{"labels": [')
        handle.write(",".join(f'["{i // 1000:05d}/img{i:08d}-{"x" * 40}.png", {i % 10}]' for i in range(count)))
        handle.write("]}")
    write_folder(tmp_path, {"00000/a.png": PNG})
    tracemalloc.start()
    try:
        _, entries = listed(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert entries["dataset.json"].detail.startswith(f"names of files that are not there: {count}")
    assert peak < 2e6, peak


# Tables as other programs write them

ROWS = [("a.png", "3", "words, two"), ("b.jpg", "3.0", "more"), ("sub/C.png", "1", "")]
NAMES = [name for name, _, _ in ROWS]


def csv_text(*, between=",", end="\n", header=("file_name", "label", "text"), name: Callable[[str], str] = str):
    def cell(text):
        return f'"{text}"' if between in text else text

    lines = [between.join(header)] + [between.join(map(cell, (name(row[0]), *row[1:]))) for row in ROWS]
    return end.join(lines) + end


CSVS = {
    "semicolons": csv_text(between=";").encode(),
    "tabs": csv_text(between="\t", end="\r\n").encode(),
    "bars": csv_text(between="|").encode(),
    "sep line": ("sep=;\r\n" + csv_text(between=";", end="\r\n")).encode("utf-8-sig"),
    "utf-8 mark": csv_text(end="\r\n").encode("utf-8-sig"),
    "utf-16": csv_text(between="\t", end="\r\n").encode("utf-16"),
    "utf-16-le without a mark": csv_text().encode("utf-16-le"),
    "utf-16-be without a mark": csv_text(between=";").encode("utf-16-be"),
    "utf-32": csv_text().encode("utf-32"),
    "old mac": csv_text(end="\r").encode(),
    "blanks": csv_text(header=(" file_name ", " label", "text ")).replace(",", " , ").replace("words ,  ", "words, ").encode(),
    "quotes": csv_text(header=('"file_name"', '"label"', '"text"'), name=lambda name: f'"{name}"').encode(),
    "letter case": csv_text(header=("File_Name", "LABEL", "Text")).encode(),
    "blanks in names of columns": csv_text(header=("File Name", "Class Name", "Caption")).encode(),
    "marks without width": csv_text(header=("\u200bfile_name", "label\u200b", "text\ufeff")).encode(),
    "filename": csv_text(header=("filename", "label", "text")).encode(),
    "file": csv_text(header=("file", "class", "text")).encode(),
    "image": csv_text(header=("Image", "cls", "prompt")).encode(),
    "path": csv_text(header=("path", "label", "text")).encode(),
    "its own folder": csv_text(name=lambda name: f"pics/{name}").encode(),
    "the way to it": csv_text(name=lambda name: f"data/pics/{name}").encode(),
    "dot": csv_text(name=lambda name: f"./{name}").encode(),
    "windows": csv_text(name=lambda name: f"C:\\Users\\me\\pics\\{name}".replace("/", "\\")).encode(),
    "another machine": csv_text(name=lambda name: f"/home/me/pics/{name}").encode(),
    "backslashes": csv_text(name=lambda name: f".\\{name}".replace("/", "\\")).encode(),
    "letter case of names": csv_text(name=str.upper).encode(),
    "no suffix": csv_text(name=lambda name: name.rpartition(".")[0]).encode(),
    "empty lines": ("\n\n" + csv_text() + "\n\n,,\n").encode(),
    "empty columns": "\n".join(f"{line},," for line in csv_text().splitlines()).encode(),
    "a row twice": (csv_text() + "a.png,3,\"words, two\"\n").encode(),
    "a column of numbers before": "\n".join(f"{n or ''},{line}" for n, line in enumerate(csv_text().splitlines())).encode(),
}  # fmt: skip


@both
@pytest.mark.parametrize("what", sorted(CSVS))
def test_what_is_plainly_meant_is_read(tmp_path, kind, what):
    files = {f"pics/{name}": PNG for name in NAMES} | {"pics/metadata.csv": CSVS[what], "other/x.png": PNG}
    _, entries = listed(either(tmp_path, kind, files))
    assert (entries["pics/metadata.csv"].code, entries["pics/metadata.csv"].detail) == ("table", "")
    told = [(entries[f"pics/{name}"].group, entries[f"pics/{name}"].text) for name in NAMES]
    assert told == [("3", "words, two"), ("3", "more"), ("1", None)]
    near = ("near-name",) if what in ("letter case of names", "no suffix") else ()
    assert [entries[f"pics/{name}"].notes for name in NAMES] == [near] * 3


@both
@pytest.mark.parametrize("name", ["metadata.tsv", "METADATA.TSV"])
def test_a_table_with_the_suffix_of_tabs(tmp_path, kind, name):
    files = dict.fromkeys(NAMES, PNG) | {name: CSVS["tabs"], "other/x.png": PNG}
    _, entries = listed(either(tmp_path, kind, files))
    assert entries[name].code == "table" and [entries[each].group for each in NAMES] == ["3", "3", "1"]
    assert entries["other/x.png"].group is None


JSON = [{"file_name": name, "label": float(label), "text": text} for name, label, text in ROWS]
JSONS = {
    "mark": jsonl(*JSON).decode().encode("utf-8-sig"),
    "utf-16": jsonl(*JSON).decode().encode("utf-16"),
    "a list": json.dumps(JSON).encode("utf-8-sig"),
    "a list of many lines": json.dumps(JSON, indent=2).encode(),
    "a list in utf-16": json.dumps(JSON, indent=2).encode("utf-16"),
    "other keys": jsonl(*({"filename": row["file_name"], "Label": row["label"], "Text": row["text"]} for row in JSON)),
    "windows": jsonl(*JSON).replace(b"\n", b"\r\n") + b"\r\n\r\n",
}


@pytest.mark.parametrize("what", sorted(JSONS))
def test_json_lines_as_they_come(tmp_path, what):
    files = dict.fromkeys(NAMES, PNG) | {"Metadata.jsonl": JSONS[what]}
    _, entries = listed(write_folder(tmp_path, files))
    assert (entries["Metadata.jsonl"].code, entries["Metadata.jsonl"].detail) == ("table", "")
    assert [entries[name].group for name in NAMES] == ["3", "3", "1"]


def test_a_name_that_could_be_two_files_is_none(tmp_path):
    table = b"file_name,label\nA.png,1\nb.png,2\nc,3\n"
    files = dict.fromkeys(["a.png", "a.PNG", "b.png", "B.png", "c.png", "c.jpg"], PNG) | {"metadata.csv": table}
    _, entries = listed(write_folder(tmp_path, files))
    assert groups(entries) == {"a.png": None, "a.PNG": None, "b.png": "2", "B.png": None, "c.png": None, "c.jpg": None}
    assert "not there: 2, the first: A.png" in entries["metadata.csv"].detail


NFC, NFD = "caf\u00e9", "cafe\u0301"


@both
def test_names_in_another_unicode_form(tmp_path, kind):
    """In tables, captions and descriptions beside; what is written exactly so goes first."""
    table = jsonl({"file_name": f"{NFC}/1.png", "label": "x"}, {"file_name": f"{NFD}2.png", "label": "exact"},
                  {"file_name": f"{NFC}2.png", "label": "other"})  # fmt: skip
    files = {f"{NFD}/1.png": PNG, f"{NFD}2.png": PNG, f"{NFC}2.png": PNG, "metadata.jsonl": table}
    files |= {f"{NFD}3.png": PNG, f"{NFC}3.txt": b"words", f"{NFC}4.png": PNG, f"{NFD}4.json": b'{"label": "j"}'}
    _, entries = listed(either(tmp_path, kind, files))
    assert groups(entries) == {
        f"{NFD}/1.png": "x", f"{NFD}2.png": "exact", f"{NFC}2.png": "other", f"{NFD}3.png": None, f"{NFC}4.png": "j",
    }  # fmt: skip
    assert entries[f"{NFD}/1.png"].notes == ("near-name",) and entries[f"{NFC}2.png"].notes == ()
    assert entries[f"{NFD}3.png"].caption and "near-name" in entries[f"{NFD}3.png"].notes
    assert entries[f"{NFC}3.txt"].code == "caption" and "near-name" in entries[f"{NFC}4.png"].notes


@pytest.mark.parametrize("name", ["all.lst", "all.jsonl", "all.csv"])
def test_lists_name_files_in_another_unicode_form(tmp_path, name):
    write_folder(tmp_path, {f"{NFD}.png": PNG, f"{NFD}.txt": b"words", "B.PNG": PNG})
    rows = {"lst": f"{NFC}.png\nb.png\n", "csv": f"path;label\n{NFC}.png;1\nb.png;2\n"}
    raw = rows.get(name[4:], "").encode() or jsonl({"file_name": f"{NFC}.png"}, {"file_name": "b.png"})
    (tmp_path / name).write_bytes(raw)
    _, entries = listed(tmp_path / name)
    assert [entries[path].code for path in ("B.PNG", f"{NFD}.png")] == ["", ""]
    assert entries[f"{NFD}.png"].caption and entries["B.PNG"].notes == ("near-name",)


def test_a_bad_table_is_told_once_and_strict_fails(tmp_path, capsys):
    files = {"rose/a.png": picture(1), "tulip/b.png": picture(2), "metadata.csv": b"bild;art\nrose/a.png;1\n"}
    source, options = write_folder(tmp_path / "s", files), PrepareOptions(size=(2, 2), format="png")
    with pytest.raises(DataError, match=r"metadata\.csv cannot be used") as caught:
        prepare(source, out=tmp_path / "out", options=options, workers=1, strict=True)
    assert caught.value.exit_code == 3 and "file_name" in caught.value.hint
    for _ in range(2):  # also where the set is complete already
        report = prepare(source, out=tmp_path / "out", options=options, workers=1)
        print_report(report, as_json=False, asked_to_hold_out=False)
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in ("metadata.csv", "rose/a.png, 1", "columns: bild, art", "have no class"))
        assert report.classes == {} and report.unlabelled == 2
    with pytest.raises(DataError, match=r"metadata\.csv cannot be used"):
        prepare(source, out=tmp_path / "out", options=options, workers=1, strict=True)


# Lists of files


def test_lists_of_paths(tmp_path):
    write_folder(
        tmp_path,
        {"rose/a.png": PNG, "rose/a.txt": b"words", "b.png": PNG, "rose/c.png": PNG, "rose/c.json": b'{"label": "j"}'},
    )
    told = (
        f"./rose/a.png\r\n\nb.png\ngone.png\nb.png\n../out.png\n/etc/passwd\n{tmp_path}/rose/c.png\nrose/a.txt\nrose\n"
    )
    (tmp_path / "all.lst").write_text(told)
    listing, entries = listed(tmp_path / "all.lst")
    found = {path: (entry.group, entry.code) for path, entry in entries.items()}
    assert found == {
        "rose/a.png": ("rose", ""), "b.png": (None, ""), "rose/c.png": ("j", ""), "gone.png": (None, "missing"),
        "rose": (None, "not-a-file"), "rose/a.txt": ("rose", "side-file"), "all.lst": (None, "bad-table"),
    }  # fmt: skip
    assert "2" in entries["all.lst"].detail and entries["rose/a.png"].caption
    assert listing.source()["kind"] == "list" and listing.name == "all"


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv"])
def test_lists_with_labels(tmp_path, name):
    write_folder(tmp_path, {f"{n}.png": picture(n) for n in range(3)})
    table = jsonl(*({"file_name": f"{n}.png", "label": 10 - n, "text": f"t{n}"} for n in range(3)))
    csv = b"file_name,label,text\n0.png,10,t0\n1.png,9,t1\n2.png,8,t2\n"
    (tmp_path / name).write_bytes(csv if name.endswith("csv") else table)
    assert sorted(pairs(prepared(tmp_path / name))) == [(n, str(10 - n), f"t{n}", ()) for n in range(3)]
    assert listed(tmp_path / name)[0].classes == ["8", "9", "10"]


@pytest.mark.parametrize(
    ("name", "raw"), [("a.csv", b"x,y\n1,2\n"), ("a.jsonl", b'{"x": 1}\n'), ("a.lst", b""), ("a.txt", b"\n \n")]
)
def test_lists_that_name_nothing(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        listed(tmp_path / name)
    assert caught.value.exit_code == 3 and "a" in caught.value.message


def test_where_the_disk_opens_near_names_too_the_names_in_the_folder_decide(monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.setattr(names, "_EXACT", False)
    inside = {"": [f"{NFD}.png"]}
    found = names.Names(is_file=lambda path: path in (f"{NFD}.png", f"{NFC}.png"), inside=lambda path: inside[path])
    assert found.find(f"{NFC}.png") == (f"{NFD}.png", True, True)
    assert found.find(f"{NFD}.png") == (f"{NFD}.png", True, False)


def test_a_backslash_may_be_part_of_a_name(tmp_path):
    table = b'file_name,label\n"a\\b.png",1\n"a\\c.png",2\n'
    _, entries = listed(
        write_folder(tmp_path, {"a\\b.png": PNG, "a/b.png": PNG, "a/c.png": PNG, "metadata.csv": table})
    )
    assert groups(entries) == {"a\\b.png": "1", "a/b.png": None, "a/c.png": "2"}
