"""eval-fid of samples in one .npz file, and of pictures of several sizes: as of a folder, and said what they are."""

import json

import numpy as np
import pytest
from PIL import Image

from hdit_cli import cli


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))


def pictures(n, *, seed=0, size=(32, 32)):
    coarse = np.random.default_rng(seed).integers(0, 256, (n, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def folder_of(path, x):
    path.mkdir()
    for i, picture in enumerate(x):
        Image.fromarray(picture).save(path / f"{i:03d}.png")
    return path


def run(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval-fid", *map(str, words)])
    printed = capsys.readouterr()
    assert stop.value.code == code, printed.err
    return printed


@pytest.fixture
def place(tmp_path):
    np.savez(tmp_path / "samples.npz", pictures(20), np.arange(20) % 2)
    folder_of(tmp_path / "same", pictures(20))
    folder_of(tmp_path / "reference", pictures(20, seed=1))
    return tmp_path


def test_samples_score_as_the_same_pictures_in_a_folder(place, capsys):
    words = ("--reference", place / "reference", "--metrics", "swd", "--json")
    told = json.loads(run(capsys, place / "samples.npz", *words).out)
    as_folder = json.loads(run(capsys, place / "same", *words).out)
    assert told["scores"] == as_folder["scores"]
    assert told["scores"][0]["n"] == 20
    assert told["size"] == [32, 32]
    assert any("labels (arr_1) are not used" in note for note in told["notes"])
    part = json.loads(run(capsys, place / "samples.npz", *words, "-n", "12").out)
    assert part["scores"] == json.loads(run(capsys, place / "same", *words, "-n", "12").out)["scores"]
    # the other way round: the file is the reference
    back = json.loads(run(capsys, place / "reference", "--reference", place / "samples.npz", *words[2:]).out)
    assert back["scores"][0]["value"] == pytest.approx(told["scores"][0]["value"], rel=1e-6)


def test_options_of_sampling_and_other_files_are_refused(place, capsys):
    words = ("--reference", place / "reference", "--metrics", "swd")
    assert "leave out --steps" in run(capsys, place / "samples.npz", *words, "--steps", "5", code=2).err
    assert "names no data" in run(capsys, place / "samples.npz", code=2).err
    np.savez(place / "moments.npz", mu=np.zeros(4), sigma=np.eye(4))
    assert "--reference" in run(capsys, place / "moments.npz", *words, code=3).err
    np.savez(place / "floats.npz", np.zeros((4, 32, 32, 3), np.float32))
    assert "127.5" in run(capsys, place / "floats.npz", *words, code=3).err
    (place / "page.npz").write_text("<!doctype html><title>Sign in</title>")
    assert "web page" in run(capsys, place / "page.npz", *words, code=4).err
    assert "web page" in run(capsys, place / "same", "--reference", place / "page.npz", "--metrics", "swd", code=3).err


def test_a_reference_with_pictures_and_moments_serves_both(place, capsys):
    x = pictures(20, seed=1)
    np.savez(place / "both.npz", x, mu=np.zeros(4), sigma=np.eye(4), mu_s=np.zeros(4), sigma_s=np.eye(4))
    words = ("--metrics", "swd", "--json")
    told = json.loads(run(capsys, place / "same", "--reference", place / "both.npz", *words).out)
    plain = json.loads(run(capsys, place / "same", "--reference", place / "reference", *words).out)
    assert told["scores"] == plain["scores"]
    from hdit_cli.engine.scoring.picture_sets import StatisticsFile, Stored, open_reference

    assert isinstance(open_reference(place / "both.npz", moments=True), StatisticsFile)  # FID alone: as before
    assert isinstance(open_reference(place / "both.npz", moments=False), Stored)


def test_labels_take_the_names_of_the_reference(place):
    from hdit_cli.engine.scoring.picture_sets import open_stored
    from hdit_cli.errors import DataError

    samples = open_stored(place / "samples.npz", n=6)
    assert samples.labels is None
    assert "by their number" in samples.name_classes(["rose", "tulip"])[0]
    assert samples.labels is not None
    assert len(samples.labels) == 6
    assert samples.classes == ["rose", "tulip"]
    with pytest.raises(DataError, match=r"0 ... 1, and the reference has 1 classes"):
        open_stored(place / "samples.npz").name_classes(["rose"])


def test_pictures_of_several_sizes_are_called_that(place, capsys):
    mixed = folder_of(place / "mixed", pictures(4))
    Image.fromarray(pictures(1, size=(64, 32))[0]).save(mixed / "tall.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # stored 64 wide, shown 64 high: no further size
    Image.fromarray(pictures(1, size=(32, 64))[0]).save(mixed / "turned.jpg", exif=turned)
    text = run(capsys, mixed, "--reference", place / "reference", "--metrics", "swd", code=3).err
    assert "mixed holds pictures of 2 sizes" in text
    from hdit_cli.commands.eval_fid import _size
    from hdit_cli.engine.scoring.picture_sets import open_stored

    sizes = open_stored(mixed).every_size
    assert sizes == [(32, 32), (64, 32)]
    assert _size({"size": [32, 32], "sizes": [list(size) for size in sizes]}) == "2 sizes from 32x32 to 64x32"
