"""Held-out pictures: chosen by their bytes, counted, never in the training shards, the same whatever the workers or kills."""

import io
import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.prepare.pictures.hold_out import falls_under
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.run.verify import verify_data
from hdit_cli.errors import DataError, Interrupted, UsageError

OPTIONS = PrepareOptions(size=(16, 16), shard_size=5, format="png", hold_out=0.3)


def png(number):
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 pictures in two classes, a copy of each in the other, 4 refused files, a caption for each of the first ten."""
    root = tmp_path_factory.mktemp("source") / "pictures"
    for name, other in (("daisy", "rose"), ("rose", "daisy")):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / other).mkdir(exist_ok=True)
        for number in range(20):
            data = png(number + 100 * (name == "rose"))
            (root / name / f"{number:02d}.png").write_bytes(data)
            (root / other / f"copy-{number:02d}.png").write_bytes(data)
        for number in range(2):
            (root / name / f"broken-{number}.png").write_bytes(png(number)[:60] + name.encode())
    for number in range(10):
        (root / "rose" / f"{number:02d}.txt").write_text(f"rose {number}")
    return root


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    return out, prepare(source, out=out, options=OPTIONS, workers=1)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pictures(folder):
    reader = ShardReader(folder)
    return {reader.picture(number).tobytes() for number in range(len(reader))}


def test_every_file_is_accounted_for(made):
    out, report = made
    assert report.seen == report.kept + report.refused + report.side + report.held_out == 94
    assert (report.refused, report.side) == (4, 10)
    told = json.loads((out / "report.json").read_text())
    assert told["held_out"] == report.held_out == told["codes"]["held-out"]
    assert sum(line["code"] == "held-out" for line in told["files"]) == report.held_out
    training, held_out = ShardReader(out), ShardReader(out / "held-out")
    assert (len(training), len(held_out)) == (report.kept, report.held_out)
    assert held_out.classes == training.classes == ["daisy", "rose"]
    assert set(held_out.labels.tolist()) == {0, 1}
    assert not list(out.rglob(".prepare"))


def test_the_choice_is_by_bytes_so_copies_go_together(made, source):
    out, report = made
    expected = {
        np.asarray(Image.open(path)).tobytes()
        for path in source.rglob("*.png")
        if not path.name.startswith("broken") and falls_under(io.BytesIO(path.read_bytes()), 0.3)
    }
    assert pictures(out / "held-out") == expected
    assert not pictures(out) & expected
    assert report.held_out == 2 * len(expected)  # each with its copy
    assert len(pictures(out) | expected) == 40


def test_the_share_is_kept_and_nested():
    """Of 4,000 files; a larger share holds out what a smaller one does, and more."""
    files = [number.to_bytes(4, "big") for number in range(4000)]
    held = {share: {data for data in files if falls_under(io.BytesIO(data), share)} for share in (0.0, 0.05, 0.2)}
    assert held[0.0] == set()
    assert len(held[0.05]) == pytest.approx(200, abs=60)  # 4 standard deviations
    assert len(held[0.2]) == pytest.approx(800, abs=105)
    assert held[0.05] < held[0.2]


def test_the_same_bytes_for_any_workers(made, source, tmp_path):
    prepare(source, out=tmp_path / "out", options=OPTIONS, workers=3)
    assert tree(tmp_path / "out") == tree(made[0])
    again = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert again.complete_before and again.held_out == made[1].held_out
    assert tree(tmp_path / "out") == tree(made[0])


def test_stopped_half_way_it_goes_on(source, made, tmp_path):
    out, report = tmp_path / "out", made[1]
    told = []

    def stop(progress):
        told.append(progress)
        if progress.done == report.seen // 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        prepare(source, out=out, options=OPTIONS, workers=1, progress=stop)
    assert told[-1].total == report.seen
    assert list((out / "held-out").glob("*.tar")) and not (out / "manifest.json").exists()
    with pytest.raises(UsageError, match="hold_out differ"):
        prepare(source, out=out, options=replace(OPTIONS, hold_out=0.0), workers=1)
    prepare(source, out=out, options=OPTIONS, workers=1)
    assert tree(out) == tree(made[0])


def test_without_it_nothing_is_different(source, tmp_path):
    plain = replace(OPTIONS, hold_out=0.0)
    report = prepare(source, out=tmp_path / "out", options=plain, workers=1)
    assert report.held_out == 0 and report.kept == 80
    assert "hold_out" not in (tmp_path / "out" / "manifest.json").read_text()
    assert "held" not in (tmp_path / "out" / "report.json").read_text()
    assert not (tmp_path / "out" / "held-out").exists()


def test_one_path_twice_in_an_archive(tmp_path):
    held = next(number for number in range(100) if falls_under(io.BytesIO(png(number)), 0.3))
    free = next(number for number in range(100) if not falls_under(io.BytesIO(png(number)), 0.3))
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", png(held))
        archive.writestr("a.png", png(free))
    report = prepare(tmp_path / "twice.zip", out=tmp_path / "out", options=OPTIONS, workers=1)
    assert (report.kept, report.held_out) == (1, 1)
    assert pictures(tmp_path / "out") | pictures(tmp_path / "out" / "held-out") == {
        np.asarray(Image.open(io.BytesIO(png(number)))).tobytes() for number in (held, free)
    }


def test_nothing_left_to_train_on(tmp_path):
    held = next(number for number in range(100) if falls_under(io.BytesIO(png(number)), 0.3))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(png(held))
    with pytest.raises(DataError, match="was held out"):
        prepare(tmp_path / "source", out=tmp_path / "out", options=OPTIONS, workers=1)


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UsageError, match="--hold-out"):
        PrepareOptions(hold_out=share)


def test_verify_covers_it(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    names = [checked.name for checked in verify_data(out)]
    assert "held-out/00000.tar" in names and not any(checked.problem for checked in verify_data(out))
    tar = out / "held-out" / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert [checked.name for checked in verify_data(out) if checked.problem] == ["held-out/00000.tar"]
    shutil.rmtree(out / "held-out")
    assert [checked.name for checked in verify_data(out) if checked.problem] == ["held-out"]
