"""Aspect-ratio buckets on the disk: which sizes there are, where a picture goes, what index, manifest and report tell."""

import dataclasses
import io
import json
import math
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hdit_cli.cli import main
from hdit_cli.data import shard_index, shards
from hdit_cli.data.prepare import Buckets, PrepareOptions, prepare
from hdit_cli.data.prepare.buckets import bucket_sizes, cut_away, default_step, nearest
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shard_index import read_index
from hdit_cli.data.shards import Bucket, buckets_of, load_manifest, writing_shard
from hdit_cli.engine.run.verify import verify_data
from hdit_cli.errors import DataError, UsageError

OPTIONS = PrepareOptions(size=(32, 32), format="png", shard_size=4, buckets=Buckets(step=8, ratio=2.0))
# (height, width) as shown => bucket
SHAPES = {
    (60, 60): (32, 32),
    (50, 90): (24, 40),
    (90, 50): (40, 24),
    (40, 400): (24, 40),
    (30, 33): (32, 32),
    (80, 48): (40, 24),
    (20, 33): (24, 40),
}


# Geometry


@given(height=st.integers(4, 40), width=st.integers(4, 40), step=st.integers(1, 64), widest=st.floats(1.05, 8))
def test_buckets_have_nearly_one_area(height, width, step, widest):
    size = (height * step, width * step)
    try:
        found = bucket_sizes(size, step=step, widest=widest)
    except UsageError as error:
        assert "only one bucket" in error.message
        return
    assert size in found
    assert len(set(found)) == len(found) > 1
    for h, w in found:
        assert h % step == w % step == 0
        if (h, w) != size:
            assert max(h / w, w / h) <= widest
            assert (w, h) in found
            assert abs(h * w - size[0] * size[1]) <= step * min(h, w) / 2
    assert [w / h for h, w in found] == sorted(w / h for h, w in found)


def test_the_buckets_at_256_never_change_silently():
    tall = [(336, 192), (320, 208), (288, 224), (272, 240)]
    expected = [*tall, (256, 256), *((w, h) for h, w in reversed(tall))]
    assert list(bucket_sizes((256, 256), step=default_step((256, 256)), widest=2)) == expected


@pytest.mark.parametrize(("side", "step"), [(32, 8), (64, 8), (128, 8), (256, 16), (512, 32), (1024, 64)])
def test_the_default_step_suits_the_shipped_recipes(side, step):
    from hdit_cli.recipe import load_recipe
    from hdit_cli.recipe.source import shipped

    assert default_step((side, side)) == step
    sizes = bucket_sizes((side, side), step=step, widest=2)
    recipes = [load_recipe(name).model for name in shipped()]
    fitting = [model for model in recipes if model.size == (side, side)]
    assert fitting or side in (64, 512)
    for model in fitting:
        assert not any(model.misfits(size) for size in sizes)


