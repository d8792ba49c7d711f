"""Validation, losses by noise level and the gradient noise scale: right, resumable, and without a trace in the training."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_run import tiny_recipe

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.reader import ShardReader
from hdit_cli.diffusion import bins
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.run.folder import RunFolder
from hdit_cli.engine.training.loop import Trainer, train
from hdit_cli.engine.training.noise_scale import NoiseScale
from hdit_cli.engine.training.validate import open_held_out
from hdit_cli.errors import DataError, UsageError
from hdit_cli.runtime import normal

VALIDATION = {"every": 4, "images": 6, "levels": 3}


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("split") / "data"
    report = prepare(tiny_data, out=out, options=PrepareOptions(size=(16, 16), format="png", hold_out=0.3), workers=1)
    assert 6 <= report.held_out <= 12
    return out


def recipe(**changes):
    return tiny_recipe(**{"validation": VALIDATION, "train__accumulate": 2, **changes})


def run(folder, wanted, data, watch=None):
    seen = []
    train(folder, wanted, data=data, watch=watch or seen.append)
    return seen


def lines(folder, name="validation.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def digests(folder, names=("metrics.jsonl", "validation.jsonl")):
    """Of the logs and of the newest checkpoint's weights, average and optimizer; the headers tell the recipe."""
    newest = folder / "checkpoints" / checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    found = {name: (folder / name).read_bytes() for name in names}
    for path in newest.glob("*.safetensors"):
        tensors, _ = checkpoint.read_tensors(path)
        found[path.name] = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return {name: hashlib.sha256(part).hexdigest() for name, part in found.items()}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, recipe(), data)


def test_what_is_written(whole):
    folder, seen = whole
    found = lines(folder)
    assert [(line["step"], line["weights"], line["split"]) for line in found] == [
        (step, weights, split) for step in (0, 4, 8) for weights in ("raw", "ema") for split in ("held-out", "training")
    ]
    for line in found:
        assert line["n"] == 6 and line["images"] == 8 * line["step"]
        assert line["sigmas"] == sorted(line["sigmas"]) and len(line["loss"]) == 3
        assert line["mean"] == pytest.approx(np.mean(line["loss"]))
    told = [event for event in seen if isinstance(event, events.Validated)]
    assert [line for event in told for line in event.lines] == found
    assert next(event for event in seen if isinstance(event, events.Started)).held_out == 6


def test_the_loss_is_the_training_loss_on_those_pictures(data, tmp_path):
    """Against a few lines of its own: one picture, one level at a time."""
    trainer = Trainer(RunFolder(tmp_path), recipe(train__precision="fp64"), data=data)
    assert trainer.validator is not None
    model = trainer.state.model
    for parameter in model.network.parameters():  # else the new network gives zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    found = trainer.validator.lines({"raw": model})[0]
    assert all(found["loss"])
    assert model.denoiser.training  # as it was
    model.denoiser.eval()
    reader = ShardReader(data / "held-out")
    losses = np.zeros((6, 3))
    for i, number in enumerate(trainer.validator.splits[0].chosen):
        x0 = torch.from_numpy(reader.picture(int(number)).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        x0 = x0.double()
        for level, sigma in enumerate(found["sigmas"]):
            noise = normal(0, "validation", [i * 3 + level], x0.shape[1:], like=x0)
            label = torch.tensor([int(reader.labels[number])])
            with torch.no_grad():
                losses[i, level] = model.denoiser.loss(x0, noise, torch.tensor([sigma], dtype=x0.dtype), label=label)
    assert found["loss"] == pytest.approx(losses.mean(0).tolist(), rel=1e-9)


def test_it_leaves_no_trace_in_the_training(whole, data, tmp_path):
    run(tmp_path / "run", recipe(validation={"every": 0}), data)
    assert not (tmp_path / "run" / "validation.jsonl").exists()
    names = ("metrics.jsonl",)
    assert digests(tmp_path / "run", names) == digests(whole[0], names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut", [(events.Stepped, 2), (events.Validated, 4), (events.Stepped, 6), (events.Validated, 8)]
)
def test_a_run_that_was_cut_ends_with_the_same_logs(whole, data, tmp_path, cut):
    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, cut[0]) and event.step == cut[1]:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "run", recipe(), data, watch=stop)
    run(tmp_path / "run", recipe(), data)
    assert digests(tmp_path / "run") == digests(whole[0])
    assert (tmp_path / "run" / "checkpoints" / "step-00000008" / "state.json").read_text() == (
        whole[0] / "checkpoints" / "step-00000008" / "state.json"
    ).read_text()


def test_which_set_is_used(data, tmp_path):
    training = ShardReader(data)
    assert open_held_out(recipe(validation={"every": 0}), training) is None
    found = open_held_out(recipe(), training)
    assert found is not None and found.folder == data / "held-out"
    shutil.copytree(data, tmp_path / "bare", ignore=shutil.ignore_patterns("held-out"))
    bare = ShardReader(tmp_path / "bare")
    assert open_held_out(recipe(), bare) is None
    named = open_held_out(recipe(validation={"path": str(data / "held-out")}), bare)
    assert named is not None and named.fingerprint == found.fingerprint
    with pytest.raises(DataError, match="no data set"):
        open_held_out(recipe(validation={"path": str(tmp_path / "nowhere")}), bare)
    with pytest.raises(UsageError, match="is the training data"):
        open_held_out(recipe(validation={"path": str(data)}), bare)


