"""Pictures equal as prepared: told, or left out but for the first, in the shards and in the account."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.finishing.duplicates import find_duplicates
from hdit_cli.data.prepare.making.task import Picture, Record
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.run.verify import verify_data
from hdit_cli.errors import DataError, UsageError

SHARD = 3
PLAIN = {"size": (16, 16), "shard_size": SHARD, "format": "png"}


def save(path, seed, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twelve files, of which five are equal to an earlier one by their pixels; two of these have other bytes."""
    root = tmp_path_factory.mktemp("source") / "pictures"
    seeds = {"a/0": 0, "a/1": 1, "a/2": 0, "a/3": 2, "b/4": 1, "b/5": 3, "b/6": 4, "b/7": 5, "b/8": 0, "c/9": 6}
    for name, seed in seeds.items():
        save(root / f"{name}.png", seed)
    save(root / "c" / "10.bmp", 6)  # before 9.png in the order of paths
    save(root / "d" / "11.bmp", 5)
    (root / "b" / "8.txt").write_text("a copy")
    (root / "d" / "zz.png").write_bytes(b"")
    return root


def lines(out):
    return {line["path"]: line for line in json.loads((out / "report.json").read_text())["files"]}


def paths(out):
    found = []
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            found += [json.load(archive.extractfile(name))["path"] for name in archive.getnames() if "json" in name]
    return found


def test_they_are_told(source, tmp_path):
    report = prepare(source, out=tmp_path / "out", options=PrepareOptions(**PLAIN), workers=1)
    assert (report.seen, report.kept, report.refused, report.side) == (14, 12, 1, 1)
    assert (report.duplicates, report.duplicate_groups, report.duplicates_across) == (5, 4, 0)
    first = {path: line["of"] for path, line in lines(tmp_path / "out").items() if "of" in line}
    assert first == {
        "a/2.png": "a/0.png",
        "b/4.png": "a/1.png",
        "b/8.png": "a/0.png",
        "c/9.png": "c/10.bmp",
        "d/11.bmp": "b/7.png",
    }
    assert report.codes["duplicate"] == 5 and lines(tmp_path / "out")["a/2.png"]["verdict"] == "kept"


def test_they_are_left_out(source, tmp_path):
    out = tmp_path / "out"
    report = prepare(source, out=out, options=PrepareOptions(**PLAIN, dedupe=True), workers=1)
    assert (report.seen, report.kept, report.refused, report.side) == (14, 7, 6, 1)
    assert report.classes == {"a": 3, "b": 3, "c": 1} and report.captions == 0  # of class d no picture is left
    assert paths(out) == ["a/0.png", "a/1.png", "a/3.png", "b/5.png", "b/6.png", "b/7.png", "c/10.bmp"]
    assert lines(out)["b/8.png"] == {"path": "b/8.png", "verdict": "refused", "code": "duplicate", "of": "a/0.png"}
    assert report.first_refused == ["d/zz.png", "empty"]
    reader = ShardReader(out)
    assert len({reader.picture(number).tobytes() for number in range(len(reader))}) == len(reader) == 7
    assert reader.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert [shard.count for shard in reader.manifest.shards] == [2, 2, 2, 1]
    assert not any(checked.problem for checked in verify_data(out))
    again = prepare(source, out=out, options=PrepareOptions(**PLAIN, dedupe=True), workers=1)
    assert again.complete_before and again.kept == 7


def test_strict_lets_them_pass(source, tmp_path):
    with pytest.raises(DataError, match="1 of 14 files were refused, the first: d/zz"):
        prepare(source, out=tmp_path / "o", options=PrepareOptions(**PLAIN, dedupe=True), workers=1, strict=True)


def test_on_both_sides_of_the_split(tmp_path):
    """The same pixels in files of other bytes, of which the hash decides: one of them may be held out."""
    for seed in range(24):
        for suffix in ("png", "bmp"):
            save(tmp_path / "source" / f"{seed:02d}.{suffix}", seed)
    out = tmp_path / "out"
    report = prepare(tmp_path / "source", out=out, options=PrepareOptions(**PLAIN, hold_out=0.5), workers=1)
    inside = {path for path, line in lines(out).items() if line["code"] == "held-out"}
    split = [seed for seed in range(24) if (f"{seed:02d}.png" in inside) != (f"{seed:02d}.bmp" in inside)]
    assert report.duplicates == 24 and report.duplicates_across == len(split) > 0
    assert {path[:2] for path, line in lines(out).items() if line.get("across")} == {f"{seed:02d}" for seed in split}


def test_parts_of_the_digests_find_the_same():
    """Whatever the number that are in memory at once, and as a dictionary finds them."""
    chance, all_records, expected, first = random.Random(0), [], {}, {}
    for task in range(20):
        pictures = []
        for row in sorted(chance.sample(range(40), 15)):
            digest = f"{chance.randrange(1 << 7) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"
            verdict = chance.choice(["kept", "held_out"])
            pictures.append(Picture(row, verdict, 0, [1, 1], [1, 1], 0, False, digest))
            if digest in first:
                expected[task, row] = (*first[digest][:2], first[digest][2] != verdict)
            else:
                first[digest] = (task, row, verdict)
        all_records.append(Record(task, 40, pictures=pictures))
    for at_once in (1, 7, 100, 1000):
        found = find_duplicates(lambda: all_records, most=300, at_once=at_once)
        assert {(task, row): tuple(each) for task in range(20) for row, each in found.of(task).items()} == expected
        assert found.groups == len({each[:2] for each in expected.values()}) and len(found) == len(expected)


def test_too_small(tmp_path):
    for name, size in (("wide", (20, 60)), ("tall", (60, 19)), ("fits", (20, 20))):
        save(tmp_path / "source" / f"{name}.png", 0, size)
    report = prepare(tmp_path / "source", out=tmp_path / "out", options=PrepareOptions(**PLAIN, min_size=20), workers=1)
    assert (report.kept, report.codes["too-small"]) == (2, 1)
    assert lines(tmp_path / "out")["tall.png"]["detail"] == "60x19"
    with pytest.raises(UsageError, match="min-size"):
        PrepareOptions(min_size=-1)


def test_what_the_pictures_were(tmp_path):
    for number, size in enumerate([(10, 40), (16, 16), (30, 30), (100, 80)]):
        save(tmp_path / "source" / f"{number}.png", number, size)
    (tmp_path / "source" / "0.txt").write_text("ten by forty")
    report = prepare(tmp_path / "source", out=tmp_path / "out", options=PrepareOptions(**PLAIN), workers=1)
    assert report.sides == {"min": 10, "median": 16, "max": 80}
    assert (report.smaller, report.cropped, report.captions, report.codes["upscaled"]) == (1, 2, 1, 1)
    with Image.open(io.BytesIO((tmp_path / "out" / "preview.png").read_bytes())) as preview:
        assert preview.size == (2 * 18 + 2, 2 * 18 + 2)
