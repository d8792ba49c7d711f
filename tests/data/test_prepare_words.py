"""One label written two ways is one class, wherever it is written; captions lose what cannot be seen."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import jsonl, listed, pairs, picture, prepared, write_folder, write_tar, write_zip

from hdit_cli.commands.account import print_report
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.facts.words import decoded, label_text, look_alikes, same_label, tidied
from hdit_cli.data.shards import load_manifest

PNG = picture(1)
MARK = "\ufeff"
NFC, NFD = "caf\u00e9", "cafe\u0301"

SPELLINGS = {
    "3": ["3", "3.0", "3.", "3.000", " 3 ", "\ufeff3\r\n", "\u00a03", "3\u200b"],
    "0": ["0", "0.0", "-0.0"],
    "-1": ["-1", "-1.0"],
    NFC: [NFC, NFD, f"{MARK}{NFC}", f" {MARK} {NFD}\t", f"{NFC}\u00a0"],
    "a b": ["a b", " a b\n"],
}
OTHERS = ["03", "03.0", "1.5", "3,0", "v3.0", "3.0.0", "1e3", "+3", "Rose", "\u0663"]


@pytest.mark.parametrize(("one", "said"), [(one, said) for one, all_ in SPELLINGS.items() for said in all_])
def test_one_label_has_one_text(one, said):
    assert label_text(said) == one


@pytest.mark.parametrize("said", OTHERS)
def test_what_could_be_another_thing_stays_as_it_is(said):
    assert label_text(said) == said


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
def test_a_spelling_is_its_own_spelling(said):
    assert label_text(label_text(said)) == label_text(said)
    assert tidied(tidied(said)) == tidied(said)


def spelt_files(kind: str, label: str, other: str) -> dict[str, bytes]:
    """Two pictures of one class, which is written in two ways."""
    if kind == "folder":
        return {f"{label}/1.png": PNG, f"{other}/2.png": PNG}
    files = {"1.png": PNG, "2.png": PNG}
    if kind == "metadata.csv":
        return {**files, kind: f'file_name,label\n1.png,"{label}"\n2.png,"{other}"\n'.encode()}
    if kind == "metadata.jsonl":
        rows = ({"file_name": f"{n}.png", "label": said} for n, said in ((1, label), (2, other)))
        return {**files, kind: jsonl(*rows)}
    if kind == "dataset.json":
        return {**files, kind: json.dumps({"labels": [["1.png", label], ["2.png", other]]}).encode()}
    return {**files, "1.json": json.dumps({"label": label}).encode(), "2.json": json.dumps({"label": other}).encode()}


KINDS = ("folder", "metadata.csv", "metadata.jsonl", "dataset.json", "json beside")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("label", "other"), [("3", "3.0"), (NFC, NFD), ("rose", f"{MARK}rose"), ("rose", "rose ")])
def test_two_ways_in_one_place_are_one_class(tmp_path, kind, label, other):
    files = spelt_files(kind, label, other)
    for number, source in enumerate((write_folder(tmp_path / "set", files), write_zip(tmp_path / "set.zip", files))):
        assert listed(source)[0].classes == [label], number


def test_two_ways_in_two_places_are_one_class(tmp_path):
    """A folder, a zip of tables, a tar of .cls, a list and numbers in JSON, made one set."""
    folder = write_folder(tmp_path / "f", {f"{NFD}/1.png": PNG, "3.0/2.png": PNG})
    table = f"file_name,label\n1.png,{NFC}\n2.png,3\n".encode()
    zipped = write_zip(tmp_path / "z.zip", {"metadata.csv": table, "1.png": PNG, "2.png": PNG})
    tar = write_tar(
        tmp_path / "t.tar",
        [("1.png", PNG), ("1.cls", f"{MARK}{NFD}\n".encode()), ("2.png", PNG), ("2.cls", "3\r\n".encode("utf-16"))],
    )
    rows = jsonl({"file_name": "1.png", "label": NFC}, {"file_name": "2.png", "label": 3.0})
    write_folder(tmp_path / "l", {"1.png": PNG, "2.png": PNG, "list.jsonl": MARK.encode() + rows})
    listing, entries = listed(folder, zipped, tar, tmp_path / "l" / "list.jsonl")
    assert listing.classes == ["3", NFC]
    assert {entry.group for entry in entries.values() if not entry.code} == {"3", NFC}


def test_the_mark_before_the_class(tmp_path):
    """After a report: .cls and .txt that begin with the mark of UTF-8, 3.0 for 3."""
    labels = [b"rose", b"\xef\xbb\xbfrose", b"3", b"3.0", b"\xef\xbb\xbf3\r\n", b"3\n"]
    members = []
    for number, label in enumerate(labels):
        members += [
            (f"{number}.png", picture(number)),
            (f"{number}.cls", label),
            (f"{number}.txt", b"\xef\xbb\xbfa rose"),
        ]
    made = pairs(prepared(write_tar(tmp_path / "a.tar", members)))
    assert made == [(n, "rose" if n < 2 else "3", "a rose", ()) for n in range(6)]


@pytest.mark.parametrize(
    "raw",
    [f"{MARK} {NFD}\r\n".encode(), NFC.encode("utf-16"), f"{MARK}{NFD}".encode("utf-16-be"), f"a {NFD}"[2:].encode()],
)
def test_captions_beside_lose_what_cannot_be_seen(tmp_path, raw):
    source = write_folder(tmp_path / "s", {"1.png": PNG, "1.txt": raw})
    assert pairs(prepared(source)) == [(1, None, NFC, ())]


def test_captions_of_tables_and_json_lose_what_cannot_be_seen(tmp_path):
    rows = jsonl({"file_name": "1.png", "text": f"{MARK}{NFD} "})
    files = {"1.png": PNG, "metadata.jsonl": rows, "a/2.png": picture(2), "a/2.json": f'{{"text": "{NFD}"}}'.encode()}
    assert [caption for _, _, caption, _ in pairs(prepared(write_folder(tmp_path / "s", files)))] == [NFC, NFC]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("said", ["3", "rose", "ein Caf\u00e9\r\n"])
def test_text_is_read_in_the_encoding_it_is_in(said, encoding):
    assert decoded(said.encode(encoding)) == said


def test_the_classes_of_a_set_made_before_stay_what_they_are(tmp_path):
    """Its list is fixed: two spellings, of which an older version made two classes, are not joined behind its back."""
    options = PrepareOptions(size=(2, 2), format="png")
    first = tmp_path / "first"
    prepare(
        write_folder(tmp_path / "s", {"a/1.png": picture(1), "b/2.png": picture(2)}),
        out=first,
        options=options,
        workers=1,
    )
    manifest = (first / "manifest.json").read_text().replace('"a"', '"3.0"').replace('"b"', '"3"')
    (first / "manifest.json").write_text(manifest)
    prepare(first, out=tmp_path / "second", options=options, workers=1)
    assert load_manifest(tmp_path / "second").classes == ["3.0", "3"]


def test_a_label_is_found_by_its_spelling():
    assert same_label(NFD, ["x", NFC]) == NFC
    assert same_label("3.0", ["3", "3.0"]) == "3.0"  # the same text goes first
    assert same_label(" 3", ["3.00", "3.0"]) is None  # two are as near
    assert same_label("03", ["3"]) is None


def test_classes_that_differ_in_case_or_zeros_are_told(tmp_path, capsys):
    assert look_alikes(["3", "03", "Rose", "rose", "tulip", "10", "1"]) == [["3", "03"], ["Rose", "rose"]]
    files = {f"{name}/{n}.png": picture(n) for n, name in enumerate(("3", "03", "x"))}
    options = PrepareOptions(size=(2, 2), format="png")
    report = prepare(write_folder(tmp_path / "s", files), out=tmp_path / "out", options=options, workers=1)
    print_report(report, as_json=False, asked_to_hold_out=False)
    assert "nearly the same name: 03 and 3" in capsys.readouterr().out
    assert list(report.classes) == ["03", "3", "x"]
