"""Weights divided among processes: the losses of undivided ones, the same files, and runs that go on either way."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe
from together import together
from torch import distributed

from hdit_cli import runtime
from hdit_cli.data.loader import Loader
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.run.folder import RunFolder
from hdit_cli.engine.training import exchange, step
from hdit_cli.engine.training.exchange import as_first_of
from hdit_cli.engine.training.loop import Trainer, train
from hdit_cli.errors import UsageError

EXACT = {
    "train__precision": "fp64",
    "train__steps": 20,
    "train__log_every": 1,
    "train__save_every": 10,
    "train__sample_every": 0,
}


def exact(**changes):
    return tiny_recipe(**{**EXACT, "ema": {"stds": [0.05]}, "train__shard": True, **changes})


class Cut(Exception):
    """As a kill."""


def ran(folder, recipe, data, *, processes=2, cut=0):
    """A run in so many processes; with `cut`, until that step was taken. Its losses, and the notes of the main process."""

    def watch(event):
        if isinstance(event, events.Warned | events.Noted):
            said.append(event.text)
        if isinstance(event, events.Stepped) and event.step == cut:
            raise Cut

    def run():
        with suppress(Cut):
            train(folder, recipe, data=data, watch=watch)
        return said

    said: list[str] = []
    found = together(run, processes=processes)[0] if processes > 1 else run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], found


def files_of(folder, step):
    place = folder / "checkpoints" / checkpoint.step_name(step)
    return {path.name: path for path in [*sorted(place.glob("*.safetensors")), folder / "ckpt.safetensors"]}


def digests(folder, step):
    paths = [*files_of(folder, step).values(), folder / "metrics.jsonl", *sorted((folder / "samples").glob("*"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module", autouse=True)
def warm(tiny_data, tmp_path_factory):
    """What every process would load and estimate for itself, once, before they are forked."""
    ran(tmp_path_factory.mktemp("warm") / "run", tiny_recipe(**EXACT), tiny_data, processes=1, cut=2)


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """The same run divided and not, both of two processes."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, shard in (("whole", False), ("divided", True)):
        found[name] = ran(root / name, exact(train__shard=shard), tiny_data)[0]
    return root, found


@pytest.mark.slow
def test_the_losses_and_weights_of_undivided_ones(runs):
    root, losses = runs
    assert len(losses["whole"]) == 20
    assert losses["divided"] == pytest.approx(losses["whole"], rel=1e-9)
    whole, divided = files_of(root / "whole", 20), files_of(root / "divided", 20)
    assert list(whole) == list(divided)
    for name in whole:
        expected, found = load_file(whole[name]), load_file(divided[name])
        assert {key: value.shape for key, value in expected.items()} == {
            key: value.shape for key, value in found.items()
        }
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-11)


def shortened(root, name, folder):
    """A copy of a run as it stood at step 10."""
    shutil.copytree(root / name, folder)
    shutil.rmtree(folder / "checkpoints" / checkpoint.step_name(20))
    return folder


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_bytes(runs, tiny_data, tmp_path):
    root, losses = runs
    folder = shortened(root, "divided", tmp_path / "run")
    assert ran(folder, exact(), tiny_data)[0] == losses["divided"]
    assert digests(folder, 20) == digests(root / "divided", 20)


