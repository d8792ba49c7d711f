"""The batch size and the choice to compile of a sampling, where nobody says."""

import pytest
import torch
from tiny_run import tiny_recipe

from hdit_cli import runtime
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.sampling import pace
from hdit_cli.engine.sampling.pace import as_recorded, fitting, found_batch, halved, needed, paced
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import Sampling


@pytest.fixture(scope="module")
def model():
    recipe = tiny_recipe()
    denoiser = build_task(build_network(recipe, classes=2), recipe).eval()
    return Model(denoiser, recipe.to_dict(), ["a", "b"])


@pytest.mark.parametrize(
    ("room", "start", "most", "found"),
    [(100, 8, 0, 8), (7, 8, 0, 4), (0, 8, 0, 1), (100, 8, 64, 64), (100, 8, 63, 32), (20, 8, 64, 16), (7, 8, 64, 4)],
)
def test_what_fits(room, start, most, found):
    """An image takes 1."""
    assert fitting(lambda batch: batch, room=room, start=start, most=most) == found


def test_halved_until_the_device_does_not_refuse():
    tried = []

    def attempt(batch):
        tried.append(batch)
        if batch > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert halved(attempt, 32) == 4
    assert tried == [32, 16, 8, 4]

    def wrong(batch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        halved(wrong, 4)


def test_the_recipe_decides_while_memory_is_there_and_fewer_come_where_it_is_not(model, monkeypatch):
    sampling = Sampling(batch_size=16)
    assert found_batch(model, sampling, images=1000) == 16  # never more on a CPU
    four = needed(model, sampling)(4)
    monkeypatch.setattr(runtime, "free_memory", lambda device: 1.1 * four / pace.ROOM)
    assert found_batch(model, sampling, images=1000) == 4
    guided = Sampling(batch_size=16, cfg=2.0)
    assert found_batch(model, guided, images=1000) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")  # they share the memory of a CPU
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert found_batch(model, sampling, images=1000) == 2


def test_processes_agree_on_the_smallest(model, monkeypatch):
    monkeypatch.setattr(runtime, "gather", lambda value: [value, False if isinstance(value, bool) else 3])
    found = paced(model, Sampling(batch_size=16), images=8, batch_size=None, compile=None)
    assert (found.batch_size, found.compile, found.precision) == (3, False, "fp32")


def test_what_is_asked_for_is_done(model, monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda device: 0)
    monkeypatch.setattr(runtime, "why_not_compiled", lambda device: "")
    found = paced(model, Sampling(batch_size=16), images=8, batch_size=16, compile=True)
    assert (found.batch_size, found.compile) == (16, True)
    assert as_recorded(model, found) == (found, "")


def test_no_compiler(model, monkeypatch):
    monkeypatch.setattr(runtime, "why_not_compiled", lambda device: "no compiler is installed (g++)")
    with pytest.raises(UsageError, match="no compiler"):
        paced(model, Sampling(), images=8, batch_size=4, compile=True)
    found, note = as_recorded(model, Sampling(compile=True))
    assert not found.compile and "1/255" in note
    assert as_recorded(model, Sampling()) == (Sampling(), "")


def test_a_size_that_does_not_fit_the_model_is_told_first(model):
    with pytest.raises(UsageError, match="--size"):
        paced(model, Sampling(size=(18, 16)), images=8, batch_size=None, compile=None)
