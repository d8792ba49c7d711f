"""What a run is told before its first step, and what it does where that takes long."""

import hashlib
import json
import os
import signal

import pytest
from tiny_run import tiny_recipe

from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.run import events, stop
from hdit_cli.engine.run.checkpoint import list_steps
from hdit_cli.engine.training import outlook
from hdit_cli.engine.training.loop import train
from hdit_cli.engine.training.outlook import Outlook
from hdit_cli.engine.training.setup import new_model


def look(recipe, data, *, forward=1e-6):
    """The outlook on a machine where an image takes `forward` seconds."""
    reader = ShardReader(data)
    found = Outlook(recipe, reader, model=new_model(recipe, reader, path=str(data)), world=1)
    found.forward = forward
    return found


def test_classes_that_a_recipe_leaves_out_are_told(tiny_data, tmp_path):
    assert look(tiny_recipe(), tiny_data).notes(0) == []
    (note,) = look(tiny_recipe(model__classes=0), tiny_data).notes(0)
    assert "the data has 2 classes, and this recipe trains without them" in note
    seen = []
    recipe = tiny_recipe(model__classes=0, train__steps=1, optimizer__warmup=0)
    train(tmp_path / "run", recipe, data=tiny_data, watch=seen.append)
    assert note in [event.text for event in seen if isinstance(event, events.Noted)]


def test_a_rate_that_acts_on_nothing_is_told(tiny_data):
    """A DiT has no mapping network; one that is told the usual is told nothing."""
    dit = {"type": "dit", "size": [16, 16], "patch": 4, "depth": 1, "width": 16, "heads": 2, "classes": "data"}
    (note,) = look(tiny_recipe(model=dit, optimizer={"mapping_lr_scale": 0.5}), tiny_data).notes(0)
    assert "optimizer.mapping_lr_scale is 0.5, and acts on nothing" in note
    assert look(tiny_recipe(model=dit), tiny_data).notes(0) == []
    assert look(tiny_recipe(optimizer={"mapping_lr_scale": 0.5}), tiny_data).notes(0) == []


def test_a_training_of_days_is_told_with_what_a_cpu_can_do(tiny_data):
    long = tiny_recipe(train__steps=100_000)
    (note,) = look(long, tiny_data, forward=0.5).notes(0)
    assert "would take about 14 days on this CPU" in note  # 3 x 0.5 s x 8 images x 100,000 steps
    assert (
        "`hdit prepare YOUR_PICTURES --size 64 --out data/source64`, then `hdit train flowers64-cpu --data data/source64`"
        in note
    )
    assert look(long, tiny_data, forward=0.5).notes(99_000) == []  # what is left is short
    assert look(long, tiny_data, forward=None).notes(0) == []
    (note,) = look(tiny_recipe(train__steps=100_000, name="flowers64-cpu"), tiny_data, forward=0.5).notes(0)
    assert "hdit train" not in note


@pytest.mark.parametrize(
    ("forward", "every", "pictures"),
    [
        (1e-3, 1, 36),  # 4 s: nobody minds
        (5e-3, 1000, 36),  # 18 s, and the steps to the next grids take longer
        (5e-3, 1, 20),  # 18 s where the steps to the next ones take a tenth of a second: 10 s
        (0.1, 2000, 6),  # 6 minutes: one
        (5.0, 2000, 4),  # never fewer
        (None, 1, 36),
    ],
)
def test_first_grids_are_small_where_they_would_take_long(tiny_data, forward, every, pictures):
    recipe = tiny_recipe(train__sample_every=every, sample={"n": 36, "steps": 50})
    assert look(recipe, tiny_data, forward=forward).first_grid() == pictures


def test_training_is_foreseen_in_its_own_precision(tiny_data, monkeypatch):
    monkeypatch.setattr(outlook, "_timed", lambda model, *, precision: {"fp32": 1.0, "bf16": 0.25}[precision])
    reader = ShardReader(tiny_data)
    for precision, days in (("fp32", 28), ("bf16", 7)):
        recipe = tiny_recipe(train__steps=100_000, train__precision=precision, train__deterministic=False)
        found = Outlook(recipe, reader, model=new_model(recipe, reader, path=""), world=1)
        assert f"about {days} days" in found.notes(0)[0]
        assert found.grid_seconds() == 2 * 4 * 3


def test_a_small_first_grid_changes_pictures_only(tiny_data, tmp_path, monkeypatch):
    folders = [tmp_path / "whole", tmp_path / "small"]
    wanted = tiny_recipe(train__steps=4, sample={"n": 9, "steps": 3})
    train(folders[0], wanted, data=tiny_data, watch=lambda event: None)
    monkeypatch.setattr(outlook, "_timed", lambda model, *, precision: 100.0)
    seen = []
    train(folders[1], wanted, data=tiny_data, watch=seen.append)
    assert any("the first grids have 4 pictures" in event.text for event in seen if isinstance(event, events.Noted))
    same, other = [], []
    for file in sorted(file.relative_to(folders[0]) for file in folders[0].rglob("*") if file.is_file()):
        pair = [(folder / file).read_bytes() for folder in folders]
        (same if pair[0] == pair[1] else other).append(str(file))
    assert [file for file in other if not file.startswith(("timing", ".lock"))] == [
        "samples/step-00000000-ema.png",
        "samples/step-00000000-raw.png",
    ]
    assert {"metrics.jsonl", "ckpt.safetensors", "samples/step-00000004-raw.png"} <= set(same)


