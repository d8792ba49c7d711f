"""What processes exchange: the same bits as torch's own way, and nothing beside the gradients."""

from types import SimpleNamespace

import pytest
import torch
from tiny_run import tiny_recipe
from together import together
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hdit_cli import runtime
from hdit_cli.data.loader import Loader
from hdit_cli.engine.run.folder import RunFolder
from hdit_cli.engine.training import exchange, noise_scale, step
from hdit_cli.engine.training.loop import Trainer


@pytest.fixture(scope="module", autouse=True)
def warm(tiny_data, tmp_path_factory):
    """What every process would load and estimate for itself, once, before they are forked."""
    trained(tmp_path_factory.mktemp("warm"), tiny_recipe(), tiny_data, steps=1)


def trained(folder, recipe, data, steps=4):
    """Weights after a few steps of this process, in the order of the parameters, and the gradient noise scale's sum."""
    runtime.join_processes()
    trainer = Trainer(RunFolder(folder), recipe, data=data)
    size = recipe.train.batch_size
    with Loader(trainer.reader, batch_size=size, seed=0, position=0, steps=steps, slots=trainer.slots) as loader:
        for batches in loader:
            trainer.stepper.step(batches)
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.parameters])
    return weights.numpy().tobytes(), float(trainer.stepper.noise_scale.small)


@pytest.mark.parametrize(
    ("processes", "accumulate"),
    [pytest.param(2, 1, marks=pytest.mark.slow), (2, 2), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_the_same_bits_as_torchs_own_exchange(processes, accumulate, tiny_data, tmp_path, monkeypatch):
    recipe = tiny_recipe(train__batch_size=12, train__accumulate=accumulate)
    found = together(lambda: trained(tmp_path, recipe, tiny_data), processes=processes)
    assert all(weights == found[0][0] for weights, _ in found)
    monkeypatch.setattr(step, "exchanging", lambda losses_of, device: DistributedDataParallel(losses_of))
    monkeypatch.setattr(noise_scale, "take_means", lambda losses_of, look: None)
    monkeypatch.setattr(noise_scale.NoiseScale, "add", lambda *args, **kwargs: None)
    plain = together(lambda: trained(tmp_path, recipe, tiny_data), processes=processes)
    assert [weights for weights, _ in found] == [weights for weights, _ in plain]
    assert all(small > 0 for _, small in found)


def test_gradients_are_the_memory_that_is_exchanged(tiny_data, tmp_path):
    """No copy of them, and no buffers sent round: counted are the calls that a step makes."""
    recipe = tiny_recipe(train__accumulate=2)

    def look():
        runtime.join_processes()
        stepper = Trainer(RunFolder(tmp_path), recipe, data=tiny_data).stepper
        model = stepper.losses_of
        calls = []
        for name in ("all_reduce", "broadcast", "_broadcast_coalesced"):
            own = getattr(distributed, name)
            setattr(distributed, name, lambda *a, own=own, name=name, **k: calls.append(name) or own(*a, **k))
        model(stepper.blank(2)).loss.mean().backward()
        with exchange.alone(model):
            model(stepper.blank(2)).loss.mean().backward()
        sent = {parameter.grad.untyped_storage().data_ptr() for parameter in model.parameters()}
        return calls, len(sent), model.broadcast_buffers

    for calls, storages, buffers in together(look):
        assert set(calls) == {"all_reduce"}
        assert storages == len(calls)  # one for each bucket
        assert not buffers


@pytest.mark.parametrize(("backend", "op", "factor"), [("nccl", distributed.ReduceOp.AVG, 1.0), ("gloo", None, 0.5)])
def test_nccl_divides_while_it_adds(backend, op, factor, monkeypatch):
    seen = {}

    def all_reduce(buffer, op=None, async_op=False):
        seen.update(op=op, values=buffer.clone())
        future = torch.futures.Future()
        future.set_result([buffer])
        return SimpleNamespace(get_future=lambda: future)

    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    values = torch.arange(4.0)
    assert exchange.mean_over_processes(values.clone()).wait() is not None
    assert seen["op"] == op
    assert torch.equal(seen["values"], values * factor)


def test_processes_wait_longer_than_the_longest_save():
    """For each other's work three hours; for their coming ten minutes."""

    def options():
        runtime.join_processes()
        group = distributed.distributed_c10d._get_default_group()
        return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()

    assert together(options) == [3 * 3600.0] * 2
