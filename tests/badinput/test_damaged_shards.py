"""Damaged data sets. The rule:

What a batch is made of is checked by the reader: the size of every shard and the checksum of every index when it opens, the
checksum of every picture when it is read. So a batch is right, or there is none. What no batch is made of (tar headers,
padding, `.json`, `.cls`, `.txt`) is checked by `hdit verify`, which also finds all the rest.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from written_sets import CLASSES, COUNT, PER_SHARD, SHARDS, make, pixels_of

from hdit_cli.data import shard_index, shards
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.run.verify import verify_data
from hdit_cli.errors import DataError


@dataclass
class Found:
    """Who found a damage: the reader at opening, the reader at a picture (all that refused), or verify."""

    opening: bool
    pictures: set[int]
    verify: bool


def judge(folder):
    """Reads everything; every (pixels, label) that comes out must be the one that was put in."""
    refused, opened = set(), True
    try:
        reader = ShardReader(folder)
        assert len(reader) == COUNT
        for number in range(COUNT):
            try:
                pixels = reader.picture(number)
            except DataError as error:
                assert "\n" not in error.message
                refused.add(number)
            else:
                assert np.array_equal(pixels, pixels_of(number)) and reader.labels[number] == number * 7 % CLASSES
        reader.close()
    except DataError as error:
        assert "\n" not in error.message
        opened = False
    try:
        verified = any(checked.problem for checked in verify_data(folder))
    except DataError:
        verified = True
    return Found(opening=not opened, pictures=refused, verify=verified)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shards") / "set")


@pytest.fixture
def copy(whole, tmp_path):
    """The set again, and a function that gives a file of it other bytes, judges, and puts the old ones back."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    def judged(changes):
        times = {name: os.stat(folder / name) for name in changes if (folder / name).exists()}
        for name, data in changes.items():
            (folder / name).write_bytes(data)
            if name in times:  # size (where it is kept) and time tell nothing
                os.utime(folder / name, ns=(times[name].st_atime_ns, times[name].st_mtime_ns))
        try:
            return judge(folder)
        finally:
            for name in changes:
                old = whole / name
                (folder / name).write_bytes(old.read_bytes()) if old.exists() else (folder / name).unlink()

    return judged


def spans(folder, number=0):
    """(start, stop) of the pictures in a shard."""
    index = shard_index.read_index(folder, shards.load_manifest(folder).shards[number])
    return [(int(record["offset"]), int(record["offset"] + record["size"])) for record in index]


def test_a_whole_set_raises_no_alarm(whole):
    for _ in range(20):
        assert judge(whole) == Found(opening=False, pictures=set(), verify=False)


def test_truncated_at_every_256_bytes_and_every_border(whole, copy):
    tar = (whole / "00000.tar").read_bytes()
    borders = {stop for span in spans(whole) for stop in span}
    cuts = sorted({*range(0, len(tar), 256), *borders})
    for cut in cuts:
        found = copy({"00000.tar": tar[:cut]})
        assert found.opening and found.verify, cut
    for suffix in ("00001.idx", "manifest.json"):
        raw = (whole / suffix).read_bytes()
        more = range(len(raw)) if suffix.endswith("idx") else range(0, len(raw) - 1, 9)
        for cut in more:
            found = copy({suffix: raw[:cut]})
            assert found.opening and found.verify, (suffix, cut)
        cuts += list(more)
    print(f"C1: {len(cuts)} truncations, all found")
    assert len(cuts) >= 80


def flipped(data, at, value=1):
    out = bytearray(data)
    out[at] ^= value
    return bytes(out)


def test_every_byte_of_the_headers(whole, copy):
    """One bit of each byte of a header, and of every eighth that follows: verify finds all, the reader is right."""
    tar = (whole / "00000.tar").read_bytes()
    inside = spans(whole)
    told = [at for at in range(inside[0][0] - 512, inside[1][0]) if not inside[0][0] <= at < inside[0][1]]
    for at in [*told[:512], *told[512::8]]:
        found = copy({"00000.tar": flipped(tar, at, 1 << at % 8)})
        assert found == Found(opening=False, pictures=set(), verify=True), at
    print(f"C2: {512 + len(told[512::8])} flips outside of pictures, all found by verify")


def test_flips_of_pictures_and_of_the_index(whole, copy, drawn):
    """The reader refuses exactly the picture that was touched."""
    tars = {number: (whole / f"0000{number}.tar").read_bytes() for number in range(SHARDS)}
    for _ in range(300):
        shard, number = int(drawn.integers(SHARDS)), int(drawn.integers(PER_SHARD))
        at = int(drawn.integers(*spans(whole, shard)[number]))
        found = copy({f"0000{shard}.tar": flipped(tars[shard], at, 1 << int(drawn.integers(8)))})
        assert found == Found(opening=False, pictures={shard * PER_SHARD + number}, verify=True)
    index = (whole / "00001.idx").read_bytes()
    for at in range(len(index)):
        found = copy({"00001.idx": flipped(index, at, 1 << at % 8)})
        assert found.opening and found.verify
    print(f"C2: 300 flips of pictures, {len(index)} of an index, all found by the reader")


