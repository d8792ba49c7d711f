"""Manifests, labels and names: nonsense is told in one line, no pair is ever wrong, and others can read what we write."""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from makingimages import SEED
from PIL import Image
from written_sets import CLASSES, COUNT, make, pixels_of

from hdit_cli.data import shards
from hdit_cli.data.loader import Loader
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.run.verify import verify_data
from hdit_cli.errors import DataError

QUIET = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sets") / "set")


# Manifests

ODD = [
    None, True, False, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), 1e308, 2**63, 10**40, "", "8", "x", "\ud800", "../x.tar",
    "/etc/passwd", "00000.tar", "00001.tar\0", "C:\\x.tar", "０００００.tar", [], {}, [[]], [1], {"a": 1}, "y" * 10_000,
]  # fmt: skip


def places(value, path=()):
    """Every place inside a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield from places(entry, (*path, key))


def changed(manifest, path, value, *, remove=False):
    out = json.loads(json.dumps(manifest))
    if not path:
        return value
    inside = out
    for key in path[:-1]:
        inside = inside[key]
    if remove:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return out


def judged(folder, raw):
    """ "refused" with one short line, or "right": all that is then read is what was put in, under the same class."""
    (folder / "manifest.json").write_bytes(raw)
    try:
        reader = ShardReader(folder)
        pictures = [reader.picture(number) for number in range(len(reader))]
    except DataError as error:
        assert error.exit_code == 3 and "\n" not in error.message and len(error.message) < 1000
        return "refused"
    numbers = {pixels_of(number).tobytes(): number for number in range(COUNT)}
    found = [numbers[picture.tobytes()] for picture in pictures]
    assert len(set(found)) == len(found)
    assert [int(label) for label in reader.labels] == [number * 7 % CLASSES for number in found]
    return "right"


def test_manifests_of_nonsense(whole, tmp_path, drawn):
    """Each value of it replaced by odd ones or removed, then random bytes of the text changed: 2,000 and more."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    text = (whole / "manifest.json").read_bytes()
    manifest = json.loads(text)
    told = {"refused": 0, "right": 0}
    for path in places(manifest):
        for value in ODD:
            told[judged(folder, json.dumps(changed(manifest, path, value)).encode())] += 1
        if path:
            told[judged(folder, json.dumps(changed(manifest, path, None, remove=True)).encode())] += 1
    while sum(told.values()) < 2000:
        raw = bytearray(text)
        for _ in range(drawn.integers(1, 4)):
            at = int(drawn.integers(len(raw)))
            raw[at : at + int(drawn.integers(3))] = drawn.bytes(int(drawn.integers(3)))
        told[judged(folder, bytes(raw))] += 1
    for raw in (
        b"",
        b"[",
        b"[" * 10_000,
        b"{" * 10_000,
        b'{"a":' * 10_000,
        b"\xff\xfe",
        b"[1]",
        b"9" * 5000,
    ):
        assert judged(folder, raw) == "refused"
    assert judged(folder, json.dumps({**manifest, "format": "x" * 50_000_000}).encode()) == "refused"
    assert judged(folder, json.dumps({**manifest, "more": "x" * 100_000_000}).encode()) == "refused"
    print(f"C5: {sum(told.values()) + 10} manifests, {told}")
    assert sum(told.values()) >= 2000 and told["refused"] > told["right"]


# Labels


FOLDERS, STEMS = ("a", "b", "a/deeper", ""), ("1", "1.2", "x", "X", ".y", "__z__")


def colour(number):
    return np.full((4, 4, 3), (number * 40 % 256, number * 97 % 256, 7), dtype=np.uint8)


@pytest.fixture(scope="module", params=[1, 3])
def prepared(request, tmp_path_factory):
    """A data set of pictures whose names collide over the folders; pixels => class of the source."""
    root = tmp_path_factory.mktemp("pairs")
    truth = {}
    for number, (folder, stem) in enumerate((folder, stem) for folder in FOLDERS for stem in STEMS):
        path = root / "in" / folder / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colour(number)).save(path)
        truth[colour(number).tobytes()] = folder.partition("/")[0] or None
    (root / "in" / "bad.jpg").write_bytes(b"no picture")
    options = PrepareOptions(size=(4, 4), format="png", shard_size=request.param)
    prepare(root / "in", out=root / "out", options=options, workers=1)
    return root / "out", truth


