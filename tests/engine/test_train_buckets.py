"""Training on pictures of several sizes, and on parts of larger pictures: exact on resume, refused before anything is allocated."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_recipe
from torch import nn

from hdit_cli.data.loader import Loader, to_x0
from hdit_cli.data.prepare import Buckets, PrepareOptions, prepare
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.cost.plan import plan
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.run.folder import RunFolder
from hdit_cli.engine.scoring.evaluate import Request, evaluate
from hdit_cli.engine.training.loop import Trainer, train
from hdit_cli.engine.training.setup import at_largest, check_fit
from hdit_cli.errors import DataError, UsageError
from hdit_cli.runtime import normal

SHAPES = [(20, 20), (20, 34), (34, 20)]
CHANGES = {
    "validation": {"every": 4, "images": 9, "levels": 2},
    "train__accumulate": 2,
    "train__sample_every": 0,
    "data": {"workers": 0},
}
FEW = {"train__steps": 3, "train__save_every": 3}


def recipe(**changes):
    return tiny_recipe(**{**CHANGES, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """45 pictures of three shapes in two classes."""
    folder = tmp_path_factory.mktemp("shapes") / "source"
    generator = np.random.default_rng(0)
    for number in range(45):
        pixels = generator.integers(0, 256, (*SHAPES[number % 3], 3), dtype=np.uint8)
        path = folder / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def prepared(source, name, **options):
    out = source.parent / name
    prepare(source, out=out, options=PrepareOptions(format="png", hold_out=0.25, **options), workers=1)
    return out


@pytest.fixture(scope="module")
def buckets(source):
    """Around 16x16, in steps of 4: 12x20, 16x16, 20x12."""
    return prepared(source, "buckets", size=(16, 16), buckets=Buckets(step=4, ratio=2.0))


@pytest.fixture(scope="module")
def larger(source):
    return prepared(source, "larger", size=(20, 24))


def run(folder, wanted, data, *, cut=0):
    """Trains; with `cut`, until that step was taken, as a killed process would."""

    class Cut(Exception):
        pass

    seen = []

    def watch(event):
        seen.append(event)
        if isinstance(event, events.Stepped) and event.step == cut:
            raise Cut

    if cut:
        with pytest.raises(Cut):
            train(folder, wanted, data=data, watch=watch)
    else:
        train(folder, wanted, data=data, watch=watch)
    return seen


def contents(folder):
    """The logs, and all tensors of the newest checkpoint."""
    newest = folder / "checkpoints" / checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    found = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "validation.jsonl", "ckpt.safetensors")}
    return found | {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(buckets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, recipe(), buckets)


def test_every_size_is_trained_on(whole, buckets):
    _, seen = whole
    assert next(event for event in seen if isinstance(event, events.Started)).buckets == 3
    trainer = Trainer(RunFolder(whole[0]), recipe(), data=buckets)
    with Loader(trainer.reader, batch_size=8, seed=0, position=0, steps=8, slots=trainer.slots) as loader:
        shapes = [tuple(batches[0].pixels.shape[2:]) for batches in loader]
    assert set(shapes) == {(12, 20), (16, 16), (20, 12)}


def test_a_run_on_buckets_that_was_cut_ends_with_the_same_bits(whole, buckets, tmp_path):
    run(tmp_path / "run", recipe(), buckets, cut=5)
    run(tmp_path / "run", recipe(), buckets)
    assert contents(tmp_path / "run") == contents(whole[0])


def test_validation_measures_pictures_of_every_size(buckets, tmp_path):
    """Against one picture at a time."""
    trainer = Trainer(RunFolder(tmp_path), recipe(train__precision="fp64"), data=buckets)
    assert trainer.validator is not None
    model = trainer.state.model
    for parameter in model.network.parameters():  # else the new network gives zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    found = trainer.validator.lines({"raw": model})[0]
    model.denoiser.eval()
    reader, chosen = ShardReader(buckets / "held-out"), trainer.validator.splits[0].chosen
    assert len({reader.size_of(int(number)) for number in chosen}) == 3
    losses = np.zeros((len(chosen), 2))
    for i, number in enumerate(chosen):
        x0 = to_x0(torch.from_numpy(reader.picture(int(number)).copy()).permute(2, 0, 1)[None]).double()
        for level, sigma in enumerate(found["sigmas"]):
            noise = normal(0, "validation", [i * 2 + level], x0.shape[1:], like=x0)
            label = torch.tensor([int(reader.labels[number])])
            with torch.no_grad():
                at = torch.tensor([sigma], dtype=torch.float64)
                losses[i, level] = float(model.denoiser.loss(x0, noise, at, label=label))
    assert found["loss"] == pytest.approx(losses.mean(0).tolist(), rel=1e-9)


def test_memory_is_estimated_for_the_largest_size(source):
    data = prepared(source, "uneven", size=(28, 28), buckets=Buckets(step=4, ratio=2.0))
    wanted = recipe(model__size=[28, 28])
    assert sorted(ShardReader(data).sizes) == [(20, 40), (28, 28), (40, 20)]  # 800, 784, 800 pixels
    height, width = at_largest(wanted, ShardReader(data)).model.size
    assert height * width == 800
    facts = plan(wanted, data=data)
    assert sorted(facts["sizes"]) == [[20, 40], [28, 28], [40, 20]]
    alone = estimate(wanted, images=4, device="cpu", classes=2)
    assert facts["memory"]["activations"] > alone["activations"]


def levels(**outer):
    first = {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3, **outer}
    return [first, {"depth": 1, "width": 32, "head_dim": 16, "attention": "global"}]


@pytest.mark.parametrize(
    ("changes", "sentence", "hint"),
    [
        ({"model__size": [32, 32]}, "trains 32x32 images, the data set holds 16x16", "--size 32 --buckets"),
        ({"model__levels": levels(kernel=7)}, "kernel must fit in the level's map of", "model.levels.0.kernel=6"),
        (
            {"model__levels": levels(attention="shifted-window", window=8)},
            "window must divide the level's map of",
            "model.levels.0.window=2",
        ),
        ({"model__patch": 4}, r"a side must be a multiple of 8 .*, is (12|20)", "--buckets --bucket-step 8"),
        ({"data__crop": "random"}, r"several sizes \(buckets\), which are not cut again", 'data.crop = "none"'),
        ({"data__crop": "center"}, r"several sizes \(buckets\), which are not cut again", 'data.crop = "none"'),
    ],
)
def test_buckets_that_do_not_fit_are_refused_with_the_fix(buckets, tmp_path, changes, sentence, hint):
    with pytest.raises(UsageError, match=sentence) as caught:
        train(tmp_path / "run", recipe(**changes), data=buckets, watch=lambda event: None)
    assert hint in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_the_hint_is_right(buckets):
    check_fit(recipe(model__levels=levels(kernel=6)), ShardReader(buckets))
    check_fit(recipe(model__levels=levels(attention="shifted-window", window=2)), ShardReader(buckets))


class Net(nn.Module):
    """The outer shape of the published Inception file, with six features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 9, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_model_of_buckets_is_scored(whole, buckets, tmp_path, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    torch.jit.save(torch.jit.script(Net()), str(tmp_path / "net.pt"))
    request = {"n": 4, "features": f"inception:{tmp_path / 'net.pt'}", "allow_small": True, "sampling": {"steps": 2}}
    found = evaluate(
        Request(whole[0] / "ckpt.safetensors", metrics=("kid",), **request), on_progress=lambda *told: None
    )
    assert found is not None
    assert found.scores[0].n_reference == len(ShardReader(buckets))
    with pytest.raises(DataError, match=r"holds pictures of 3 sizes: swd compares equal sizes"):
        evaluate(Request(whole[0] / "ckpt.safetensors", metrics=("swd",), **request), on_progress=lambda *told: None)


# Larger pictures


def test_larger_pictures_without_the_key_are_refused_and_the_key_is_named(larger, tmp_path):
    with pytest.raises(UsageError, match="trains 16x16 images, the data set holds 20x24") as caught:
        train(tmp_path / "run", recipe(), data=larger, watch=lambda event: None)
    assert "--set data.crop=random" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        train(tmp_path / "run", recipe(model__size=[32, 16]), data=larger, watch=lambda event: None)
    assert "data.crop" not in caught.value.hint
    with pytest.raises(UsageError, match="cannot be cut to 32x16"):
        train(
            tmp_path / "run", recipe(model__size=[32, 16], data__crop="random"), data=larger, watch=lambda event: None
        )


def test_a_run_on_random_cuts_that_was_cut_ends_with_the_same_bits(larger, tmp_path):
    wanted = recipe(data__crop="random")
    run(tmp_path / "whole", wanted, larger)
    run(tmp_path / "run", wanted, larger, cut=5)
    with pytest.raises(UsageError, match=r'data.crop: "random" -> "center"'):
        run(tmp_path / "run", recipe(data__crop="center"), larger)
    run(tmp_path / "run", wanted, larger)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    run(tmp_path / "center", recipe(data__crop="center", **FEW), larger)
    here, there = ((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("whole", "center"))
    assert here != there
    lines = [
        json.loads((tmp_path / name / "validation.jsonl").read_text().splitlines()[0]) for name in ("whole", "center")
    ]
    assert lines[0] == lines[1]  # at step 0: the same weights on the same centres


@pytest.mark.slow
def test_pictures_of_the_right_size_are_not_touched(source, tmp_path):
    data = prepared(source, "plain", size=(16, 16))
    for crop in ("none", "random", "center"):
        run(tmp_path / crop, recipe(data__crop=crop, **FEW), data)
    logs = [(tmp_path / crop / "metrics.jsonl").read_bytes() for crop in ("none", "random", "center")]
    assert logs[0] == logs[1] == logs[2]


def test_scores_compare_with_the_centres(larger, tmp_path):
    run(tmp_path / "run", recipe(data__crop="random", **FEW), larger)
    request = Request(tmp_path / "run" / "ckpt.safetensors", n=4, metrics=("swd",), sampling={"steps": 2})
    found = evaluate(request, on_progress=lambda *told: None)
    assert found is not None
    assert found.facts["reference"]["size"] == [16, 16]
    assert any("centre of each picture, 16x16" in note for note in found.notes)


# Processes


def command(*words):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)], capture_output=True, text=True, env=env, timeout=240
    )


@pytest.mark.slow
def test_two_processes_compute_what_one_does(buckets, tmp_path):
    """Losses of float64 steps to 1e-9; two processes that go on after a kill end with the same bits."""
    wanted = recipe(train__precision="fp64", train__log_every=1, train__steps=6, train__save_every=3)
    run(tmp_path / "alone", wanted, buckets)
    file = tmp_path / "tiny.toml"
    file.write_text(wanted.to_toml())
    folder = tmp_path / "shared"
    words = ["train", file, "--data", buckets, "--run", folder, "--processes", 2]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path / "alone")
    )
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, rel=1e-9)
    before = contents(folder)
    shutil.rmtree(folder / "checkpoints" / checkpoint.step_name(6))
    done = command(*words)
    assert "goes on from step 3" in done.stderr
    assert contents(folder) == before