@given(size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_a_picture_goes_to_the_nearest_shape(size):
    sizes = bucket_sizes((256, 256), step=16, widest=2)

    def distance(bucket):
        return abs(math.log(size[1] / size[0]) - math.log(bucket[1] / bucket[0]))

    assert distance(nearest(size, sizes)) == pytest.approx(min(map(distance, sizes)), abs=1e-12)


def test_what_is_cut_away():
    assert cut_away((100, 200), (50, 100)) == 0
    assert cut_away((100, 200), (64, 64)) == 0.5
    assert cut_away((300, 100), (64, 64)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (30, 32)}, "multiples of 8"),
        ({"fit": "pad"}, "--fit is pad"),
        ({"fit": "squash"}, "--fit is squash"),
        ({"buckets": Buckets(step=0, ratio=2.0)}, "--bucket-step is 0"),
        ({"buckets": Buckets(step=8, ratio=math.nan)}, "--bucket-ratio is nan"),
        ({"buckets": Buckets(step=8, ratio=1.0)}, "--bucket-ratio is 1"),
        ({"buckets": Buckets(step=32, ratio=2.0)}, "only one bucket"),
        ({"size": (16384 - 8, 16384 - 8)}, "cannot be written"),
    ],
)
def test_options_that_cannot_be(changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        dataclasses.replace(OPTIONS, **changes)
    assert caught.value.hint


def test_told_options_are_as_before_without_buckets():
    assert "buckets" not in PrepareOptions().told()
    assert OPTIONS.told()["buckets"] == {"step": 8, "ratio": 2.0}


# A prepared set


def gradient(height, width):
    """Smooth, so that a lossy or shifted crop is seen: uint8 (H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "source"
    for number, (height, width) in enumerate(SHAPES):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient(height, width)).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: 90 high, 50 wide
    Image.fromarray(gradient(50, 90)).save(folder / "a" / "turned.jpg", exif=exif, quality=95)
    return folder


@pytest.fixture(scope="module")
def made(source):
    out = source.parent / "set"
    report = prepare(source, out=out, options=OPTIONS, workers=1)
    return out, report


def paths_in_order(out):
    found = []
    for shard in load_manifest(out).shards:
        with tarfile.open(out / shard.name) as archive:
            names = [name for name in archive.getnames() if name.endswith(".json")]
            found += [json.loads(archive.extractfile(name).read())["path"] for name in names]
    return found


def expected_bucket(path):
    return (40, 24) if "turned" in path else list(SHAPES.values())[int(path.split("/")[1].split(".")[0])]


def test_each_picture_is_in_its_bucket(made, source):
    out, report = made
    reader = ShardReader(out)
    assert reader.image_size == (32, 32)
    assert [bucket.size for bucket in reader.buckets] == [[40, 24], [32, 32], [24, 40]]
    assert [bucket.count for bucket in reader.buckets] == [3, 2, 3]
    assert reader.sizes == [(40, 24), (32, 32), (24, 40)]
    for number, path in enumerate(paths_in_order(out)):
        height, width = expected_bucket(path)
        assert reader.size_of(number) == (height, width) == reader.picture(number).shape[:2]
        if path.endswith(".png"):
            with Image.open(source / path) as image:
                scale = min(image.width / width, image.height / height)
                left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
                box = (left, top, image.width - left, image.height - top)
                small = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
            assert np.array_equal(reader.picture(number), np.asarray(small))
        else:  # rows of the stored picture become columns, from right to left
            assert np.corrcoef(reader.picture(number)[20, :, 0], -np.arange(24))[0, 1] > 0.99
    assert report.kept == 8
    assert all(not checked.problem for checked in verify_data(out))


def test_the_report_tells_what_was_cut_away(made):
    out, report = made
    told = json.loads((out / "report.json").read_text())["buckets"]
    assert told == report.buckets
    assert [(each["size"], each["count"]) for each in told] == [([40, 24], 3), ([32, 32], 2), ([24, 40], 3)]
    cuts = [cut_away(shape, SHAPES[shape]) for shape in SHAPES if SHAPES[shape] == (24, 40)]
    assert told[2]["cropped"] == pytest.approx(np.mean(cuts), abs=1e-4)
    again = prepare(out.parent / "source", out=out, options=OPTIONS, workers=1)
    assert again.complete_before and again.buckets == report.buckets


def test_stock_readers_read_it(made):
    out, _ = made
    tars = [str(out / shard.name) for shard in load_manifest(out).shards]
    read = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil"))
    assert len(read) == 8
    for sample in read:
        assert (sample["png"].height, sample["png"].width) == expected_bucket(sample["json"]["path"])


def test_bytes_do_not_depend_on_the_workers(made, source, tmp_path):
    out, _ = made
    prepare(source, out=tmp_path / "again", options=OPTIONS, workers=2)
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((out / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_other_buckets_are_another_data_set(made, source):
    with pytest.raises(UsageError, match=r"options \(buckets differ\)"):
        prepare(source, out=made[0], options=dataclasses.replace(OPTIONS, buckets=None), workers=1)


def test_the_preview_shows_each_shape_whole(made):
    out, _ = made
    reader = ShardReader(out)
    with Image.open(out / "preview.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (3 * 42 + 2, 3 * 42 + 2, 3)  # 8 pictures, cells of the tallest and widest, gaps of 2
    for number in range(8):
        top, left = 2 + number // 3 * 42, 2 + number % 3 * 42
        height, width = reader.size_of(number)
        top, left = top + (40 - height) // 2, left + (40 - width) // 2
        assert np.array_equal(pixels[top : top + height, left : left + width], reader.picture(number))


def test_the_command(source, tmp_path, capsys):
    def command(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code

    words = ["prepare", source, "--size", 32, "--buckets", "--format", "png", "--workers", 1]
    assert command(*words, "--out", tmp_path / "set") == 0
    told = capsys.readouterr().out
    assert "8 pictures of 3 sizes around 32x32" in told
    assert "bucket 24x40, " in told
    assert command("info", tmp_path / "set") == 0
    assert "3   24x40" in capsys.readouterr().out
    assert command("prepare", source, "--size", 32, "--bucket-step", 8, "--out", tmp_path / "x") == 2
    assert "add --buckets" in capsys.readouterr().err


# The format


def samples(folder, *, sized):
    folder.mkdir()
    with writing_shard(folder, 0, sized=sized) as writer:
        for number, size in enumerate([(8, 4), (4, 8), (8, 4)]):
            writer.add(number, {".jpg": bytes([number]) * 700, ".json": b"{}"}, label=number, size=size)
    return writer.info("00000.tar")


def test_without_buckets_the_index_is_as_before(tmp_path):
    plain, sized = samples(tmp_path / "plain", sized=False), samples(tmp_path / "sized", sized=True)
    assert dataclasses.replace(plain, index_crc32=0) == dataclasses.replace(
        sized, index_crc32=0
    )  # the tar does not change
    records = read_index(tmp_path / "plain", plain)
    assert (tmp_path / "plain" / "00000.idx").stat().st_size == 3 * 20
    assert records.dtype == shard_index.INDEX_DTYPE
    buckets = buckets_of({(8, 4): 2, (4, 8): 1})
    with_sizes = read_index(tmp_path / "sized", sized, buckets=buckets)
    assert (tmp_path / "sized" / "00000.idx").stat().st_size == 3 * 24
    assert all(np.array_equal(records[name], with_sizes[name]) for name in records.dtype.names)
    assert with_sizes["height"].tolist() == [8, 4, 8]
    assert shard_index.bucket_numbers(with_sizes, buckets).tolist() == [0, 1, 0]
    assert with_sizes.dtype["height"].str == with_sizes.dtype["width"].str == "<u2"


def test_a_manifest_without_buckets_does_not_name_them(tmp_path):
    info = samples(tmp_path / "set", sized=False)
    shards.save_manifest(tmp_path / "set", shards.Manifest(3, ["a", "b", "c"], [8, 4], [info]))
    assert "buckets" not in json.loads((tmp_path / "set" / "manifest.json").read_text())


@pytest.mark.parametrize(
    "buckets",
    [
        [],
        {},
        [{"size": [8], "count": 8}],
        [{"size": [8, 70_000], "count": 8}],
        [{"size": [8, 8], "count": 7}],
        [{"size": [8, 8], "count": True}],
        [{"size": [8, 8], "count": 4}, {"size": [8, 8], "count": 4}],
        ["8x8"],
    ],
)
def test_a_manifest_with_bad_buckets_is_refused(made, tmp_path, buckets):
    value = json.loads((made[0] / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**value, "buckets": buckets}))
    with pytest.raises(DataError, match="bucket"):
        load_manifest(tmp_path)


def copied(made, tmp_path):
    import shutil

    return shutil.copytree(made[0], tmp_path / "set")


def without_checksums(folder):
    """The index of a set that has none is held against the rest of what is known."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["index_crc32"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_index_of_unknown_sizes_is_refused(made, tmp_path):
    folder = without_checksums(copied(made, tmp_path))
    index = np.frombuffer((folder / "00000.idx").read_bytes(), shard_index.SIZED_INDEX_DTYPE).copy()
    index["height"][2] = 33
    (folder / "00000.idx").write_bytes(index.tobytes())
    with pytest.raises(DataError, match="record 2 has the size of no bucket"):
        ShardReader(folder)


def test_sizes_that_changed_places_are_found(made, tmp_path):
    """Counted at the opening; where the counts agree, by the picture itself."""
    folder = without_checksums(copied(made, tmp_path))
    index = np.frombuffer((folder / "00000.idx").read_bytes(), shard_index.SIZED_INDEX_DTYPE).copy()
    first, other = 0, int(np.flatnonzero(index["height"] != index["height"][0])[0])
    for name in ("height", "width"):
        index[name][[first, other]] = index[name][[other, first]]
    (folder / "00000.idx").write_bytes(index.tobytes())
    reader = ShardReader(folder)
    with pytest.raises(DataError, match="not of the size in the manifest"):
        reader.picture(first)
    index["height"][first], index["width"][first] = index["height"][other], index["width"][other]
    (folder / "00000.idx").write_bytes(index.tobytes())
    with pytest.raises(DataError, match="counts other pictures in its buckets"):
        ShardReader(folder)


def test_an_index_without_sizes_is_refused(made, tmp_path):
    folder = copied(made, tmp_path)
    index = np.frombuffer((folder / "00000.idx").read_bytes(), shard_index.SIZED_INDEX_DTYPE)
    (folder / "00000.idx").write_bytes(
        index[["offset", "size", "crc32", "label"]].astype(shard_index.INDEX_DTYPE).tobytes()
    )
    with pytest.raises(DataError, match="80 bytes for 4 pictures"):
        ShardReader(folder)


def test_buckets_are_counted_in_order():
    found = buckets_of({(8, 4): 2, (4, 8): 1, (6, 6): 0, (5, 7): 9})
    assert found == [Bucket([8, 4], 2), Bucket([5, 7], 9), Bucket([4, 8], 1)]


# Centres


def test_centres_of_larger_pictures(tmp_path):
    from tiny_set import make_set

    reader = ShardReader(make_set(tmp_path / "set", count=3))  # 8 x 12, the column in the third channel
    cut = reader.centred((6, 5))
    assert cut.image_size == cut.cut == (6, 5)
    assert cut.fingerprint == reader.fingerprint
    assert cut.picture(1).shape == (6, 5, 3)
    assert cut.picture(1)[0, :, 2].tolist() == [3, 4, 5, 6, 7]
    assert (reader.cut, reader.picture(1).shape) == (None, (8, 12, 3))
    assert reader.centred((8, 12)).cut is None
    with pytest.raises(UsageError, match=r"8x12 in .* cannot be cut to 9x12"):
        reader.centred((9, 12))


def test_buckets_are_not_cut_again(made):
    with pytest.raises(UsageError, match="several sizes"):
        ShardReader(made[0]).centred((24, 24))


def test_a_picture_of_another_size_than_its_record(made, tmp_path):
    """The bytes are whole by their checksum, and still not of the size that the index tells."""
    folder = tmp_path / "set"
    folder.mkdir()
    stream = io.BytesIO()
    Image.fromarray(gradient(8, 8)).save(stream, "PNG")
    with writing_shard(folder, 0, sized=True) as writer:
        writer.add(0, {".png": stream.getvalue()}, size=(8, 16))
    shards.save_manifest(
        folder, shards.Manifest(1, [], [8, 16], [writer.info("00000.tar")], buckets=buckets_of({(8, 16): 1}))
    )
    with pytest.raises(DataError, match="it is 8x8"):
        ShardReader(folder).picture(0)
