"""Snapshots of a real run, and averages made of them afterwards, against those tracked during the training."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_ema import weights_in_profile
from tiny_run import tiny_recipe
from typer.testing import CliRunner

import hdit_cli
from hdit_cli import cli
from hdit_cli.engine import load
from hdit_cli.engine.run import checkpoint, events, posthoc, snapshots
from hdit_cli.engine.run.folder import RunFolder
from hdit_cli.engine.training.loop import Trainer, train
from hdit_cli.errors import CheckpointError, UsageError

STEPS, EVERY, WIDTHS = 60, 3, (0.03, 0.075, 0.15)
LEVELS = [{"depth": 1, "width": 16, "head_dim": 8, "attention": "global"}]


def recipe_of(stds, **changes):
    base = {"train__steps": STEPS, "train__save_every": 1000, "train__sample_every": 0, "train__log_every": 100}
    base |= {"model__levels": LEVELS, "model__patch": 4}
    return tiny_recipe(**{**base, "ema__stds": list(stds), **changes})


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A run with snapshots of two widths."""
    folder = tmp_path_factory.mktemp("posthoc") / "run"
    train(folder, recipe_of((0.05, 0.10), ema__snapshot_every=EVERY), data=tiny_data, watch=lambda event: None)
    return folder


@pytest.fixture(scope="module")
def tracked(tiny_data, tmp_path_factory):
    """The same run with other widths tracked and no snapshots: its folder, and the weights after each step (time, n)."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    run_folder = RunFolder(folder)
    trainer = Trainer(run_folder, recipe_of(WIDTHS), data=tiny_data)
    run_folder.start(trainer.recipe)
    weights = []
    for event in trainer.events():
        if isinstance(event, events.Stepped):
            weights.append(torch.cat([p.detach().flatten() for p in trainer.state.parameters]).double())
    return folder, torch.stack(weights)


def flat(model):
    return torch.cat([p.flatten() for p in model.network.parameters()]).double()


def last(run):
    return run / "checkpoints" / checkpoint.step_name(checkpoint.list_steps(run)[-1])


def command(*words):
    return CliRunner().invoke(cli.app, list(map(str, words)))


def test_averages_do_not_touch_the_training(run, tracked, tiny_data, tmp_path):
    plain = tmp_path / "run"
    train(plain, recipe_of(()), data=tiny_data, watch=lambda event: None)
    for folder in (run, tracked[0]):
        for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
            ours, theirs = load_file(last(folder) / name), load_file(last(plain) / name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        assert (folder / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("std", WIDTHS)
def test_a_reconstructed_average_is_the_tracked_one_but_for_its_profile(run, tracked, std):
    """The difference is the difference of the profiles applied to the weights there were, and rounding."""
    folder, weights = tracked
    exact = flat(hdit_cli.load(folder, weights=std, device="cpu"))
    plan = posthoc.plan(run, [std])[0]
    found = flat(load.open_source(plan, weights=std, device="cpu"))
    combined = np.zeros(STEPS)
    for coefficient, file in zip(plan.fit.coefficients, plan.files, strict=True):
        step = int(file.parent.name.removeprefix("step-"))
        width = float(file.stem.removeprefix("ema-"))
        combined[:step] += coefficient * weights_in_profile(width, time=step)
    residual = torch.from_numpy(combined - weights_in_profile(std, time=STEPS))
    expected = residual @ weights
    size, error = exact.norm(), (found - exact).norm()
    print(
        f"\nstd {std}: {plan.count} snapshots, profile error {plan.fit.error:.2e}; |reconstructed - tracked| / |tracked| = "
        f"{error / size:.2e}, / |tracked - raw| = {error / (exact - weights[-1]).norm():.2e}"
    )
    assert (found - exact - expected).norm() < 2e-6 * size
    # Cauchy-Schwarz over time: what a profile error can do to weights that moved this much
    moved = (weights - weights[-1]).norm()
    assert error < plan.fit.error * np.linalg.norm(weights_in_profile(std, time=STEPS)) * moved + 2e-6 * size
    assert error < 1e-3 * size
    assert error < 0.05 * (exact - weights[-1]).norm()


@pytest.mark.parametrize("std", [0.05, 0.10])
def test_a_tracked_width_comes_out_bit_for_bit(run, std):
    tensors, header = posthoc.plan(run, [std])[0].read()
    wanted = load_file(last(run) / f"ema-{std:.3f}.safetensors")
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert header["hdit.weights"] == f"std {std:.3f}"


def test_groups_of_tensors_give_the_same_bits(run, monkeypatch):
    plans = posthoc.plan(run, WIDTHS)
    whole = [tensors for tensors, _ in posthoc.reconstruct(plans)]
    monkeypatch.setattr(posthoc, "_GROUP", 5000)
    for ours, (theirs, _) in zip(whole, posthoc.reconstruct(plans), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_earlier_step(run, tiny_data, tmp_path):
    """What a shorter run's own width would be; later snapshots have no part in it."""
    shorter = tmp_path / "run"
    train(shorter, recipe_of((0.05, 0.10), train__steps=30), data=tiny_data, watch=lambda event: None)
    tensors, header = posthoc.plan(run, [0.1], step=30)[0].read()
    wanted = load_file(last(shorter) / "ema-0.100.safetensors")
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert header["hdit.step"] == "30"
    with pytest.raises(UsageError, match="no snapshot at step 31"):
        posthoc.plan(run, [0.1], step=31)


