"""A training step asks the device for no number: on a GPU each would stop the host until the device has caught up."""

import pytest
import torch
from tiny_run import tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode

from hdit_cli.engine.bench.subject import Subject
from hdit_cli.models.attention import dispatch, strips


class Asked(TorchDispatchMode):
    """Notes every read of a tensor's value by the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"train__accumulate": 2}, {"ema__stds": [0.05]}], ids=str)
def test_a_step_asks_for_no_number(changes, monkeypatch):
    monkeypatch.setattr(strips, "refuse", lambda request: "made for a CPU, where nobody waits for a number")
    dispatch.choose.cache_clear()
    subject = Subject(tiny_recipe(**changes), data=None)
    subject.step()  # states are made
    with Asked() as asked:
        subject.step()
    assert asked.count == 0


def test_every_step_that_is_timed_is_a_whole_one():
    """None is refused for numbers that no run would draw: a refused step spares AdamW its work."""
    subject = Subject(tiny_recipe(), data=None)
    for _ in range(3):
        subject.step()
    assert int(subject.stepper.state.window.skipped) == 0


@pytest.fixture(autouse=True)
def choose_anew():
    yield
    dispatch.choose.cache_clear()


def test_what_it_would_notice():
    with Asked() as asked:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
    assert asked.count == 2
