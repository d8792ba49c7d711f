"""Bad and odd pictures: one verdict each, the right pixels of what is kept, and neighbours that do not notice."""

import io
import json
import tarfile
import time
from collections import Counter

import badimages
import numpy as np
import pytest
from badimages import NOISE, H, W
from PIL import Image, ImageFile

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.making.workers import Workers
from hdit_cli.data.prepare.pictures.limits import Limits
from hdit_cli.data.prepare.pictures.process import process
from hdit_cli.data.reader import ShardReader

OPTIONS = PrepareOptions(size=(H, W), format="png")
CPU_SECONDS = 2.0  # of one picture
TIGHT = Limits(memory=512 << 20, seconds=20)
MUTATED = 3000
CODES = {"empty", "not-a-picture", "zero-size", "too-many-pixels", "truncated", "damaged"}

CASES = badimages.fixed()


def pixels_in(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def wrong(case, *, verdict, codes, pixels):
    """What is wrong with the verdict on a fixed case, "" if nothing."""
    if not case.is_kept:
        return "" if verdict == "refused" and codes[0] in case.codes else f"{verdict} {codes}, not {case.codes}"
    if verdict != "kept" or tuple(codes) != tuple(sorted(case.codes)):
        return f"{verdict} {codes}, not {case.codes}"
    off = np.abs(pixels.astype(int) - case.pixels).mean()
    return "" if off <= case.off else f"pixels are off by {off}"


def test_there_are_enough_kinds():
    kept = sum(case.is_kept for case in CASES)
    print(f"{len(CASES)} fixed pictures: {kept} kept, {len(CASES) - kept} refused")
    assert len(CASES) >= 264 and kept >= 100 and len(CASES) - kept >= 100


def test_every_fixed_picture_gets_its_verdict(entries_of, capsys):
    entries = entries_of((case.name, case.data) for case in CASES)
    failures, slowest = [], 0.0
    for case, entry in zip(CASES, entries, strict=True):
        start = time.process_time()
        outcome = process(entry, OPTIONS)
        slowest = max(slowest, time.process_time() - start)
        pixels = pixels_in(outcome.members[".png"]) if outcome.members else None
        problem = wrong(case, verdict=outcome.verdict, codes=outcome.codes, pixels=pixels)
        failures += [f"{case.name}: {problem}"] if problem else []
    assert not failures, "\n".join(failures)
    out = capsys.readouterr()
    assert out.out == out.err == ""  # no decoder's warning escapes
    print(f"{len(CASES)} fixed pictures, the slowest {slowest:.2f} s of CPU time")
    assert slowest < CPU_SECONDS


def test_a_whole_preparation_of_them(tmp_path):
    """In folders with good pictures, two workers: counts add up, and all that is kept is read back from the shards."""
    expected, good = {}, {}
    for number, case in enumerate(CASES):
        path = f"class {number % 3}/{case.name}"
        expected[path] = case
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(case.data)
    for number in range(40):
        path = f"class {number % 3}/good {number}.png"
        good[path] = np.roll(NOISE, number + 1, axis=1)
        (tmp_path / "in" / path).write_bytes(badimages.saved(good[path]))
    (tmp_path / "in" / "class 0" / "notes.txt").write_text("beside")
    report = prepare(tmp_path / "in", out=tmp_path / "out", options=OPTIONS, workers=2)
    assert report.seen == len(CASES) + len(good) + 1 == report.kept + report.refused + report.side
    assert report.kept == sum(case.is_kept for case in CASES) + len(good) and report.side == 1
    verdicts = {line["path"]: line for line in json.loads((tmp_path / "out" / "report.json").read_text())["files"]}
    refused = {path for path, line in verdicts.items() if line["verdict"] == "refused"}
    assert refused == {path for path, case in expected.items() if not case.is_kept}
    assert all(verdicts[path]["code"] in expected[path].codes for path in refused)
    reader = ShardReader(tmp_path / "out")
    for number, path in enumerate(paths_in(tmp_path / "out")):
        pixels = reader.picture(number)
        assert reader.classes[reader.labels[number]] == path.partition("/")[0]
        if path in good:
            assert np.array_equal(pixels, good.pop(path))
        else:
            case = expected.pop(path)
            assert np.abs(pixels.astype(int) - case.pixels).mean() <= case.off, path
    assert not good and not any(case.is_kept for case in expected.values())


def paths_in(data):
    """The source of each picture of a data set, in order."""
    for shard in sorted(data.glob("*.tar")):
        with tarfile.open(shard) as tar:
            yield from (json.load(tar.extractfile(member))["path"] for member in tar if member.name.endswith(".json"))


def test_mutated_pictures(entries_of, drawn):
    """3,000 of them, with a good one after every ninth, in two workers under tight limits: nothing dies, nothing is slow."""
    pictures = []
    for number in range(MUTATED):
        kind, data = badimages.mutated(drawn)
        pictures.append((f"{number} {kind}", data))
        if number % 9 == 8:
            pictures.append((f"good {number}", badimages.VALID["png"]))
    codes, compared = Counter(), 0
    with Workers(2, OPTIONS, limits=TIGHT) as workers:
        for (name, data), (entry, outcome) in zip(pictures, workers.outcomes(entries_of(pictures)), strict=True):
            assert entry.path == name
            if name.startswith("good"):
                assert outcome.codes == () and np.array_equal(pixels_in(outcome.members[".png"]), NOISE)
            elif outcome.verdict == "refused":
                assert outcome.codes[0] in CODES, (name, outcome)
            else:
                assert outcome.verdict == "kept"
                compared += compare(name, data, outcome)
            codes[outcome.codes[0] if outcome.verdict == "refused" else "kept"] += 1
    print(
        f"{MUTATED} mutated and {codes['kept']} kept with the good ones, {compared} compared by pixels; {dict(codes)}"
    )
    assert codes.total() == len(pictures) and codes["damaged"] > 100 and codes["kept"] > 500 and compared > 300


@pytest.mark.filterwarnings("ignore")  # Pillow's, on what was mutated
def compare(name, data, outcome):
    """Whether a kept picture could be compared with what Pillow makes of it; fails where they differ."""
    pixels = pixels_in(outcome.members[".png"])
    assert pixels.shape == (H, W, 3)
    expected = badimages.reference(data)
    if expected is None or expected.shape != pixels.shape or "16-bit" in outcome.codes:
        return False
    assert np.abs(pixels.astype(int) - expected).max() <= 1, name
    return True


# Traps


def test_guards_that_a_library_has_taken_down(monkeypatch, entries_of):
    """Pillow's flags are global; whoever sets them does not change a verdict, and finds them as they were."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    cut = badimages.VALID["jpeg"]
    bomb = next(case.data for case in CASES if case.name == "bomb 20000x20000.png")
    outcomes = [
        process(entry, OPTIONS) for entry in entries_of([("cut.jpg", cut[: len(cut) // 2]), ("bomb.png", bomb)])
    ]
    assert [outcome.codes for outcome in outcomes] == [("truncated",), ("too-many-pixels",)]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS is None


def test_no_other_parser_is_reached(monkeypatch, entries_of):
    """EPS starts Ghostscript, and others have their own bugs: only the formats that are kept ever see a byte."""
    Image.init()
    read = {"JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM"}
    reached = []
    for kind in list(Image.OPEN):
        if kind not in read:
            monkeypatch.setitem(Image.OPEN, kind, (lambda *_, kind=kind, **__: reached.append(kind), lambda _: True))
    for entry in entries_of((case.name, case.data) for case in CASES if "bomb" not in case.name):
        process(entry, OPTIONS)
    assert reached == [] and len(Image.OPEN) > len(read) + 20