def test_a_set_that_does_not_fit_is_refused(tiny_data, data, tmp_path):
    training = ShardReader(data)
    for name, options, source in (
        ("size", PrepareOptions(size=(8, 8)), tiny_data),
        ("classes", PrepareOptions(size=(16, 16), shard_size=3), tiny_data.parent / "source" / "red"),
    ):
        prepare(source, out=tmp_path / name, options=options, workers=1)
        with pytest.raises(UsageError, match="8x8 images" if name == "size" else "other classes"):
            open_held_out(recipe(validation={"path": str(tmp_path / name)}), training)
    unconditional = recipe(validation={"path": str(tmp_path / "classes")}, model__classes=0)
    assert open_held_out(unconditional, training) is not None


# Losses by noise level


def test_bins_hold_each_loss_once():
    sigma = torch.tensor([1e-9, 1.1e-3, 0.9, 1.1, 1.2, 1e9])
    loss = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    counts, sums = bins.sums_by_sigma(sigma, loss, dtype=torch.float64).tolist()
    place = {round(middle, 6): (n, total) for middle, n, total in zip(bins.midpoints(), counts, sums, strict=True) if n}
    assert list(place.values()) == [(2, 3.0), (1, 4.0), (2, 24.0), (1, 32.0)]
    assert min(place) == pytest.approx(10**-2.875, rel=1e-3) and max(place) == pytest.approx(10**2.875)


def test_the_mean_over_the_bins_is_the_loss(whole):
    """With the pictures in each bin as weights; they are counted here again, by the sigmas of the run."""
    folder, _ = whole
    for line in lines(folder, "metrics.jsonl"):
        middles, losses = zip(*line["loss_by_sigma"], strict=True)
        assert list(middles) == sorted(middles) and min(losses) <= line["loss"] <= max(losses)


# Gradient noise scale


def test_noise_scale_finds_the_truth():
    """Gradients of mean g and covariance S/n: B_simple = tr S / |g|², from 4 micro-batches of 8."""
    random = np.random.default_rng(0)
    dimension, sigma, signal = 400, 3.0, 0.5
    parameter = torch.nn.Parameter(torch.zeros(dimension, dtype=torch.float64))
    network = torch.nn.ParameterList([parameter])
    scale = NoiseScale(network, batch=32, accumulate=4, world=1, like=torch.zeros((), dtype=torch.float64))
    assert scale.value([float(scale.small)]) is None
    for _ in range(1500):
        parts = signal + sigma * random.normal(size=(4, 8, dimension)).mean(1)  # gradients of the mean over 8 images
        parameter.grad = torch.from_numpy(parts[0] / 4)
        scale.see_first([parameter])
        scale.add(torch.from_numpy(parts.mean(0)).norm(), refused=torch.zeros(()))
    assert scale.value([float(scale.small)]) == pytest.approx(sigma**2 / signal**2, rel=0.05)
    before = scale.told([float(scale.small)])
    parameter.grad = torch.full((dimension,), float("nan"), dtype=torch.float64)
    scale.see_first([parameter])
    scale.add(torch.tensor(float("nan")), refused=torch.ones(()))
    assert scale.told([float(scale.small)]) == before


def test_noise_scale_needs_two_sizes(whole, data, tmp_path):
    assert any(line["gradient_noise_scale"] for line in lines(whole[0], "metrics.jsonl"))
    run(tmp_path / "run", recipe(train__accumulate=1, validation={"every": 0}), data)
    assert {line["gradient_noise_scale"] for line in lines(tmp_path / "run", "metrics.jsonl")} == {None}


def command(folder, wanted, data, *, processes):
    file = folder.with_suffix(".toml")
    file.write_text(wanted.to_toml())
    words = ["train", file, "--data", data, "--run", folder, "--processes", processes]
    done = subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_processes_share_validation_and_know_the_noise_scale(data, tmp_path):
    """In float64: 1 process with 2 micro-batches, 2 processes, and 2 processes cut in the middle."""
    wanted = {"train__precision": "fp64", "train__log_every": 1, "train__sample_every": 0}
    run(tmp_path / "one", recipe(**wanted), data)
    two = recipe(**{**wanted, "train__accumulate": 1})
    told = command(tmp_path / "two", two, data, processes=2)
    assert "validation step 8: held-out " in told and "6 held out" in told
    for ours, theirs in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
    ours, theirs = (lines(tmp_path / name, "metrics.jsonl") for name in ("two", "one"))
    for a, b in zip(ours, theirs, strict=True):
        assert np.array(a["loss_by_sigma"]) == pytest.approx(np.array(b["loss_by_sigma"]), rel=1e-9)
    # both shares of two processes are seen, one of two micro-batches: not equal, but the same to first order
    assert [line["gradient_noise_scale"] is None for line in ours].count(False) >= 4
    shorter = recipe(**{**wanted, "train__accumulate": 1, "train__steps": 4})
    command(tmp_path / "cut", shorter, data, processes=2)
    command(tmp_path / "cut", two, data, processes=2)
    assert digests(tmp_path / "cut") == digests(tmp_path / "two")
