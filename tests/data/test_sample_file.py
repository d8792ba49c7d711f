"""Samples in an .npz file: read in pieces, refused with what to do where they are something else."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from hdit_cli.data.sample_file import SampleFileReader
from hdit_cli.errors import DataError


def pictures(n=20, *, size=(8, 6), channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, *size, channels), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_picture_in_any_order(save, tmp_path):
    x, y = pictures(), np.arange(20) % 3
    save(tmp_path / "a.npz", x, y)
    reader = SampleFileReader(tmp_path / "a.npz")
    assert (len(reader), reader.image_size) == (20, (8, 6))
    for i in (0, 1, 7, 19, 3, 3, 0):
        assert (reader.picture(i) == x[i]).all()
    assert reader.labels.tolist() == y.tolist()


def test_names_and_channels(tmp_path):
    np.savez(tmp_path / "a.npz", images=pictures(2), other=np.zeros(3))
    assert (SampleFileReader(tmp_path / "a.npz").picture(1) == pictures(2)[1]).all()
    np.savez(tmp_path / "b.npz", pictures(2, channels=1), np.zeros((2, 5)))
    grey = SampleFileReader(tmp_path / "b.npz")
    assert (grey.picture(1) == pictures(2, channels=1)[1].repeat(3, 2)).all()
    assert not grey.has_labels  # (N, 5) are no labels
    assert set(grey.labels) == {-1}


def test_memory_is_that_of_one_picture(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((400, 128, 128, 3), np.uint8))  # 20 MB
    reader = SampleFileReader(tmp_path / "a.npz")
    tracemalloc.start()
    for i in range(0, 400, 100):
        reader.picture(i)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ([np.zeros((4, 3, 8, 8), np.float32)], r"float32 \(4, 3, 8, 8\).*127.5.*transpose"),
        ([np.zeros((4, 8, 8, 3), np.float64)], r"float64.*127.5"),
        ([np.zeros((4, 3, 8, 8), np.uint8)], r"uint8 \(4, 3, 8, 8\).*transpose\(0, 2, 3, 1\)"),
        ([np.zeros((4, 8, 8), np.uint8)], r"uint8 \(4, 8, 8\)"),
        ([np.zeros((0, 8, 8, 3), np.uint8)], "there is none"),
        ([np.asfortranarray(pictures(3))], "Fortran"),
        ([np.array([{"a": 1}], dtype=object)], "object"),
        ([], "no arr_0, only nothing"),
    ],
)
def test_what_is_no_pictures(arrays, told, tmp_path):
    np.savez(tmp_path / "a.npz", *arrays)
    with pytest.raises(DataError, match=f"(?s){told}"):
        SampleFileReader(tmp_path / "a.npz")


def test_moments_are_called_that(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(DataError, match=r"(?s)moments.*--reference"):
        SampleFileReader(tmp_path / "a.npz")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, pictures())
    whole = path.read_bytes()
    for cut in (3, 200, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cannot be read"):
            SampleFileReader(path)
    # a header that promises more than there is
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as stream:
        told = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8, 3)}
        np.lib.format.write_array_header_1_0(stream, told)
    with pytest.raises(DataError, match="shorter than its 1,000,000,000,000 pictures"):
        SampleFileReader(path)
    with pytest.raises(DataError, match="no file"):
        SampleFileReader(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("shape", ["(-5, 8, 6, 3)", "(5, -8, 6, 3)", "(0, 8, 6, 3)"])
def test_a_header_of_fewer_than_no_pictures(shape, tmp_path):
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(720))
    with pytest.raises(DataError, match="there is none"):
        SampleFileReader(tmp_path / "a.npz")