def test_zeroed_blocks_and_swaps(whole, copy, drawn):
    tar, other = ((whole / name).read_bytes() for name in ("00000.tar", "00001.tar"))
    blocks = [at for at in range(0, len(tar), 512) if any(tar[at : at + 512])]
    for at in blocks:
        assert copy({"00000.tar": tar[:at] + bytes(512) + tar[at + 512 :]}).verify
    used = blocks[-1] + 512
    for at in range(0, used - 1024, 512):
        found = copy({"00000.tar": tar[:at] + bytes(1024) + tar[at + 1024 :]})
        touched = {n for n, (start, stop) in enumerate(spans(whole)) if start < at + 1024 and at < stop}
        assert found.verify and found.pictures == touched
    assert len(tar) == len(other)
    assert copy({"00000.tar": other, "00001.tar": tar}) == Found(False, set(range(2 * PER_SHARD)), True)
    both = {"00000.tar": other, "00001.tar": tar}
    both |= {"00000.idx": (whole / "00001.idx").read_bytes(), "00001.idx": (whole / "00000.idx").read_bytes()}
    assert copy(both).opening
    for tail in (b"x", bytes(512), tar[:2048]):
        assert copy({"00000.tar": tar + tail}).opening
    index = np.frombuffer((whole / "00000.idx").read_bytes(), shard_index.INDEX_DTYPE)
    swaps = 0
    for one in range(PER_SHARD):
        for two in range(one):
            for fields in (["label"], ["offset"], ["crc32"], list(index.dtype.names)):
                changed = index.copy()
                for name in fields:
                    changed[name][[one, two]] = changed[name][[two, one]]
                if changed.tobytes() == index.tobytes():
                    continue
                swaps += 1
                found = copy({"00000.idx": changed.tobytes()})
                assert found.opening and found.verify
            (a, b), (c, d) = spans(whole)[two], spans(whole)[one]
            assert b - a == d - c
            moved = tar[:a] + tar[c:d] + tar[b:c] + tar[a:b] + tar[d:]
            assert copy({"00000.tar": moved}) == Found(False, {one, two}, True)
            swaps += 1
    print(f"C2: {len(blocks) + used // 512 - 2} zeroed blocks, {swaps} swaps, all found")


def samples_of(tar):
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


