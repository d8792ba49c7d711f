"""Real steps that write nothing: time, memory, and the search for a batch."""

import pytest
from tiny_run import tiny_recipe
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hdit_cli.engine.cost import trial
from hdit_cli.engine.cost.trial import find_batch, try_steps
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.model import build_network
from hdit_cli.engine.training.step import Stepper
from hdit_cli.errors import OutOfMemory


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """Nothing may be written."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def with_room_for(images, monkeypatch):
    """A device that holds so many images and no more."""
    real = Stepper.step

    def step(self, batches):
        if len(batches[0].index) > images:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        real(self, batches)

    monkeypatch.setattr(Stepper, "step", step)


def ignore(tried):
    pass


def test_try_steps(tiny_data):
    recipe = tiny_recipe(train__accumulate=2)
    found = try_steps(recipe, data=tiny_data, processes=2)
    assert found["timed_steps"] == 5
    assert found["seconds_per_1000_steps"] == pytest.approx(1000 * found["seconds_per_step"])
    assert found["images_per_second"] == pytest.approx(8 / found["seconds_per_step"])
    assert found["hours"] == pytest.approx(8 * found["seconds_per_step"] / 3600)
    assert found["peak_bytes"] == pytest.approx(estimate(recipe, images=2, device="cpu", classes=2)["total"], rel=0.2)


def test_a_slow_machine_takes_one_step(tiny_data, monkeypatch):
    monkeypatch.setattr(trial, "PATIENCE", 0.0)
    found = try_steps(tiny_recipe(), data=tiny_data)
    assert (found["timed_steps"], found["peak_bytes"]) == (1, None)
    assert found["seconds_per_step"] > 0


def test_steps_that_do_not_fit(tiny_data, monkeypatch):
    with_room_for(7, monkeypatch)
    with pytest.raises(OutOfMemory) as caught:
        try_steps(tiny_recipe(), data=tiny_data)
    assert "train.accumulate=2" in caught.value.hint


@pytest.mark.slow
def test_find_batch_stays_within_the_memory_it_is_given(tiny_data):
    recipe = tiny_recipe(train__batch_size=24)
    room = estimate(recipe, images=9, device="cpu", classes=2)["total"] / 0.8
    seen = []
    found = find_batch(recipe, data=tiny_data, processes=2, memory=int(room), watch=seen.append)
    assert sorted(seen, key=lambda each: each.images) == found.tries
    sizes = [each.images for each in found.tries]
    assert sizes[:4] == [1, 2, 4, 8]
    assert max(each.images for each in found.tries if each.fits) < min(
        each.images for each in found.tries if not each.fits
    )
    assert all(each.peak_bytes <= room * 0.8 for each in found.tries if each.fits)
    assert (found.batch_size, 12 // found.accumulate <= found.fastest.images) == (24, True)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 11])
def test_find_batch_finds_where_a_device_is_full(images, tiny_data, monkeypatch):
    with_room_for(images, monkeypatch)
    monkeypatch.setattr(trial, "_GROWTH", 0.0)  # whatever the clock says
    found = find_batch(tiny_recipe(train__batch_size=96), data=tiny_data, memory=2**40, watch=ignore)
    fitting = [each.images for each in found.tries if each.fits]
    assert images - max(1, images // 4) <= max(fitting) <= images
    assert 96 // found.accumulate <= found.fastest.images
    assert 96 % found.accumulate == 0


def test_find_batch_where_one_image_is_too_much(tiny_data, monkeypatch):
    with_room_for(0, monkeypatch)
    with pytest.raises(OutOfMemory, match="at batch 1, accumulate 1"):
        find_batch(tiny_recipe(), data=tiny_data, watch=ignore)


@pytest.mark.slow
def test_find_batch_ends_where_more_is_no_faster(tiny_data, monkeypatch):
    monkeypatch.setattr(trial, "_GROWTH", 1e9)
    found = find_batch(tiny_recipe(), data=tiny_data, watch=ignore)
    assert [each.images for each in found.tries] == [1, 2, 4]


def test_a_try_is_a_step_of_the_run(tiny_data, monkeypatch):
    """Of the first of two processes: what it exchanges is there, compiled where the run compiles, accumulated, divided."""
    seen = []
    real = trial._attempt

    def look(bench, recipe, **how):
        tried = real(bench, recipe, **how)
        seen.append((bench.stepper, recipe.train.batch_size, recipe.train.accumulate))
        return tried

    monkeypatch.setattr(trial, "_attempt", look)
    monkeypatch.setattr(trial, "_GROWTH", 1e9)  # three sizes
    compiled = []
    monkeypatch.setattr(trial, "compile_step", lambda stepper, sizes: compiled.append(stepper) or ["a note"])
    found = find_batch(tiny_recipe(train__batch_size=8), data=tiny_data, processes=2, watch=ignore)
    assert compiled == [seen[0][0]]
    assert isinstance(compiled[0].losses_of, DistributedDataParallel)
    assert [(batch, pieces) for _, batch, pieces in seen] == [(4, 2), (8, 2), (8, 1)]
    assert [each.images for each in found.tries] == [1, 2, 4]
    assert found.notes == ["a note"]
    assert not distributed.is_initialized()
    seen.clear()
    find_batch(tiny_recipe(train__shard=True), data=tiny_data, processes=2, watch=ignore)
    assert all(stepper.shards.world == 2 for stepper, *_ in seen)
    assert not distributed.is_initialized()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_memory_of_one_of_two_processes(accumulate, tiny_data):
    """Gradients lie in what is exchanged: measured, and as estimated."""
    recipe = tiny_recipe(train__accumulate=accumulate, train__batch_size=32)
    found = try_steps(recipe, data=tiny_data, processes=2)["peak_bytes"]
    expected = estimate(recipe, images=16 // accumulate, processes=2, device="cpu", classes=2)
    assert found == pytest.approx(expected["total"], rel=0.1)


def test_shares_of_divided_weights_are_estimated(tiny_data):
    recipe = tiny_recipe(train__shard=True, ema__stds=[0.05])
    how = {"images": 2, "device": "cpu", "classes": 2}
    whole, alone = estimate(tiny_recipe(ema__stds=[0.05]), **how), estimate(recipe, **how)
    assert alone == whole
    share = estimate(recipe, processes=4, **how)
    for name in ("weights", "average", "moments"):
        assert share[name] == pytest.approx(whole[name] / 4, abs=1)
    layer = sum(each.nbytes for each in build_network(recipe, classes=2).mid_level[0].parameters())
    assert 2 * layer < share["gathered"] < whole["weights"] + layer
    assert share["total"] == sum(size for name, size in share.items() if name != "total")
    trial = try_steps(recipe, data=tiny_data, processes=2)
    assert trial["peak_bytes"] is None and trial["seconds_per_step"] > 0
