"""The shard format: stock readers and our index see the same bytes; damage is told, not read."""

import json
import tarfile
import zlib

import pytest
import webdataset

from hdit_cli.data import shard_index, shards
from hdit_cli.data.shards import Manifest, ShardInfo, ShardWriter, writing_shard
from hdit_cli.errors import DataError

SAMPLES = [
    (0, {".jpg": b"picture zero", ".json": b"{}", ".cls": b"1"}, 1),
    (1, {".jpg": bytes(range(256)) * 9, ".json": b"{}"}, -1),
    (2, {".jpg": b"x" * 512, ".json": b"{}", ".txt": "a flower, 花".encode(), ".cls": b"0"}, 0),
]


def made(folder, samples=SAMPLES):
    with writing_shard(folder, 0) as writer:
        for key, members, label in samples:
            writer.add(key, members, label=label)
    info = writer.info("00000.tar")
    manifest = Manifest(count=info.count, classes=["daisy", "rose"], image_size=[8, 4], shards=[info])
    shards.save_manifest(folder, manifest)
    return manifest


def test_record_is_20_bytes_little_endian():
    assert shard_index.INDEX_DTYPE.itemsize == 20
    assert [shard_index.INDEX_DTYPE[name].str for name in ("offset", "size", "crc32", "label")] == [
        "<u8",
        "<u4",
        "<u4",
        "<i4",
    ]


def test_index_points_at_the_pictures_and_tarfile_agrees(tmp_path):
    manifest = made(tmp_path)
    raw = (tmp_path / "00000.tar").read_bytes()
    index = shard_index.read_index(tmp_path, manifest.shards[0])
    with tarfile.open(tmp_path / "00000.tar") as archive:
        members = {member.name: (member, archive.extractfile(member).read()) for member in archive}
    assert len(members) == sum(len(sample[1]) for sample in SAMPLES)
    for record, (key, written, label) in zip(index, SAMPLES, strict=True):
        picture = raw[record["offset"] : record["offset"] + record["size"]]
        assert picture == written[".jpg"] and zlib.crc32(picture) == record["crc32"] and record["label"] == label
        for suffix, data in written.items():
            member, read = members[f"{key:09d}{suffix}"]
            assert read == data
            assert (member.mtime, member.uid, member.gid, member.mode, member.uname) == (0, 0, 0, 0o644, "")


def test_webdataset_reads_the_same(tmp_path):
    made(tmp_path)
    read = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == ["000000000", "000000001", "000000002"]
    for sample, (_, written, _) in zip(read, SAMPLES, strict=True):
        assert {f".{name}": data for name, data in sample.items() if not name.startswith("__")} == written


def test_bytes_are_a_function_of_the_samples(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    for name in ("00000.tar", "00000.idx", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert shards.fingerprint(first) == shards.fingerprint(second)
    other = made(tmp_path / "b", SAMPLES[:2])
    assert shards.fingerprint(first) != shards.fingerprint(other)


def test_a_failure_leaves_no_shard(tmp_path):
    def fail():
        with writing_shard(tmp_path, 0) as writer:
            writer.add(0, {".jpg": b"x"})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_manifest_round_trip(tmp_path):
    manifest = made(tmp_path)
    assert shards.load_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["format"] == "hdit-shards/1"


SHARD = {"name": "00000.tar", "count": 3, "bytes": 10240, "sha256": "0" * 64}
GOOD = {"format": "hdit-shards/1", "count": 3, "classes": ["a"], "image_size": [8, 8], "shards": [SHARD]}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "hdit-shards/2"},
        {"count": 4},
        {"count": "3"},
        {"count": True},
        {"classes": [1]},
        {"classes": ["a", "a"]},
        {"classes": "ab"},
        {"image_size": [8]},
        {"image_size": [8, 0]},
        {"image_size": [8, 8.0]},
        {"shards": {}},
        {"shards": []},
        {"shards": [SHARD, SHARD], "count": 6},
        {"shards": [{**SHARD, "name": "../00000.tar"}]},
        {"shards": [{**SHARD, "name": "/etc/00000.tar"}]},
        {"shards": [{**SHARD, "name": "00000.tar\n"}]},
        {"shards": [{**SHARD, "name": 7}]},
        {"shards": [{**SHARD, "count": -3}]},
        {"shards": [{**SHARD, "bytes": 1e9}]},
        {"shards": [{**SHARD, "sha256": "xyz"}]},
        {"shards": ["00000.tar"]},
        {"source": []},
    ],
    ids=str,
)
def test_invalid_manifest_is_a_data_error(tmp_path, change):
    (tmp_path / "manifest.json").write_text(json.dumps(GOOD))
    assert shards.load_manifest(tmp_path).count == 3
    (tmp_path / "manifest.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(DataError) as caught:
        shards.load_manifest(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff"])
def test_a_manifest_that_is_no_object_is_a_data_error(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError):
        shards.load_manifest(tmp_path)


def test_missing_data_set_names_the_command(tmp_path):
    with pytest.raises(DataError, match="no data set at") as caught:
        shards.load_manifest(tmp_path / "nowhere")
    assert "hdit prepare" in caught.value.hint


def test_damaged_index_is_a_data_error(tmp_path):
    manifest = made(tmp_path)
    shard, path = manifest.shards[0], tmp_path / "00000.idx"
    raw = path.read_bytes()
    outside = bytearray(raw)
    outside[5] = 0xFF  # an offset of terabytes
    wrapping = b"\xff" * 8 + raw[8:]
    for damaged in (raw[:-1], raw + raw[:20], b"", bytes(outside), wrapping):
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            shard_index.read_index(tmp_path, shard)
    path.unlink()
    with pytest.raises(DataError):
        shard_index.read_index(tmp_path, shard)


def test_writer_tells_what_it_wrote(tmp_path):
    with open(tmp_path / "t.tar", "wb") as handle:
        writer = ShardWriter(handle)
        writer.add(0, {".png": b"abc"})
        writer.close()
    info = writer.info("00000.tar")
    raw = (tmp_path / "t.tar").read_bytes()
    assert isinstance(info, ShardInfo) and info.bytes == len(raw) and len(raw) % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize("size", [0, 1, 511, 123_456, 8**11 - 1])
@pytest.mark.parametrize("name", ["000000000.jpg", "999999999.json", "123456789.cls"])
def test_headers_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    assert shards.header(name, size) == member.tobuf(format=tarfile.USTAR_FORMAT)
