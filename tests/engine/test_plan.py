"""What a run costs: the estimate against a real step, and switches that fit into less."""

import re

import pytest
from tiny_run import tiny_recipe

from hdit_cli import runtime
from hdit_cli.engine.cost.plan import plan
from hdit_cli.engine.cost.trial import Bench
from hdit_cli.engine.memory import out_of_memory
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.memory.out_of_memory import changed, in_drawing, in_sampling, in_training
from hdit_cli.engine.training import trackers
from hdit_cli.errors import OutOfMemory, UsageError

DIT = {"type": "dit", "size": [16, 16], "patch": 2, "depth": 4, "width": 32, "heads": 2, "classes": "data"}


@pytest.fixture
def own_precision():
    """Accelerate holds a process to its first precision; here each test has its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def real_peak(recipe, data):
    bench = Bench(recipe, data=data)
    with bench.loader(recipe, processes=1, steps=2, workers=0) as loader:
        batches = iter(loader)
        bench.step(batches)  # makes the moments
        return bench.measured_step(batches)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp64"])
def test_the_estimate_is_what_a_step_takes(precision, accumulate, tiny_data, own_precision):
    recipe = tiny_recipe(train__precision=precision, train__accumulate=accumulate, train__batch_size=16)
    found = estimate(recipe, images=16 // accumulate, device="cpu", classes=2)
    assert found["total"] == sum(size for name, size in found.items() if name != "total")
    assert found["total"] == pytest.approx(real_peak(recipe, tiny_data), rel=0.2)


@pytest.mark.parametrize(("task", "precision"), [("ddpm", "bf16"), ("denoise", "fp32")])
def test_the_estimate_of_another_network_and_task(task, precision, tiny_data, own_precision):
    recipe = tiny_recipe(model=DIT, task={"type": task}, train__precision=precision, train__batch_size=16)
    found = estimate(recipe, images=16, device="cpu", classes=2)
    assert found["total"] == pytest.approx(real_peak(recipe, tiny_data), rel=0.2)


def test_averages_of_all_widths_are_measured_too(tiny_data):
    def peak(stds):
        return real_peak(tiny_recipe(ema__stds=stds), tiny_data)

    weights = estimate(tiny_recipe(), images=8, device="cpu", classes=2)["weights"]
    assert peak((0.05, 0.1, 0.2)) - peak(()) == pytest.approx(3 * weights, rel=0.05)


def test_where_weights_outweigh_maps_the_update_is_the_fullest_moment(tiny_data):
    levels = [{"depth": 2, "width": 256, "head_dim": 32, "attention": "global"}]
    recipe = tiny_recipe(model__levels=levels, train__batch_size=1)
    found = estimate(recipe, images=1, device="cpu", classes=2)
    assert found["gradients"] == found["activations"] == found["weights"]
    assert found["total"] == pytest.approx(real_peak(recipe, tiny_data), rel=0.2)


def test_plan(tiny_data):
    facts = plan(tiny_recipe(train__accumulate=2), data=tiny_data, processes=2)
    assert (facts["batch"], facts["micro_batch"], facts["steps_per_epoch"]) == (8, 2, 3.0)
    assert facts["learning_rate"]["at"] == pytest.approx({0: 2e-3 / 3, 2: 2e-3, 4: 2e-3, 7: 2e-3})
    assert facts["memory"]["weights"] == 4 * facts["params"]
    # gradients lie in memory that is exchanged and never given back: as where they are accumulated
    alone = plan(tiny_recipe(train__batch_size=4, train__accumulate=2), data=tiny_data)
    assert facts["memory"] == alone["memory"]
    shared = plan(tiny_recipe(train__batch_size=4), data=tiny_data, processes=2)
    assert shared["memory"] == alone["memory"]
    assert alone["memory"]["total"] > plan(tiny_recipe(train__batch_size=2), data=tiny_data)["memory"]["total"]
    with pytest.raises(UsageError, match="cannot be shared"):
        plan(tiny_recipe(), data=tiny_data, processes=3)


def test_a_plan_finds_what_a_run_would_refuse(tiny_data, monkeypatch):
    assert plan(tiny_recipe(), data=tiny_data)["held_out"] == 0
    with pytest.raises(UsageError, match="is the training data"):
        plan(tiny_recipe(validation__path=str(tiny_data)), data=tiny_data)
    monkeypatch.setitem(trackers._INSTALLED, "wandb", lambda: False)
    with pytest.raises(UsageError, match="wandb, which is not installed"):
        plan(tiny_recipe(log__trackers=("wandb",)), data=tiny_data)


# Out of memory


def switches(error):
    return re.findall(r"--set ([\w.]+)=([^\s,]+)", error.hint)


def apply(recipe, found):
    values = {"true": True, "bf16": "bf16"}
    return changed(recipe, {key: values[text] if text in values else int(text) for key, text in found})


def needs(recipe):
    images = recipe.train.batch_size // recipe.train.accumulate
    return estimate(recipe, images=images, device="cpu")["total"]


def test_three_switches_each_of_which_needs_less():
    recipe = tiny_recipe(train__batch_size=64)
    error = in_training(recipe)
    assert [key for key, _ in switches(error)] == ["train.accumulate", "model.levels.0.checkpoint", "train.precision"]
    for switch in switches(error):
        smaller = needs(apply(recipe, [switch]))
        assert smaller < needs(recipe)
        assert f"{switch[0]}={switch[1]} (about {runtime.readable(smaller)})" in error.hint
    assert runtime.readable(needs(recipe)) in error.message


def test_the_pieces_are_as_many_as_fit(monkeypatch):
    recipe = tiny_recipe(train__batch_size=64)
    eighth = needs(apply(recipe, [("train.accumulate", "8")]))
    monkeypatch.setattr(runtime, "total_memory", lambda device: eighth / out_of_memory.ROOM + 1)
    assert ("train.accumulate", "8") in switches(in_training(recipe))


def test_what_is_used_up_is_not_named():
    """Switches followed one after the other: they never run out before the model itself is the least it can be."""
    recipe = tiny_recipe(train__batch_size=4, train__precision="fp32")
    named = set()
    while found := switches(in_training(recipe)):
        named |= {key for key, _ in found}
        recipe = apply(recipe, found[:1])
    assert named >= {"train.accumulate", "model.levels.0.checkpoint", "model.levels.1.checkpoint", "train.precision"}
    assert "device with more memory" in in_training(recipe).hint


def test_a_smaller_batch_or_model_comes_last():
    levels = [{**level, "checkpoint": True, "depth": 4} for level in tiny_recipe().to_dict()["model"]["levels"]]
    found = switches(in_training(tiny_recipe(train__batch_size=64, train__precision="bf16", model__levels=levels)))
    assert found == [("train.accumulate", "2"), ("train.batch_size", "16"), ("model.levels.0.depth", "2")]


@pytest.mark.parametrize("task", ["denoise", "ddpm"])
def test_another_network_and_task_have_switches_of_their_own(task):
    recipe = tiny_recipe(model=DIT, task={"type": task}, train__batch_size=64, train__precision="bf16")
    again = apply(recipe, [("model.checkpoint", "true")])
    keys = {
        recipe: ["train.accumulate", "model.checkpoint", "train.batch_size"],
        again: ["train.accumulate", "train.batch_size", "model.depth"],
    }
    for each, expected in keys.items():
        found = switches(in_training(each))
        assert [key for key, _ in found] == expected
        assert all(needs(apply(each, [switch])) < needs(each) for switch in found)


def test_sampling_and_drawing():
    error = in_sampling(images=64, size=(48, 32), unit=(16, 16), cfg=2.0)
    assert "--batch-size 16" in error.hint and "--size 16x16" in error.hint and "--cfg 1" in error.hint
    smallest = in_sampling(images=1, size=(16, 16), unit=(16, 16), cfg=1.0)
    assert "--" not in smallest.hint
    error = in_drawing(tiny_recipe(sample__n=36, sample__batch_size=64))
    assert {("sample.batch_size", "9"), ("sample.n", "9"), ("train.sample_every", "0")} == set(switches(error))


@pytest.mark.parametrize("place", ["training", "drawing"])
def test_a_run_says_where_it_was_too_much(place, tiny_data, tmp_path, monkeypatch):
    from hdit_cli.engine.training.loop import train

    class OutOfMemoryError(RuntimeError):
        """Named like torch's."""

    def full(*arguments, **options):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    steps, draws = "training.step.Stepper.step", "sampling.generate.denoise_batch"
    where = f"hdit_cli.engine.{steps if place == 'training' else draws}"
    monkeypatch.setattr(where, full)
    with pytest.raises(OutOfMemory, match="at batch 8" if place == "training" else "drawing 4 pictures"):
        train(tmp_path / "run", tiny_recipe(), data=tiny_data, watch=lambda event: None)


def test_several_processes_may_divide_their_weights(monkeypatch):
    monkeypatch.setattr(runtime, "ranks", lambda: runtime.Ranks(0, 4))
    levels = [{"depth": 8, "width": 128, "head_dim": 32, "attention": "global"}]
    recipe = tiny_recipe(model__levels=levels, model__classes=0, train__batch_size=4)
    assert "--set train.shard=true" in in_training(recipe).hint
    for changes in ({"train__shard": True}, {"train__compile": True}):
        assert "train.shard" not in in_training(tiny_recipe(**{**changes, "model__levels": levels})).hint
