"""The examples run, and the drawn flowers are what the quickstart relies on: the same each time, and told apart by colour."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The quickstart's own 400 pictures."""
    folder = tmp_path_factory.mktemp("drawn") / "flowers"
    with pytest.MonkeyPatch.context() as patch:
        run(script("draw_flowers"), patch, folder)
    return folder


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_drawing_is_a_function_of_the_seed(flowers, tmp_path, monkeypatch):
    draw = script("draw_flowers")
    for seed in (0, 1):
        run(draw, monkeypatch, tmp_path / str(seed), "--count", 12, "--seed", seed)
    again, other, all_of_them = bytes_of(tmp_path / "0"), bytes_of(tmp_path / "1"), bytes_of(flowers)
    assert again.keys() == other.keys() and len(again) == 12
    assert all(all_of_them[name] == data for name, data in again.items())  # whatever the count
    assert all(other[name] != data for name, data in again.items())


def test_drawing_again_touches_nothing(tmp_path, monkeypatch):
    draw = script("draw_flowers")
    times = []
    for count in (4, 4, 5):
        run(draw, monkeypatch, tmp_path, "--count", count)
        times.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")})
    assert times[0] == times[1] and times[0].items() < times[2].items()


def test_drawn_set(flowers):
    files = list(flowers.rglob("*.png"))
    pictures = [np.asarray(Image.open(path)) for path in files]
    assert {path.parent.name for path in files} == {"cornflower", "daisy", "poppy", "sunflower"}
    assert len({picture.tobytes() for picture in pictures}) == 400  # all different
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in pictures)


def test_classes_differ_in_shape_too():
    draw = script("draw_flowers")
    kinds = draw.FLOWERS.values()
    assert len({kind.petals for kind in kinds}) == len(kinds)
    assert {kind.pointed for kind in kinds} == {True, False}


def test_classes_are_told_apart_by_colour(flowers):
    near = script("nearest_class")
    pictures = [(path, path.parent.name) for path in sorted(flowers.rglob("*.png"))]
    # the means come from one half, the other half is judged
    means = {
        name: np.mean([near.histogram(path) for path, own in pictures[::2] if own == name], axis=0)
        for name in {own for _, own in pictures}
    }
    counts = near.confusion(pictures[1::2], means)
    assert sum(row[name] for name, row in counts.items()) >= 0.99 * 200


def test_shuffled_labels_fail_the_threshold(flowers, tmp_path, monkeypatch, capsys):
    near = script("nearest_class")
    names = sorted(folder.name for folder in flowers.iterdir())
    images = []
    for number, name in enumerate(names * 3):
        source = sorted((flowers / name).glob("*.png"))[number]
        (tmp_path / f"{number:05d}.png").write_bytes(source.read_bytes())
        images.append({"file": f"{number:05d}.png", "index": number, "class": name})
    (tmp_path / "samples.json").write_text(json.dumps({"images": images}))
    run(near, monkeypatch, tmp_path, flowers, "--at-least", "0.99")
    assert "12 of 12 samples (100.0%)" in capsys.readouterr().out
    for image in images[:2]:  # 10 of 12 are left, 83 %
        image["class"] = names[(names.index(image["class"]) + 1) % len(names)]
    (tmp_path / "samples.json").write_text(json.dumps({"images": images}))
    with pytest.raises(SystemExit) as stop:
        run(near, monkeypatch, tmp_path, flowers, "--at-least", "0.9")
    assert stop.value.code == "fewer than the 90% asked for"
    assert "10 of 12 samples (83.3%)" in capsys.readouterr().out


def test_library(tmp_path, monkeypatch, capsys):
    from hdit_cli.engine.model import Model, build_network, build_task
    from hdit_cli.engine.sharing.export import to_safetensors
    from hdit_cli.recipe import load_recipe

    torch.manual_seed(0)
    recipe = load_recipe("smoke/tiny", ["model.classes=3"])
    model = Model(build_task(build_network(recipe, classes=3), recipe), recipe.to_dict(), ["a", "b", "c"])
    to_safetensors(model, tmp_path / "ckpt.safetensors", dtype="fp32")
    run(script("library"), monkeypatch, tmp_path / "ckpt.safetensors", tmp_path / "out.png", "--steps", 3)
    told = capsys.readouterr().out
    assert "classes: a, b, c" in told and "network: (2, 3, 32, 32)" in told
    assert np.asarray(Image.open(tmp_path / "out.png")).shape == (3 * 32, 4 * 32, 3)


@pytest.mark.slow
def test_quickstart(tmp_path):
    """The whole script, twice, with a stand-in `hdit` that only shortens the training; the colours are not judged."""
    tools = tmp_path / "bin"
    tools.mkdir()
    shorter = '[ "$1" = train ] && set -- "$@" --set train.steps=4 --set optimizer.warmup=0 --set train.sample_every=0'
    write_tool(tools / "hdit", f'{shorter}\nexec "{sys.executable}" -m hdit_cli "$@"')
    write_tool(
        tools / "python",
        f'[ "${{1##*/}}" = nearest_class.py ] && set -- "$@" --at-least 0\nexec "{sys.executable}" "$@"',
    )
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    command = ["bash", str(EXAMPLES / "quickstart.sh"), "made"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "complete already" in done.stdout and "done: step 4" in done.stdout and "SWD" in done.stdout
    made = tmp_path / "made"
    for name in ("samples/grid.png", "run/ckpt.safetensors", "export/quickstart.safetensors", "export/quickstart.pt2"):
        assert (made / name).is_file()


def write_tool(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
