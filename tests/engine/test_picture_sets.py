"""Folders that are scored: what is told of how they were read, and cached states that must not outlive a new reading."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdit_cli.data.folder import FolderReader
from hdit_cli.engine.scoring import picture_sets
from hdit_cli.engine.scoring.picture_sets import Stored, open_stored
from hdit_cli.engine.scoring.references import _cache_file
from hdit_cli.metrics.sliced import SWD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_what_was_passed_over_is_told(folder):
    assert open_stored(folder).notes == []
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "@eaDir/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    stored = open_stored(folder)
    (note,) = stored.notes
    assert (
        stored.count == 3
        and "4 hidden or system files and folders passed over (.DS_Store, @eaDir, Thumbs.db, ...)" in note
    )


def test_a_folder_read_otherwise_than_before_is_scored_anew(folder, monkeypatch):
    before = _cache_file(SWD, Stored(FolderReader(folder), name="x"), None)
    assert _cache_file(SWD, Stored(FolderReader(folder), name="x"), None) == before
    monkeypatch.setattr(picture_sets, "READING", picture_sets.READING + 1)
    assert _cache_file(SWD, Stored(FolderReader(folder), name="x"), None) != before