@seed(SEED)
@settings(QUIET, max_examples=100)
@given(data=st.data())
def test_no_pair_is_ever_wrong(prepared, data):
    """Damaged anywhere, up to three times: each (pixels, class) that an epoch emits is one of the source, none twice."""
    folder, truth = prepared
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "set"
        shutil.copytree(folder, copy)
        for _ in range(data.draw(st.integers(0, 3))):
            damage(data, sorted(path for path in copy.iterdir() if path.suffix in (".tar", ".idx")))
        emitted, complaint = epoch(copy)
    assert len(set(emitted)) == len(emitted)
    assert all(truth[pixels] == label for pixels, label in emitted)
    assert complaint or {pixels for pixels, _ in emitted} == set(truth)


def damage(data, victims):
    how = data.draw(st.sampled_from(["none", "flip", "cut", "remove", "swap", "zero"]))
    victim, other = data.draw(st.sampled_from(victims)), data.draw(st.sampled_from(victims))
    raw = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, max(0, len(raw) - 1)))
    if how == "flip" and raw:
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del raw[at:]
    elif how == "zero":
        raw[at : at + 512] = bytes(len(raw[at : at + 512]))
    elif how == "swap" and other.suffix == victim.suffix:
        raw, theirs = other.read_bytes(), bytes(raw)
        other.write_bytes(theirs)
    if how == "remove":
        victim.unlink()
    elif how != "none":
        victim.write_bytes(raw)


def epoch(folder):
    """One epoch as training reads it, a picture at a time: ((pixels, class) ..., whether it was stopped)."""
    emitted = []
    try:
        reader = ShardReader(folder)
        slots = [np.array([0])]
        with Loader(reader, batch_size=1, seed=1, position=0, steps=len(reader), slots=slots) as loader:
            for (batch,) in loader:
                label = int(batch.label[0])
                name = reader.classes[label] if label < len(reader.classes) else None
                emitted.append((batch.pixels[0].numpy().transpose(1, 2, 0).tobytes(), name))
    except DataError:
        return emitted, True
    return emitted, False


# Names

LETTERS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


def test_any_name_becomes_a_key(tmp_path):
    """300 names of hypothesis and those that break others: keys are numbers, and lead back to the names."""
    names = {
        "a.b.jpg",
        "a.c.jpg",
        ".hidden.jpg",
        "__x__.png",
        "22.05.png",
        "no suffix",
        "s?x#1.jpg",
        "{0..9}.jpg",
        "-rf",
        "a\nb",
        "%d",
    }

    @seed(SEED)
    @settings(QUIET, max_examples=300)
    @given(LETTERS)
    def collect(name):
        if name not in (".", "..") and len(name.encode()) < 250:
            names.add(name)

    collect()
    folder = tmp_path / "in"
    folder.mkdir()
    kept = set()
    data = io.BytesIO()
    Image.fromarray(pixels_of(0)).save(data, "PNG")
    for name in sorted(names):
        (folder / name).write_bytes(data.getvalue())
    report = prepare(
        folder, out=tmp_path / "out", options=PrepareOptions(size=(8, 8), format="png", shard_size=64), workers=2
    )
    read = 0
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
            assert sample["__key__"].isascii() and sample["__key__"].isdigit() and len(sample["__key__"]) == 9
            kept.add(json.loads(sample["json"])["path"])
            read += 1
    assert len(kept) == read == report.kept == len(ShardReader(tmp_path / "out")) and kept <= names
    assert report.seen == len(names)
    print(f"C7: {len(names)} names")


def test_others_read_what_we_write(whole):
    """C8: the same bytes through tarfile, GNU tar, stock webdataset, and our reader."""
    reader = ShardReader(whole)
    number = 0
    for shard in sorted(whole.glob("*.tar")):
        listed = subprocess.run(["tar", "--list", "--file", str(shard)], capture_output=True, text=True, check=True)
        with tarfile.open(shard) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        assert listed.stdout.splitlines() == list(members) and listed.stderr == ""
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
            assert members[f"{sample['__key__']}.png"] == sample["png"] == reader.read(number)
            assert int(sample["cls"]) == reader.labels[number] and sample["txt"] == members[f"{number:09d}.txt"]
            number += 1
    assert number == COUNT and not [checked for checked in verify_data(whole) if checked.problem]
    assert shards.load_manifest(whole).count == COUNT
