"""A plain folder as a set of pictures: which files count, how they are read, what its fingerprint follows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdit_cli.data.folder import FolderReader
from hdit_cli.errors import DataError


def picture(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a/2.png", "a/10.png", "a/.hidden.png", ".git/x.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    (tmp_path / "b.txt").write_text("a caption")
    (tmp_path / "notes.md").write_text("a side file")
    return tmp_path


def test_pictures_in_the_order_of_their_paths_pixel_for_pixel(folder):
    reader = FolderReader(folder)
    assert reader.paths == ["a/10.png", "a/2.png", "b.png"]
    assert len(reader) == 3
    for index, seed in enumerate((2, 1, 0)):
        np.testing.assert_array_equal(reader.picture(index), picture(seed))
    assert reader.image_size == (6, 9)
    assert FolderReader(folder, skip=frozenset({"b.png"})).paths == ["a/10.png", "a/2.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_turned(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(0)).save(tmp_path / "x.png", exif=exif)
    found = FolderReader(tmp_path).picture(0)
    assert found.shape[:2] == ((9, 6) if orientation >= 5 else (6, 9))
    stored = picture(0)
    turns = {
        1: stored,
        3: stored[::-1, ::-1],
        6: stored.transpose(1, 0, 2)[:, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }
    if orientation in turns:
        np.testing.assert_array_equal(found, turns[orientation])


def test_transparency_is_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "x.png")
    assert (FolderReader(tmp_path).picture(0) == 255).all()


def test_the_fingerprint_follows_contents_and_names(folder):
    before = FolderReader(folder).fingerprint
    (folder / "notes.md").write_text("other words")
    assert FolderReader(folder).fingerprint == before
    (folder / "b.png").rename(folder / "c.png")
    renamed = FolderReader(folder).fingerprint
    assert renamed != before
    Image.fromarray(picture(9)).save(folder / "c.png")
    assert FolderReader(folder).fingerprint != renamed


def test_what_is_no_picture_is_named(folder):
    (folder / "a" / "broken.png").write_bytes((folder / "b.png").read_bytes()[:60])
    reader = FolderReader(folder)
    with pytest.raises(DataError, match=r"broken\.png"):
        reader.picture(reader.paths.index("a/broken.png"))
    (folder / "a" / "gone.png").symlink_to(folder / "nowhere.png")
    reader = FolderReader(folder)
    with pytest.raises(DataError, match="not a regular file"):
        reader.picture(reader.paths.index("a/gone.png"))


def test_what_systems_leave_behind_is_passed_over_and_named(folder):
    before = FolderReader(folder)
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "a/desktop.ini",
        "@eaDir/2.png",
        "__MACOSX/a/._2.png",
        "a/2.png:Zone.Identifier",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    reader = FolderReader(folder)
    assert reader.paths == before.paths and reader.fingerprint == before.fingerprint
    assert sorted(reader.passed_over) == [
        ".DS_Store", ".git", "@eaDir", "Thumbs.db", "__MACOSX", "a/.hidden.png", "a/2.png:Zone.Identifier", "a/desktop.ini",
    ]  # fmt: skip


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        FolderReader(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        FolderReader(tmp_path / "nowhere")