def contents(folder):
    """All that must come out the same, by name."""
    names = (
        "metrics.jsonl",
        "validation.jsonl",
        "ckpt.safetensors",
        "samples/*",
        "checkpoints/step-00000008/*.safetensors",
    )
    files = sorted(file for name in names for file in folder.glob(name))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A data set with held-out pictures, and an unbroken run on it."""
    import numpy as np
    from PIL import Image

    from hdit_cli.data.prepare import PrepareOptions, prepare

    root = tmp_path_factory.mktemp("validated")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "source" / name).mkdir(parents=True)
        for i in range(20):
            picture = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / "source" / name / f"{i}.png")
    prepare(root / "source", out=root / "data", options=PrepareOptions(size=(16, 16), hold_out=0.3), workers=1)
    train(root / "run", long_run(), data=root / "data", watch=lambda event: None)
    return root / "data", contents(root / "run")


def long_run(**changes):
    return tiny_recipe(validation={"every": 4, "images": 8, "levels": 2}, **changes)


def interrupted_at(folder, data, what, *, step):
    """Runs until `what` is under way at a step, is sent SIGINT there, and returns all events."""
    seen, sent = [], []

    def watch(event):
        seen.append(event)
        here = max((earlier.step for earlier in seen if isinstance(earlier, events.Stepped)), default=0)
        if not sent and here == step and isinstance(event, events.Working) and event.what == what:
            sent.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    train(folder, long_run(), data=data, watch=watch)
    return seen


@pytest.mark.parametrize(
    ("what", "step"),
    [
        ("drawing step 0 raw", 0),
        ("drawing step 0 ema", 0),
        ("validating", 0),
        ("drawing step 4 raw", 4),
        ("drawing step 8 ema", 8),
        ("validating", 8),
    ],
)
def test_a_signal_is_heard_inside_sampling_and_nothing_is_lost(validated, tmp_path, what, step):
    data, whole = validated
    seen = interrupted_at(tmp_path, data, what, step=step)
    assert seen[-1] == events.Finished(step, stopped_by="SIGINT")
    assert isinstance(seen[-2], events.Saved)
    if what.endswith("raw"):  # ended there, not after the grid
        assert not (tmp_path / "samples" / f"step-{step:08d}-raw.png").exists()
    assert list_steps(tmp_path)[-1] == step
    assert (tmp_path / "ckpt.safetensors").is_file()
    again = []
    train(tmp_path, long_run(), data=data, watch=again.append)
    assert again[-1] == events.Finished(8)
    assert contents(tmp_path) == whole
    train(tmp_path, long_run(), data=data, watch=again.append)
    assert [type(event) for event in again[-2:]] == [events.Started, events.Finished]  # nothing is owed any more
    assert contents(tmp_path) == whole
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 4 + [4] * 4 + [8] * 4


def test_the_time_allowed_is_heard_inside_sampling_and_a_run_gets_on_by_a_step(validated, tmp_path):
    """However short the time: each start of the same command ends in time, and the last one has it all."""
    data, whole = validated
    hurried = long_run(train__stop_after="1s")

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls):
            cls.now += 0.6
            return cls.now

    starts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop, "time", Clock)
        for _ in range(9):
            seen = []
            train(tmp_path, hurried, data=data, watch=seen.append)
            starts.append(seen[-1])
    assert starts == [events.Finished(min(step, 8), stopped_by="time") for step in range(1, 10)]
    assert not (tmp_path / "samples" / "step-00000008-ema.png").exists()
    unhurried = []
    train(tmp_path, long_run(), data=data, watch=unhurried.append)
    done = contents(tmp_path)
    for name in ("checkpoints/step-00000008/optimizer.safetensors", "metrics.jsonl", "samples/step-00000008-ema.png"):
        assert done[name] == whole[name]
    unhurried.clear()
    train(tmp_path, long_run(), data=data, watch=unhurried.append)
    assert [type(event) for event in unhurried] == [events.Started, events.Finished]  # nothing is owed any more


def test_a_grid_says_how_far_it_is(tiny_data, tmp_path):
    seen = []
    train(tmp_path, tiny_recipe(train__steps=1, optimizer__warmup=0), data=tiny_data, watch=seen.append)
    working = [event for event in seen if isinstance(event, events.Working) and event.what == "drawing step 0 raw"]
    assert [event.done for event in working] == [1, 2, 4]  # of 4, after each of 3 steps of the sampler
    assert {event.total for event in working} == {4}
