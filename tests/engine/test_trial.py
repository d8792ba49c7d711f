"""Real steps that write nothing: time, memory, and the search for a batch."""

import pytest
from tiny_run import tiny_recipe

from hdit_cli.engine.cost import trial
from hdit_cli.engine.cost.trial import find_batch, try_steps
from hdit_cli.engine.memory.estimate import estimate
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
