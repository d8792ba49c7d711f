"""The law of prepare: the bytes are a function of source and options, whatever the workers, also after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from deadly_place import DeadlyPlace
from PIL import Image

from hdit_cli import files
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.making.workers import Workers
from hdit_cli.data.prepare.pictures.heic import is_read
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.shard_index import read_index
from hdit_cli.data.shards import load_manifest
from hdit_cli.errors import DataError, Interrupted, StorageError, UsageError

OPTIONS = PrepareOptions(size=(16, 16), shard_size=5)
ODD = Path(__file__).parents[2].parent / "shared" / "data" / "odd"

SCRIPT = """
import os, signal, sys
from pathlib import Path
from hdit_cli import files
from hdit_cli.data.prepare import PrepareOptions, prepare

def kill_at(number):
    told = []
    def observe(operation, path):
        told.append(operation)
        if len(told) == number:
            os.kill(os.getpid(), signal.SIGKILL)
    return observe

if __name__ == "__main__":
    source, out, number = sys.argv[1:]
    if int(number):
        files.observer = kill_at(int(number))
    slow = (lambda p: print("file", flush=True)) if not int(number) else None
    prepare(Path(source), out=Path(out), options=PrepareOptions(size=(16, 16), shard_size=5), workers=2, progress=slow)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """13 pictures of two classes and of none, 3 that are refused, 2 side files."""
    root = tmp_path_factory.mktemp("source") / "pictures"
    random = np.random.default_rng(3)
    for number in range(13):
        folder = root / ("daisy", "rose", "")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (root / "rose" / "01.txt").write_text("a rose, 花\n", encoding="utf-8")
    (root / "rose" / "00-broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
    (root / "a-page.html").write_text("<html>")
    (root / "zz-empty.png").write_bytes(b"")
    (root / "README.md").write_text("about")
    return root


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    return out, prepare(source, out=out, options=OPTIONS, workers=2)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_accounted_for(source, made):
    out, report = made
    assert (report.seen, report.kept, report.refused, report.side) == (18, 13, 3, 2)
    assert report.classes == {"daisy": 5, "rose": 4} and report.unlabelled == 4
    told = json.loads((out / "report.json").read_text())
    assert told["seen"] == told["kept"] + told["refused"] + told["side"] == 18
    by_path = {line["path"]: (line["verdict"], line["code"]) for line in told["files"]}
    assert by_path["rose/00-broken.jpg"][0] == "refused" and by_path["zz-empty.png"] == ("refused", "empty")
    assert by_path["a-page.html"] == ("refused", "not-a-picture")
    assert by_path["README.md"] == ("side", "side-file") and by_path["rose/01.txt"] == ("side", "caption")
    assert len(by_path) == len(told["files"]) == 5  # nothing else was other than plainly kept
    with Image.open(out / "preview.png") as preview:
        assert preview.size == (4 * 18 + 2, 4 * 18 + 2)


def test_shards_hold_the_pictures_in_order(source, made):
    out, _ = made
    manifest = load_manifest(out)
    assert manifest.classes == ["daisy", "rose"] and manifest.image_size == [16, 16] and manifest.count == 13
    candidates = sorted((str(p.relative_to(source)) for p in source.rglob("*.[jph][pnt][gm]*")), key=str.encode)
    names = [name for name in candidates if name[-6:-4].isdigit()]  # the others are refused
    numbers = [number for number, name in enumerate(candidates) if name in names]
    assert len(candidates) == 16 and len(names) == 13
    counts = [sum(number // 5 == shard for number in numbers) for shard in range(4)]
    assert [(shard.name, shard.count) for shard in manifest.shards] == [
        (f"{number:05d}.tar", count) for number, count in enumerate(counts) if count
    ]
    assert counts[3] == 0  # five candidates a shard, and in the last one none that can be kept
    samples = list(webdataset.WebDataset([str(out / s.name) for s in manifest.shards], shardshuffle=False))
    assert [json.loads(sample["json"])["path"] for sample in samples] == names
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in numbers]
    records = np.concatenate([read_index(out, shard) for shard in manifest.shards])
    raw = {shard.name: (out / shard.name).read_bytes() for shard in manifest.shards}
    at = [(shard.name, row) for shard in manifest.shards for row in range(shard.count)]
    for sample, record, name, (shard, _) in zip(samples, records, names, at, strict=True):
        picture = raw[shard][record["offset"] : record["offset"] + record["size"]]
        assert picture == sample["jpg"] and zlib.crc32(picture) == record["crc32"]
        label = {"daisy": 0, "rose": 1}.get(name.split("/")[0], -1)
        assert record["label"] == label and sample.get("cls", b"-1") == str(label).encode()
        assert (sample.get("txt") == "a rose, 花".encode()) == (name == "rose/01.png")
        with Image.open(io.BytesIO(picture)) as image, Image.open(source / name) as original:
            assert image.size == (16, 16) and json.loads(sample["json"])["size"] == [original.height, original.width]
    for shard in manifest.shards:
        assert files.sha256(out / shard.name) == shard.sha256 and (out / shard.name).stat().st_size == shard.bytes
        with tarfile.open(out / shard.name) as archive:
            assert len({member.name.split(".")[0] for member in archive}) == shard.count


def test_one_worker_makes_the_same_bytes(source, made, tmp_path):
    prepare(source, out=tmp_path / "one", options=OPTIONS, workers=1)
    assert tree(tmp_path / "one") == tree(made[0])


def test_complete_is_told_and_nothing_is_touched(source, made):
    out, report = made
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare(source, out=out, options=OPTIONS, workers=2)
    assert again == replace(report, complete_before=True)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_wish_for_the_same_folder_is_refused(source, made, tmp_path):
    out, _ = made
    for options in (replace(OPTIONS, fit="pad"), replace(OPTIONS, background="black"), replace(OPTIONS, size=(8, 8))):
        with pytest.raises(UsageError, match="other options"):
            prepare(source, out=out, options=options, workers=1)
    other = tmp_path / "pictures"
    other.mkdir()
    Image.new("RGB", (9, 9)).save(other / "a.png")
    with pytest.raises(UsageError, match="another source"):
        prepare(other, out=out, options=OPTIONS, workers=1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a data set") as caught:
        prepare(source, out=tmp_path / "taken", options=OPTIONS, workers=1)
    assert caught.value.hint and tree(tmp_path / "taken") == {"thesis.txt": b"mine"}
    with pytest.raises(UsageError, match="inside the source"):
        prepare(source, out=source / "out", options=OPTIONS, workers=1)
    with pytest.raises(UsageError, match="workers"):
        prepare(source, out=tmp_path / "x", options=OPTIONS, workers=0)


def test_a_picture_changed_since_is_noticed(source, tmp_path):
    copy = tmp_path / "pictures"
    copy.mkdir()
    Image.new("RGB", (9, 9), "red").save(copy / "a.bmp")
    out = tmp_path / "out"
    prepare(copy, out=out, options=OPTIONS, workers=1)
    Image.new("RGB", (9, 9), "blue").save(copy / "a.bmp")  # of the same size in bytes
    now = (out / "manifest.json").stat().st_mtime - 10
    os.utime(out / "manifest.json", (now, now))
    with pytest.raises(UsageError, match="newer"):
        prepare(copy, out=out, options=OPTIONS, workers=1)


def run_script(tmp_path, source, out, number):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, str(script), str(source), str(out), str(number)], stdout=subprocess.PIPE)


def killed_and_resumed(tmp_path, source, made, number):
    """Kills a run at its n-th change of the disk, runs it again; False where it ended before."""
    out = tmp_path / f"killed-{number}"
    with run_script(tmp_path, source, out, number) as process:
        code = process.wait()
    assert code in (0, -signal.SIGKILL)
    report = prepare(source, out=out, options=OPTIONS, workers=2)
    assert tree(out) == tree(made[0])
    assert replace(report, out=str(made[0]), complete_before=False) == made[1]
    return code != 0


def test_killed_half_way_and_run_again_gives_the_same_bytes(tmp_path, source, made):
    assert killed_and_resumed(tmp_path, source, made, 35)  # with two of four shards done


def test_a_second_run_takes_over_finished_shards(tmp_path, source, made, monkeypatch):
    out = tmp_path / "out"

    def stop(progress):
        if progress.kept == 12:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        prepare(source, out=out, options=OPTIONS, workers=1, progress=stop)
    assert caught.value.exit_code == 75 and not (out / "manifest.json").exists()
    finished = {name: (out / name).stat().st_mtime_ns for name in ("00000.tar", "00001.tar")}
    told = []
    with pytest.raises(UsageError, match="other options"):
        prepare(source, out=out, options=replace(OPTIONS, fit="pad"), workers=1)
    prepare(source, out=out, options=OPTIONS, workers=1, progress=told.append)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert 0 < len(told) <= 7 and tree(out) == tree(made[0])


def test_a_damaged_finished_shard_is_made_again(tmp_path, source, made):
    out = tmp_path / "out"

    def stop(progress):
        if progress.kept == 12:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        prepare(source, out=out, options=OPTIONS, workers=1, progress=stop)
    raw = bytearray((out / "00000.tar").read_bytes())
    raw[700] ^= 1
    (out / "00000.tar").write_bytes(raw)
    prepare(source, out=out, options=OPTIONS, workers=1)
    assert tree(out) == tree(made[0])


def descendants(process):
    told = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return told + [below for child in told for below in descendants(child)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_parent(tmp_path, source):
    with run_script(tmp_path, source, tmp_path / "out", 0) as process:
        assert process.stdout.readline() == b"file\n"
        children = descendants(process.pid)
        assert len(children) >= 3  # the server that starts them, and two of them
        process.kill()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_a_worker_that_dies_costs_its_picture_alone(source):
    from hdit_cli.data.prepare.sources.scan import scan

    good = [entry for entry in scan([source]).stream() if not entry.code and entry.path.endswith("0.png")] * 5
    entries = [*good[:3], Entry("deadly.jpg", DeadlyPlace()), *good[3:], Entry("deadly too.jpg", DeadlyPlace())]
    with Workers(2, OPTIONS) as pool:
        outcomes = list(pool.outcomes(iter(entries)))
    assert [entry.path for entry, _ in outcomes] == [entry.path for entry in entries]
    for entry, outcome in outcomes:
        assert outcome.codes == (("crashed",) if entry.path.startswith("deadly") else ())
        assert outcome.verdict == ("refused" if entry.path.startswith("deadly") else "kept")


def test_strict_and_nothing_kept(source, tmp_path):
    with pytest.raises(DataError, match="3 of 18 files were refused, the first: a-page") as caught:
        prepare(source, out=tmp_path / "strict", options=OPTIONS, workers=1, strict=True)
    assert caught.value.exit_code == 3 and not (tmp_path / "strict" / "manifest.json").exists()
    assert prepare(source, out=tmp_path / "strict", options=OPTIONS, workers=1).kept == 13  # from the finished shards
    with pytest.raises(DataError, match="3 of 18"):
        prepare(source, out=tmp_path / "strict", options=OPTIONS, workers=1, strict=True)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "page.jpg").write_text("<html>")
    with pytest.raises(DataError, match="none of the 1 file") as caught:
        prepare(texts, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert "page.jpg" in caught.value.message and caught.value.hint and tree(tmp_path / "out") == {}


def test_a_full_disk_is_a_storage_error_and_can_go_on(source, made, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(operation, path):
        if operation == "open" and "00001.tar" in path:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "observer", full)
    with pytest.raises(StorageError) as caught:
        prepare(source, out=out, options=OPTIONS, workers=1)
    assert caught.value.exit_code == 74
    monkeypatch.setattr(files, "observer", None)
    prepare(source, out=out, options=OPTIONS, workers=1)
    assert tree(out) == tree(made[0])


def test_zip_tar_and_our_own_shards_as_a_source(source, made, tmp_path):
    """The same pictures from a zip give the same pictures; ours, prepared again, keep classes and captions."""
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    prepare(tmp_path / "pictures.zip", out=tmp_path / "z", options=OPTIONS, workers=1)
    assert (tmp_path / "z" / "00000.tar").read_bytes() == (made[0] / "00000.tar").read_bytes()
    again = prepare(made[0], out=tmp_path / "again", options=replace(OPTIONS, format="png"), workers=1)
    assert again.classes == made[1].classes and again.kept == 13 and again.refused == 0 and again.unlabelled == 4
    with tarfile.open(tmp_path / "again" / "00000.tar") as archive:
        assert "000000000.png" in archive.getnames()
    captions = [
        s["txt"] for s in webdataset.WebDataset(str(tmp_path / "again" / "00001.tar"), shardshuffle=False) if "txt" in s
    ]
    captions += [
        s["txt"] for s in webdataset.WebDataset(str(tmp_path / "again" / "00002.tar"), shardshuffle=False) if "txt" in s
    ]
    assert captions == ["a rose, 花".encode()]


# The odd files


@pytest.mark.skipif(not ODD.is_dir(), reason=f"no odd pictures at {ODD}")
def test_the_odd_files(tmp_path):
    """Each file's verdict is what its line in INDEX.md says of it."""
    report = prepare(ODD, out=tmp_path / "odd", options=PrepareOptions(), workers=2)
    read = is_read()  # HEIC
    assert (report.kept, report.refused, report.side, report.seen) == (45 + read, 15 - read, 3, 63)
    assert read or report.codes["heic"] == 1
    told = json.loads((tmp_path / "odd" / "report.json").read_text())
    verdicts = {line["path"]: line for line in told["files"]}
    lines = [line for line in (ODD / "INDEX.md").read_text().splitlines() if line.startswith("- `")]
    assert len(lines) == 60
    for line in lines:
        name, what = line.split("`")[1], line.split("Pillow: ")[1]
        expected = "refused" if "fail" in what and not (read and name.endswith(".heif")) else "kept"
        assert verdicts.get(name, {"verdict": "kept"})["verdict"] == expected, name
        found = set(verdicts.get(name, {}).get("codes", [verdicts.get(name, {}).get("code")]))
        if expected == "kept":
            assert ("exif-turned" in found) == ("orientation " in what and "orientation 0" not in what), name
            assert ("first-frame" in found) == ("frames" in what), name
            assert ("cmyk" in found) == ("CMYK" in what), name


HUGE = """
import resource, sys
from pathlib import Path
from hdit_cli.data.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    report = prepare(Path(sys.argv[1]), out=Path(sys.argv[2]), options=PrepareOptions(), workers=2)
    own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(report.kept, int(own) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_144_megapixels_under_400_mb(tmp_path):
    """The command and its busy worker; the other, idle one takes some 60 MB more."""
    (tmp_path / "in").mkdir()
    Image.new("1", (12_000, 12_000), 1).save(tmp_path / "in" / "huge.png", compress_level=1)
    (tmp_path / "huge.py").write_text(HUGE)
    command = [sys.executable, str(tmp_path / "huge.py"), str(tmp_path / "in"), str(tmp_path / "out")]
    kept, kilobytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert kept == "1" and int(kilobytes) < 330_000