# Resuming


def digests(folder):
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in (".lock", "timing.jsonl"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


SHORT = {"train__steps": 8, "train__save_every": 4, "ema__snapshot_every": 3}


@pytest.fixture(scope="module")
def short(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    train(folder, recipe_of((0.05, 0.10), **SHORT), data=tiny_data, watch=lambda event: None)
    assert snapshots.list_steps(folder) == [3, 6, 8]
    return digests(folder)


@pytest.mark.parametrize("cut", [2, 3, 5, 7])
def test_a_run_that_was_cut_ends_with_the_same_snapshots(short, tiny_data, tmp_path, cut):
    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Stepped) and event.step == cut:
            raise Cut

    folder, recipe = tmp_path / "run", recipe_of((0.05, 0.10), **SHORT)
    with pytest.raises(Cut):
        train(folder, recipe, data=tiny_data, watch=stop)
    train(folder, recipe, data=tiny_data, watch=lambda event: None)
    assert digests(folder) == short


def test_snapshots_of_steps_that_are_done_again_are_removed(run, tmp_path):
    shutil.copytree(run / "ema", tmp_path / "ema")
    snapshots.cut(tmp_path, after=14)
    assert snapshots.list_steps(tmp_path) == [3, 6, 9, 12]


def test_widths_may_not_change_under_a_run(short, run, tiny_data):
    with pytest.raises(UsageError, match=r"ema\.stds"):
        train(run, recipe_of((0.05,), ema__snapshot_every=EVERY), data=tiny_data, watch=lambda event: None)


# The command, and --weights


def test_the_command_writes_files_that_load(run, tmp_path):
    done = command("ema", run, "--std", "0.075,0.15", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert [fact["path"] for fact in facts] == [str(tmp_path / f"ema-{w}.safetensors") for w in ("0.075", "0.150")]
    assert all(0 < fact["profile_error"] < 0.01 and len(fact["coefficients"]) == 2 * STEPS // EVERY for fact in facts)
    assert facts[0]["sha256"] == hashlib.sha256((tmp_path / "ema-0.075.safetensors").read_bytes()).hexdigest()
    model = hdit_cli.load(tmp_path / "ema-0.075.safetensors", device="cpu")  # an average is an EMA
    assert (model.weights, model.step) == ("std 0.075", STEPS)
    assert torch.equal(flat(model), flat(hdit_cli.load(run, weights=0.075, device="cpu")))
    for wrong in ("raw", 0.15):
        with pytest.raises(UsageError, match=r"holds std 0\.075 weights"):
            hdit_cli.load(tmp_path / "ema-0.075.safetensors", weights=wrong, device="cpu")
    assert isinstance(command("ema", run, "--std", "0.15", "--out", tmp_path).exception, UsageError)
    assert command("ema", run, "--std", "0.15", "--out", tmp_path, "--force").exit_code == 0
    assert command("ema", run, "--std", "0.15", "--out", tmp_path, "--step", "60").exit_code == 0
    assert (tmp_path / "step-00000060-ema-0.150.safetensors").is_file()


def test_where_the_weights_of_a_width_come_from(run, tmp_path):
    """Tracked, reconstructed, written by `hdit ema`; a written file gives way to newer snapshots."""
    here = tmp_path / "run"
    shutil.copytree(run, here)
    assert load.find(here, weights=0.05) == load.InFile(last(here) / "ema-0.050.safetensors")
    assert isinstance(load.find(here, weights="0.15"), posthoc.Plan)
    assert command("ema", here, "--std", "0.15").exit_code == 0
    written = load.InFile(here / "ema-0.150.safetensors")
    assert load.find(here, weights=0.15) == written
    tensors, header = written.read()
    (here / "ema-0.150.safetensors").write_bytes(checkpoint.serialise(tensors, {**header, "hdit.step": "57"}))
    assert isinstance(load.find(here, weights=0.15), posthoc.Plan)
    shutil.rmtree(here / "ema")
    assert load.find(here, weights=0.15) == written
    with pytest.raises(CheckpointError, match="no snapshots") as caught:
        load.find(here, weights=0.2)
    assert "ema.snapshot_every" in caught.value.hint


def test_samples_of_a_width_are_made_again_from_their_record(run, tmp_path):
    words = ["-n", "1", "--steps", "2"]
    done = command("sample", run, "--weights", "0.075", *words, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "weights std 0.075: reconstructed at step 60 from 20 snapshots" in done.stderr
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["weights"] == "std 0.075"
    assert command("sample", "--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b").exit_code == 0
    assert (tmp_path / "a" / "00000.png").read_bytes() == (tmp_path / "b" / "00000.png").read_bytes()


def test_exports_of_several_weights_have_names_of_their_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {
        weights: json.loads(command("export", run, "--weights", weights, "--no-grid", "--json").stdout)["path"]
        for weights in ("ema", "raw", "0.05", "0.10")
    }
    assert len(set(found.values())) == 4
    assert found["ema"] == f"export/{run.name}/{run.name}.safetensors"
    assert found["0.05"] == f"export/{run.name}-0.05/{run.name}-0.05.safetensors"


def test_export_and_info_know_the_width(run, tmp_path):
    done = command("export", run, "--weights", "0.05", "--out", tmp_path / "x.safetensors", "--json")
    assert json.loads(done.stdout)["weights"] == "std 0.050"
    assert json.loads(command("info", tmp_path / "x.safetensors", "--json").stdout)["weights"] == "std 0.050"
    facts = json.loads(command("info", run, "--json").stdout)
    assert facts["ema_stds"] == [0.05, 0.10]
    assert facts["snapshots"] == list(range(EVERY, STEPS + 1, EVERY))


# What can be wrong


def test_a_damaged_snapshot_is_found_and_can_be_left_out(run, tmp_path):
    here = tmp_path / "run"
    shutil.copytree(run, here)
    victim = snapshots.folder_of(here, 30) / "ema-0.100.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"step-00000030 is damaged: ema-0\.100\.safetensors has changed"):
        posthoc.plan(here, [0.15])
    done = command("verify", here)
    assert isinstance(done.exception, CheckpointError)
    assert [line.split()[0] for line in done.stdout.splitlines() if "changed" in line] == ["ema/step-00000030"]
    assert posthoc.plan(here, [0.15], step=27)
    shutil.rmtree(snapshots.folder_of(here, 30))
    assert posthoc.plan(here, [0.15])[0].count == STEPS // EVERY - 1


def test_snapshots_of_another_run_are_refused(run, tiny_data, tmp_path):
    here, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run, here)
    changed = recipe_of((0.05, 0.10), ema__snapshot_every=EVERY, train__steps=3, train__seed=1)
    train(other, changed, data=tiny_data, watch=lambda event: None)
    shutil.rmtree(snapshots.folder_of(here, 3))
    shutil.copytree(snapshots.folder_of(other, 3), snapshots.folder_of(here, 3))
    with pytest.raises(CheckpointError, match=r"steps 3 and 60 are of different runs: train\.seed"):
        posthoc.plan(here, [0.15])


def test_what_may_change_in_a_run_makes_no_other_run(run, tmp_path):
    """Activation checkpointing is switched on, and the older snapshots are of a version with fewer keys."""
    shutil.copytree(run, tmp_path / "run")
    for step in snapshots.list_steps(tmp_path / "run"):
        folder = snapshots.folder_of(tmp_path / "run", step)
        facts = json.loads((folder / checkpoint.MANIFEST).read_bytes())
        parts = {}
        for name in facts["files"]:
            tensors, header = checkpoint.read_tensors(folder / name)
            recipe = json.loads(header["hdit.recipe"])
            recipe["model"]["levels"][0]["checkpoint"] = step > 30
            if step <= 30:
                del recipe["data"]["augment"]
            header["hdit.recipe"] = json.dumps(recipe)
            parts[name] = lambda tensors=tensors, header=header: checkpoint.serialise(tensors, header)
        shutil.rmtree(folder)
        del facts["files"]
        checkpoint.write_folder(folder, parts, facts=facts, proceed=lambda: None)
    assert posthoc.plan(tmp_path / "run", [0.075])[0].count == len(snapshots.list_steps(run))


def test_a_run_without_snapshots_says_what_to_set(tracked, tmp_path):
    done = command("ema", tracked[0], "--std", "0.1")
    assert isinstance(done.exception, CheckpointError)
    assert "ema.stds" in done.exception.hint
    assert isinstance(command("ema", tmp_path / "nowhere", "--std", "0.1").exception, UsageError)


def test_snapshots_need_widths():
    with pytest.raises(UsageError, match=r"ema\.snapshot_every"):
        tiny_recipe(ema__snapshot_every=5)
    with pytest.raises(UsageError, match="twice"):
        tiny_recipe(ema__stds=[0.1, 0.1])
    with pytest.raises(UsageError, match=r"ema\.stds"):
        tiny_recipe(ema__stds=[0.3])
