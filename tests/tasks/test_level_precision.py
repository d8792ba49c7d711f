"""The noise level is embedded in float32 whatever the products are rounded to: what float32 tells apart stays apart."""

from contextlib import nullcontext, suppress

import pytest
import torch
from test_task_laws import CASES, NETWORKS, made
from torch.utils._python_dispatch import TorchDispatchMode

from hdit_cli import catalog
from hdit_cli.tasks.task import in_own_dtype

SIGMAS = torch.logspace(-1.9, 2.1, 2000, dtype=torch.float64).float()  # within the table of DDPM
EMBEDDED = {"hdit": "condition", "dit": "conditions"}  # what makes the condition vectors of each network
every_case = pytest.mark.parametrize("case", CASES, ids=" ".join)


class Rounded(TorchDispatchMode):
    """Matrix products of float32 as TF32 has them: 11 significant bits of each factor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            args = [self.of(value) for value in args]
        return func(*args, **(kwargs or {}))

    def of(self, value):
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        mantissa, exponent = torch.frexp(value)
        return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def test_every_network_is_looked_at():
    shares = {name for name in catalog.names("model") if catalog.get("model", name).told == "share"}
    assert set(EMBEDDED) | shares == set(catalog.names("model"))  # of a share of tokens no two are near each other


class Seen(Exception):
    """What was looked for is there: the rest of the network need not run."""


def method(network):
    return EMBEDDED[type(network).__name__.lower()]


def embeddings(task, *, inside=nullcontext):
    """The condition vectors of the noise levels, on the ways that training and sampling take."""
    network, found = task.network, []
    real = getattr(network, method(network))

    def noted(*args, **kwargs):
        with inside():
            found.append(real(*args, **kwargs).detach())
        raise Seen

    setattr(network, method(network), noted)
    x0 = torch.zeros(len(SIGMAS), 3, *network.unit)
    told = {"label": torch.zeros(len(SIGMAS), dtype=torch.int64)}
    with suppress(Seen):
        task.loss_at(x0, x0, SIGMAS, told)
    with suppress(Seen):
        task.denoiser(x0, SIGMAS, **told)
    delattr(network, method(network))
    training, sampling = found
    return training.flatten(1), sampling.flatten(1)


def distinct(rows):
    return len(rows.unique(dim=0))


def small(case):
    return made(case, dtype=torch.float32)[0].train()


@every_case
def test_under_autocast_they_are_those_of_float32(case):
    task = small(case)
    wanted = embeddings(task)
    with torch.autocast("cpu", torch.bfloat16):
        found = embeddings(task)
    assert distinct(wanted[1]) == 2000  # in training timesteps are whole, and fewer
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@every_case
def test_where_products_are_rounded_no_two_levels_become_one(case):
    task = small(case)
    wanted, found = embeddings(task), embeddings(task, inside=Rounded)
    for ours, theirs in zip(found, wanted, strict=True):
        assert not torch.equal(ours, theirs)
        assert distinct(ours) == distinct(theirs)


@every_case
def test_augmentations_and_mixed_classes_are_as_in_float32_too(case):
    task = small(case)
    network = task.network
    run = getattr(network, method(network))
    told = {
        "label": torch.linspace(0, 1, 200)[:, None] * torch.tensor([1.0, -1.0, 0.0]) + torch.tensor([0.0, 1.0, 0.0])
    }
    if "augment" in network.wants():
        told |= {"augment": torch.linspace(-1, 1, 1800).view(200, 9), "mapping": None}
    wanted = run(torch.ones(200), **told)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(torch.ones(200), **told), wanted)


@every_case
def test_weights_of_16_bits_are_told_the_level_in_32(case):
    task = small(case).to(torch.bfloat16)
    seen = []
    task.network.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    x = torch.randn(len(SIGMAS), 3, *(side * 2 for side in task.network.unit))
    with torch.no_grad():
        out = in_own_dtype(task.denoiser, dtype=torch.bfloat16)(x, SIGMAS)
    assert out.dtype == torch.float32 and out.isfinite().all()
    assert seen[0].dtype == torch.float32
    assert len(seen[0].unique()) == 2000


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_as_eager(network):
    torch._dynamo.reset()
    task = small((network, "denoise"))
    real = getattr(task.network, method(task.network))
    told = {"augment": None, "mapping": None} if "augment" in task.network.wants() else {}
    run = torch.compile(lambda level: real(level, label=None, **told), fullgraph=True, backend="aot_eager")
    level = task.denoiser.c_noise(SIGMAS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = run(level)
        assert len(found.unique(dim=0)) == len(real(level, label=None, **told).unique(dim=0))
    torch._dynamo.reset()
