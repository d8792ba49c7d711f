import json
import multiprocessing
import os
import pickle
import zlib

import numpy as np
import pytest
from tiny_set import damage, make_set, pixels_of

from hdit_cli.data import reader as module
from hdit_cli.data import shard_index, shards
from hdit_cli.data.reader import ShardReader
from hdit_cli.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return make_set(tmp_path / "set", count=25)


def test_every_picture_by_number(folder):
    reader = ShardReader(folder)
    assert len(reader) == 25
    assert reader.image_size == (8, 12)
    assert reader.classes == ["class 0", "class 1", "class 2"]
    assert reader.labels.dtype == np.int32
    assert reader.labels.tolist() == [n % 3 if n % 7 else -1 for n in range(25)]
    assert reader.fingerprint == shards.fingerprint(reader.manifest)
    for number in (24, 0, 9, 10, 13):
        picture = reader.picture(number)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, pixels_of(number))


@pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread: the other branch is the only one")
def test_without_pread_the_same_bytes(folder, monkeypatch):
    expected = [ShardReader(folder).read(n) for n in range(25)]
    monkeypatch.delattr(os, "pread")
    assert [ShardReader(folder).read(n) for n in range(25)] == expected


def test_few_shards_stay_open(folder, monkeypatch):
    monkeypatch.setattr(module, "_OPEN_SHARDS", 1)
    reader = ShardReader(folder)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for number in (0, 10, 20, 1, 11, 21):
        assert np.array_equal(reader.picture(number), pixels_of(number))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
    assert np.array_equal(reader.picture(3), pixels_of(3))  # opens again


def test_a_pickled_reader_opens_its_own_files(folder):
    reader = ShardReader(folder)
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert copy.read(0) == reader.read(0)


def _read_and_close(reader, send):
    reader.read(3)
    reader.close()
    send.send(zlib.crc32(reader.read(12)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_leaves_the_parents_files_alone(folder):
    reader = ShardReader(folder)
    expected = zlib.crc32(reader.read(12))
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_read_and_close, args=(reader, send))
    child.start()
    assert receive.poll(20)
    assert receive.recv() == expected
    child.join()
    assert zlib.crc32(reader.read(12)) == expected


def test_a_flipped_bit_is_noticed_and_named(folder):
    path = damage(folder, 13)
    reader = ShardReader(folder)
    with pytest.raises(DataError, match=r"picture 000000013 in .*00001\.tar is damaged: its checksum") as caught:
        reader.picture(13)
    assert caught.value.exit_code == 3
    assert "hdit prepare" in caught.value.hint
    assert str(path) in caught.value.message
    assert np.array_equal(reader.picture(12), pixels_of(12))


def _rewrite_index(folder, change):
    path = folder / "00000.idx"
    index = np.frombuffer(path.read_bytes(), shard_index.INDEX_DTYPE).copy()
    change(index)
    path.write_bytes(index.tobytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"][0]["index_crc32"]  # as in data sets from before there was one
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_bytes_that_are_no_picture(folder):
    header = (folder / "00000.tar").read_bytes()[:100]

    def change(index):
        index["offset"][0], index["size"][0], index["crc32"][0] = 0, 100, zlib.crc32(header)

    _rewrite_index(folder, change)
    with pytest.raises(DataError, match=r"picture 000000000 .*cannot be decoded"):
        ShardReader(folder).picture(0)


def test_a_picture_of_another_size(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["image_size"] = [8, 8]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="8x12, not of the size in the manifest"):
        ShardReader(folder).picture(0)


@pytest.mark.parametrize("swapped", ["label", "all"])
def test_an_index_of_which_records_were_swapped(folder, swapped):
    """Every record is one that was written, and every picture fits the checksum beside it."""
    path = folder / "00000.idx"
    index = np.frombuffer(path.read_bytes(), shard_index.INDEX_DTYPE).copy()
    if swapped == "all":
        index[[1, 2]] = index[[2, 1]]
    else:
        index["label"][[1, 2]] = index["label"][[2, 1]]
    path.write_bytes(index.tobytes())
    with pytest.raises(DataError, match=r"00000\.idx is damaged: its checksum"):
        ShardReader(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["00000.idx", "manifest.json", "00000.tar"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match=name):
        ShardReader(folder)


def test_missing_shard(folder):
    (folder / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"00001\.tar is missing"):
        ShardReader(folder)


def test_shard_that_goes_away_later(folder):
    reader = ShardReader(folder)
    (folder / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"cannot read .*00001\.tar"):
        reader.read(11)


def test_cut_shard(folder):
    path = folder / "00002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"00002\.tar is damaged: \d+ bytes, not \d+"):
        ShardReader(folder)


def test_cut_index(folder):
    path = folder / "00002.idx"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"00002\.idx"):
        ShardReader(folder)


def test_an_offset_outside_the_shard(folder):
    _rewrite_index(folder, lambda index: index["offset"].__setitem__(4, 1 << 40))
    with pytest.raises(DataError, match=r"00000\.idx is damaged"):
        ShardReader(folder)


def test_a_label_beyond_the_classes(folder):
    _rewrite_index(folder, lambda index: index["label"].__setitem__(4, 3))
    with pytest.raises(DataError, match="label 3, but there are 3 classes"):
        ShardReader(folder)


def test_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no data set"):
        ShardReader(tmp_path / "nowhere")


def test_many_at_once_are_those_read_alone(folder):
    reader = ShardReader(folder)
    numbers = [24, 3, 3, 17, 0, 9, 10]
    assert reader.read_many(numbers) == [reader.read(n) for n in numbers]
    assert reader.read_many(np.array(numbers)) == [reader.read(n) for n in numbers]
    assert reader.read_many([]) == []


def test_the_disk_is_told_first_and_read_in_its_order(folder, monkeypatch):
    told, asked = [], []
    plain = module._read_at
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, size, advice: told.append(offset), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    monkeypatch.setattr(module, "_read_at", lambda fd, size, at: asked.append((len(told), at)) or plain(fd, size, at))
    ShardReader(folder).read_many([7, 2, 5])
    assert len(told) == 3
    assert asked == [(3, offset) for offset in sorted(told)]


def test_a_disk_that_takes_no_advice_is_read_all_the_same(folder, monkeypatch):
    def refuse(*_):
        raise OSError(22, "no advice")

    expected = ShardReader(folder).read_many([7, 2])
    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    assert ShardReader(folder).read_many([7, 2]) == expected


def test_a_pickled_reader_carries_no_index(tmp_path):
    reader = ShardReader(make_set(tmp_path / "set", count=600, shard_size=20))
    told = pickle.dumps(reader)
    whole = pickle.dumps(reader._index)
    assert len(told) < len(whole)
    copy = pickle.loads(told)
    assert all(copy.read(n) == reader.read(n) for n in (599, 0, 19, 20, 300))
    assert len(copy) == 600


def test_a_pickled_reader_checks_the_index_it_meets(folder):
    copy = pickle.loads(pickle.dumps(ShardReader(folder)))
    (folder / "00001.idx").write_bytes(b"\xff" * 200)
    assert copy.read(9)
    with pytest.raises(DataError, match=r"00001\.idx is damaged: its checksum"):
        copy.read(10)


def test_every_index_is_checked_when_a_set_is_opened(folder):
    raw = bytearray((folder / "00002.idx").read_bytes())
    raw[20 * 3 + 7] = 0xFF  # the offset of its fourth record
    (folder / "00002.idx").write_bytes(raw)
    with pytest.raises(DataError, match=r"00002\.idx is damaged: its checksum"):
        ShardReader(folder)