def rewritten(folder, members, *, more=b""):
    """A shard of these members, whose manifest and index were made to fit it: nothing but its inside is wrong."""
    with (
        open(folder / "00000.tar", "wb") as handle,
        tarfile.open(fileobj=handle, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        records, labels = [], {}
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size, info.mode = (len(data) if info.isreg() else 0), 0o644
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
            if info.name.endswith(".png"):
                records.append((archive.offset - len(data) - -len(data) % 512, len(data), zlib.crc32(data), 0))
                labels[info.name[:9]] = len(records) - 1
            if info.name.endswith(".cls") and info.name[:9] in labels:
                record = records[labels[info.name[:9]]]
                records[labels[info.name[:9]]] = (*record[:3], int(data))
    raw = (folder / "00000.tar").read_bytes() + more
    (folder / "00000.tar").write_bytes(raw)
    index = np.array(records, dtype=shard_index.INDEX_DTYPE).tobytes()
    (folder / "00000.idx").write_bytes(index)
    manifest = json.loads((folder / "manifest.json").read_text())
    sha256, crc32 = hashlib.sha256(raw).hexdigest(), zlib.crc32(index)
    manifest["shards"][0] |= {"count": len(records), "bytes": len(raw), "sha256": sha256, "index_crc32": crc32}
    manifest["count"] = sum(shard["count"] for shard in manifest["shards"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def special(kind, name="000000000.json"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd" if kind != tarfile.REGTYPE else ""
    return info, b""


WRONG_INSIDE = {
    "a picture under a key of before": lambda m: [*m, ("000000003.png", m[0][1])],
    "the same member twice": lambda m: [*m[:4], m[3], *m[4:]],
    "not adjacent": lambda m: [m[0], *m[2:], m[1]],
    "two labels": lambda m: [*m[:4], ("000000000.cls", m[3][1]), *m[4:]],
    "another label": lambda m: [*m[:3], ("000000000.cls", b"9"), *m[4:]],
    "foreign file": lambda m: [*m, ("readme.md", b"hello")],
    "foreign suffix": lambda m: [*m, ("000000004.pyd", b"cos\nsystem\n")],
    "two dots": lambda m: [*m, ("000000004.seg.png", b"x")],
    "upwards": lambda m: [*m, ("../000000009.json", b"x")],
    "absolute": lambda m: [*m, ("/000000009.json", b"x")],
    "hidden": lambda m: [*m, (".000000009.json", b"x")],
    "folder": lambda m: [*m, special(tarfile.DIRTYPE, "more")],
    "link": lambda m: [*m, special(tarfile.SYMTYPE)],
    "hard link": lambda m: [*m, special(tarfile.LNKTYPE)],
    "device": lambda m: [*m, special(tarfile.CHRTYPE)],
    "pipe": lambda m: [*m, special(tarfile.FIFOTYPE)],
    "long name": lambda m: [*m, ("0" * 5000 + ".json", b"x")],
    "letters": lambda m: [("花" + name, data) for name, data in m],
    "capitals": lambda m: [(name.replace("png", "PNG") if i == 4 else name, data) for i, (name, data) in enumerate(m)],
    "key of another shard": lambda m: [(name.replace("000000004", "000000006"), data) for name, data in m],
}


@pytest.mark.parametrize("name", WRONG_INSIDE)
def test_what_only_the_tar_tells(whole, copy, tmp_path, name):
    """Index, sizes and hashes fit; the inside is not what we write. Verify finds it; the reader never trusts a header."""
    members = samples_of((whole / "00000.tar").read_bytes())
    rewritten(tmp_path / "set", WRONG_INSIDE[name](members))
    problems = [checked.name for checked in verify_data(tmp_path / "set") if checked.problem]
    assert problems
    reader = ShardReader(tmp_path / "set") if name != "another label" else None
    for number in range(PER_SHARD if reader and name not in ("capitals",) else 0):
        assert np.array_equal(reader.picture(number), pixels_of(number))


def test_rewritten_without_a_fault_is_whole(whole, copy, tmp_path):
    """What the cases above start from."""
    rewritten(tmp_path / "set", samples_of((whole / "00000.tar").read_bytes()))
    assert not [checked for checked in verify_data(tmp_path / "set") if checked.problem]


def test_something_else_in_the_place_of_a_shard(whole, copy, tmp_path):
    tar = (whole / "00000.tar").read_bytes()
    page = b"<html>404</html>".ljust(len(tar))
    for data in (
        b"",
        page[:16],
        page,
        gzip.compress(tar),
        bz2.compress(tar),
        lzma.compress(tar),
        tar[::-1],
        bytes(len(tar)),
    ):
        found = copy({"00000.tar": data})
        assert found.verify and (found.opening or len(found.pictures) == PER_SHARD)
    for size in (b"\x80" + bytes(10) + b"\x02", b"\xff" * 12, b"77777777777\0", b"00000000000\0", b"-0000000001\0"):
        patched = bytearray(tar)
        patched[124:136] = size
        patched[148:156] = b" " * 8
        patched[148:156] = b"%06o\0 " % sum(patched[:512])
        assert copy({"00000.tar": bytes(patched)}) == Found(False, set(), True)
    extra = copy({"00007.tar": tar})
    assert extra == Found(False, set(), True)
    for name in ("00001.tar", "00001.idx", "manifest.json"):
        moved = tmp_path / "set" / name
        moved.rename(tmp_path / "kept")
        assert judge(tmp_path / "set").opening and judge(tmp_path / "set").verify
        moved.symlink_to(tmp_path / "set")  # a folder
        assert judge(tmp_path / "set").opening
        moved.unlink()
        (tmp_path / "kept").rename(moved)
    print("C3: 8 replaced, 5 impossible sizes, 1 more, 6 missing or folders, and each of the cases above")


def test_edited_with_the_label_inside(whole, copy, tmp_path):
    """C6: `.cls` changed, size and time kept; and the index changed with a manifest that was made to fit it."""
    tar = (whole / "00000.tar").read_bytes()
    members = samples_of(tar)
    for number, (name, data) in enumerate(members):
        if name.endswith(".cls"):
            at = tar.index(data, tar.index(name.encode()) + 512)
            assert copy({"00000.tar": flipped(tar, at)}) == Found(False, set(), True), number
    index = np.frombuffer((whole / "00000.idx").read_bytes(), shard_index.INDEX_DTYPE)
    manifest = json.loads((whole / "manifest.json").read_text())
    for number in range(PER_SHARD):
        changed = index.copy()
        changed["label"][number] = (changed["label"][number] + 1) % CLASSES
        manifest["shards"][0]["index_crc32"] = zlib.crc32(changed.tobytes())
        (tmp_path / "set" / "00000.idx").write_bytes(changed.tobytes())
        (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
        problems = [checked.problem for checked in verify_data(tmp_path / "set")]
        assert problems[0] == f"has another label for record {number} than its index"
    print(f"C6: {2 * PER_SHARD} edits, all found by verify")