@pytest.mark.parametrize(
    ("began", "shard", "processes"),
    [
        ("divided", False, 1),
        ("divided", True, 1),
        pytest.param("divided", False, 2, marks=pytest.mark.slow),
        pytest.param("whole", True, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_other_shares(began, shard, processes, runs, tiny_data, tmp_path):
    root, losses = runs
    folder = shortened(root, began, tmp_path / "run")
    recipe = exact(train__shard=shard)
    found, said = ran(folder, recipe, tiny_data, processes=processes)
    assert found == pytest.approx(losses["whole"], rel=1e-9)
    alone = [text for text in said if "train.shard" in text]
    assert bool(alone) == (shard and processes == 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_one_process_and_several(processes, tiny_data, tmp_path):
    """From one to two and three, where some have no row of the small parameters, and back; accumulated."""
    changes = {"train__batch_size": 12, "train__accumulate": 2, "model__classes": 0}
    expected, _ = ran(tmp_path / "one", exact(**changes), tiny_data, processes=1)
    ran(tmp_path / "run", exact(**changes), tiny_data, processes=1, cut=11)
    ran(tmp_path / "run", exact(**changes, train__steps=20), tiny_data, processes=processes, cut=15)
    found, _ = ran(tmp_path / "run", exact(**changes), tiny_data, processes=1)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_lower_precision_computes_what_undivided_weights_do(precision, tiny_data, tmp_path):
    """Layers that are computed again, and accumulation, included: the same bits but for the order of the norm's sum."""
    found = {}
    for shard in (False, True):
        changes = {"train__precision": precision, "train__accumulate": 2, "train__shard": shard}
        levels = [{**level, "checkpoint": True} for level in tiny_recipe().to_dict()["model"]["levels"]]
        recipe = exact(**changes, model__levels=levels)
        found[shard] = ran(tmp_path / str(shard), recipe, tiny_data)[0]
    assert found[True] == pytest.approx(found[False], rel=1e-5)


@pytest.mark.slow
def test_everything_beside_the_steps(tiny_data, tmp_path):
    """Grids, validation, scores, best weights, snapshots of averages: of whole weights, the same as without shards."""
    from hdit_cli.engine.run import snapshots

    found = {}
    for shard in (False, True):
        folder = tmp_path / str(shard)
        recipe = exact(
            train__shard=shard, train__steps=3, train__save_every=3, train__sample_every=3,
            ema={"stds": [0.05], "snapshot_every": 3}, validation={"path": str(held_out(tiny_data, tmp_path)), "every": 3},
            eval={"every": 24, "during_n": 4, "during_metrics": ["swd"], "during_weights": ["ema", "raw", "0.05"]},
        )  # fmt: skip
        ran(folder, recipe, tiny_data)
        lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
        scores = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[shard] = {
            "validation": [(line["step"], line["weights"], line["split"], line["mean"]) for line in lines],
            "scores": [(line["eval"]["weights"], line["eval"]["scores"]["swd"]) for line in scores if "eval" in line],
            "noise": [line["gradient_noise_scale"] for line in scores if "gradient_noise_scale" in line],
        }
        assert len(list((folder / "samples").iterdir())) == 4
        assert snapshots.list_steps(folder) == [3]
        assert (folder / "best.safetensors").is_file()
    for name, values in found[False].items():
        assert len(values) >= 2
        for expected, got in zip(values, found[True][name], strict=True):
            assert got == pytest.approx(expected, rel=1e-6) if name == "noise" else got[:-1] == expected[:-1]
            if name != "noise":
                assert got[-1] == pytest.approx(expected[-1], rel=1e-4)
    grids = [sorted((tmp_path / str(shard) / "samples").iterdir()) for shard in (False, True)]
    for expected, got in zip(*grids, strict=True):
        assert got.name == expected.name
        assert got.stat().st_size == pytest.approx(expected.stat().st_size, rel=0.05)


def held_out(data, folder):
    """Other pictures of the same classes."""
    from hdit_cli.data.prepare import PrepareOptions, prepare

    if not (folder / "held").is_dir():
        prepare(
            data.parent / "source", out=folder / "held", options=PrepareOptions(size=(16, 16), shard_size=7), workers=1
        )
    return folder / "held"


def test_a_refused_step_changes_nothing_on_any_process(tiny_data, tmp_path):
    """One picture of one process is not finite: every process passes over the step, and goes on."""
    recipe = exact(train__nonfinite="skip")

    def steps():
        runtime.join_processes()
        trainer = Trainer(RunFolder(tmp_path / "run"), recipe, data=tiny_data)
        original, before, stepper = trainer.stepper.draw, [], trainer.stepper

        def poisoned(batch, *, first):
            drawn = original(batch, first=first)
            return drawn._replace(x0=drawn.x0 * float("nan")) if first == 8 and trainer.rank == 1 else drawn

        stepper.draw = poisoned
        with Loader(trainer.reader, batch_size=8, seed=0, position=0, steps=3, slots=trainer.slots) as loader:
            for batches in loader:
                before.append(kept(trainer.state))
                stepper.step(batches)
        same = [all(torch.equal(*pair) for pair in zip(one, two, strict=True)) for one, two in pairwise(before)]
        after = kept(trainer.state)
        moved = not all(torch.equal(*pair) for pair in zip(before[2], after, strict=True))
        return [*same, moved], int(trainer.state.window.skipped), int(trainer.guard.in_row)

    def kept(state):
        averages = [each.network for each in state.averages.by_std.values()]
        tensors = [tensor for network in (state.held, state.ema.network, *averages) for tensor in network.parameters()]
        return [tensor.detach().clone() for tensor in tensors]

    assert together(steps) == [([False, True, True], 1, 0)] * 2


def test_each_process_keeps_its_share_alone(tiny_data, tmp_path):
    recipe = exact()

    def count():
        runtime.join_processes()
        trainer = Trainer(RunFolder(tmp_path / "run"), recipe, data=tiny_data)
        with Loader(trainer.reader, batch_size=8, seed=0, position=0, steps=1, slots=trainer.slots) as loader:
            trainer.stepper.step(next(iter(loader)))
        state, whole = trainer.state, sum(each.numel() for each in trainer.state.shards.shapes.values())
        held = sum(tensor.numel() for tensor in state.parameters)
        assert sum(tensor.numel() for tensor in state.ema.network.parameters()) == held
        assert sum(tensor.numel() for tensor in state.optimizer_tensors().values() if tensor.ndim) == 2 * held
        called = [each.to_local().numel() for each in trainer.stepper.losses_of.parameters()]
        return held, whole, sum(called)

    (one, whole, _), (other, _, called) = together(count)
    assert one + other == whole
    assert called == other
    assert one == pytest.approx(whole / 2, rel=0.05)


@pytest.mark.slow
def test_another_network(tiny_data, tmp_path):
    """Its table of positions is a parameter that does not learn."""
    model = {"type": "dit", "size": [16, 16], "patch": 2, "depth": 2, "width": 32, "heads": 2, "classes": "data"}
    found = {}
    for shard in (False, True):
        recipe = exact(model=model, task={"type": "ddpm"}, train__shard=shard, train__steps=6, train__save_every=6)
        found[shard] = ran(tmp_path / str(shard), recipe, tiny_data)[0]
    assert found[True] == pytest.approx(found[False], rel=1e-9)
    whole, divided = (load_file(tmp_path / str(shard) / "ckpt.safetensors") for shard in (False, True))
    assert list(whole) == list(divided)
    assert torch.equal(whole["pos_embed"], divided["pos_embed"])


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_bytes(tiny_data, tmp_path):
    """`hdit train --processes 2`, killed without notice after its first checkpoint."""
    file = tmp_path / "tiny.toml"
    file.write_text(exact(train__steps=60).to_toml())
    words = ["train", str(file), "--data", str(tiny_data), "--processes", "2", "--oversubscribe", "--run"]

    def command(folder):
        full = [sys.executable, "-m", "hdit_cli", *words, str(tmp_path / folder)]
        return subprocess.Popen(full, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole, cut = command("whole"), command("cut")
    deadline = time.monotonic() + 120
    while not checkpoint.list_steps(tmp_path / "cut") and time.monotonic() < deadline:
        time.sleep(0.02)
    cut.kill()  # the launcher: its processes end with it
    cut.communicate()
    text = whole.communicate(timeout=240)[1]
    assert whole.returncode == 0, text
    assert not (tmp_path / "cut" / "checkpoints" / checkpoint.step_name(60)).exists()
    again = command("cut")
    text = again.communicate(timeout=240)[1]
    assert again.returncode == 0, text
    assert "goes on from step" in text
    assert "Warning" not in text
    assert digests(tmp_path / "cut", 60) == digests(tmp_path / "whole", 60)


def test_a_step_of_divided_weights_is_not_compiled_and_says_so(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "wants_compiled", lambda *args, **kwargs: (True, ""))
    with as_first_of(2):
        trainer = Trainer(RunFolder(tmp_path / "run"), exact(), data=tiny_data)
    assert trainer.stepper.compiled == []
    assert [text for text in trainer.compiling if "not compiled: train.shard" in text]


@pytest.mark.parametrize(("backend", "op", "factor"), [("nccl", distributed.ReduceOp.AVG, 1.0), ("gloo", None, 0.5)])
def test_nccl_divides_while_it_adds(backend, op, factor, monkeypatch):
    seen = {}

    def scatter(output, input, op=None, group=None, async_op=False):
        seen.update(op=op, values=input.clone())

    monkeypatch.setattr(distributed, "get_backend", lambda group: backend)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(exchange, "_named", lambda name, before: scatter)
    values, looked = torch.arange(4.0), []
    mean = exchange._MeansOfRows([], lambda parameters, gradients: looked.append(gradients[0].clone()))
    mean(torch.empty(2), values.clone(), group=None, op=None)
    assert seen["op"] == op
    assert torch.equal(seen["values"], values * factor)
    assert torch.equal(looked[0], values)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match=r"train.compile: must be false or"):
        tiny_recipe(train__shard=True, train__compile=True)
