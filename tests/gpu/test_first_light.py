"""The script for a borrowed GPU has no slips: its parts run here as far as they can without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import first_light  # beside this file
import pack_first_light
import pytest

GPU = Path(__file__).parent
SCRIPT = GPU / "first_light.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")


def run(out, *words, timeout=1800):
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )


def test_every_part_has_a_limit_and_a_place():
    limits = dict(re.findall(r"\[([\w-]+)\]=(\d+)", TEXT))
    together, alone = (
        re.search(rf"^{name}=\((.*)\)$", TEXT, re.MULTILINE)[1].split() for name in ("together", "alone")
    )
    assert set(first_light.PARTS) == set(limits) == {*together, *alone}
    assert max(int(limits[name]) for name in together) < 420 / 2  # then what is timed still has its turn
    for target in first_light.PARTS.values():
        module, _, function = target.partition(":")
        assert f"def {function}(light" in (GPU / f"{module}.py").read_text()


def test_an_unknown_part_is_told(tmp_path):
    (tmp_path / "log.txt").write_text("of the run before")
    ended = run(tmp_path, "flower")
    assert ended.returncode == 2 and "no part flower" in ended.stderr and "flowers" in ended.stderr
    assert (tmp_path / "log.txt").read_text() == "of the run before"


@pytest.mark.parametrize("place", ["file", "file/below", "taken"])
def test_nowhere_to_write_is_told(place, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken" / "log.txt").mkdir(parents=True)
    ended = run(tmp_path / place, "attention")
    assert ended.returncode == 2 and f"no results can be written to {tmp_path / place}: set OUT" in ended.stderr


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path):
    """One sentence in the log, a failure, and a file of results all the same."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ended = run(tmp_path / "out", "attention")
    assert ended.returncode == 1
    assert "no CUDA device here" in (tmp_path / "out" / "log.txt").read_text()
    assert json.loads((tmp_path / "out" / "first_light.json").read_text())["attention"]["ended"].startswith("failed")


def test_what_a_stopped_part_had_told_is_kept(tmp_path, capsys):
    (tmp_path / "flowers.json").write_text('{"seconds": 79.9, "first_step_seconds": 60.0}')
    (tmp_path / "flowers.ended").write_text("stopped after 80 s\n")
    (tmp_path / "resume.ended").write_text("not run: no time left\n")
    first_light.merge(tmp_path, tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    assert list(found) == ["flowers", "resume"] and found["flowers"]["first_step_seconds"] == 60.0
    assert "stopped after 80 s" in capsys.readouterr().out


def test_a_finding_does_not_end_a_part(tmp_path):
    from light import Light

    light = Light(rehearse=True, data=None, work=tmp_path, result=tmp_path / "r.json")
    with light.finding("large") as facts:
        facts["images"] = 32
        raise RuntimeError("CUDA out of memory. Tried to allocate")
    with light.finding("odd"):
        raise ValueError("x")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["large"]["images"] == 32 and found["large"]["failed"].startswith("out of memory")
    assert found["odd"]["failed"] == "ValueError: x"


def test_pictures_are_taken_from_all_classes(tmp_path):
    for name, count in (("a", 5), ("b", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.jpg").touch()
    picked = [str(path.relative_to(tmp_path)) for path in pack_first_light.pick(tmp_path, count=5)]
    assert picked == ["a/0.jpg", "b/0.jpg", "a/1.jpg", "b/1.jpg", "a/2.jpg"]


def test_wheels_are_of_all_that_is_imported():
    found = pack_first_light.needs_of_hdit()
    assert {"pydantic", "pydantic-core", "accelerate", "tomli-w", "webdataset", "pillow", "pytest", "pluggy"} <= set(
        found
    )
    assert not {"torch", "numpy"} & set(found)


@pytest.mark.slow
def test_pack(tmp_path):
    from PIL import Image

    for i in range(6):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    words = [
        str(tmp_path / "pictures"),
        "--out",
        str(tmp_path / "out"),
        "--megabytes",
        "0.03",
        "--size",
        "64",
        "--no-wheels",
    ]
    ended = subprocess.run(
        [sys.executable, str(GPU / "pack_first_light.py"), *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads((tmp_path / "out" / "data" / "manifest.json").read_text())
    assert 0 < manifest["count"] < 6 and manifest["image_size"] == [64, 64]


@pytest.mark.long
def test_rehearsal(tmp_path):
    """All parts, small, on what there is; the doctor's own part has a test in tests/engine."""
    parts = [name for name in first_light.PARTS if name != "doctor"]
    ended = run(tmp_path / "out", "--rehearse", *parts)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert ended.returncode == 0, ended.stdout + log[-4000:]
    found = json.loads((tmp_path / "out" / "first_light.json").read_text())
    assert list(found) == parts and all(facts["ended"] == "done" and facts["verdict"] for facts in found.values())
    assert not [
        name for facts in found.values() for name, each in facts.items() if isinstance(each, dict) and "failed" in each
    ]
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert found["resume"]["gone_on"]["from"] and found["resume"]["killed"]["exit_code"] == -9
    assert found["flowers"]["waited"]["images_per_second"] > 0 and found["flowers"]["first_loss"][0]["errors"]
