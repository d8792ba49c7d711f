"""The two ways to compute an update: what passes over memory they make, and that they are the same mathematics."""

import pytest
import torch
from tiny_run import tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hdit_cli import counter, runtime
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.engine.training.arithmetic import FEWER_PASSES, FIRST, of_new_run
from hdit_cli.engine.training.ema import EMA


def subject(arithmetic, **changes):
    found = Subject(tiny_recipe(**changes), data=None)
    found.stepper.state.arithmetic = arithmetic
    return found


class Passes(TorchDispatchMode):
    """Notes the operations that touch a whole gradient, and those that touch an average."""

    def __init__(self, stepper):
        super().__init__()
        state = stepper.state
        averages = [state.ema, *state.averages.by_std.values()]
        self.parameters, self.known = state.parameters, set()
        self.of_averages = {weight.data_ptr() for each in averages for weight in each.network.parameters()}
        self.gradients, self.averages = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if not self.known and all(parameter.grad is not None for parameter in self.parameters):  # backward is done
            self.known = {parameter.grad.data_ptr() for parameter in self.parameters}
        if given & self.known:
            self.gradients.append(func.overloadpacket.__name__)
        if given & self.of_averages:
            self.averages.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def passes(arithmetic, **changes):
    made = subject(arithmetic, ema__stds=[0.05, 0.1], **changes)
    made.step()  # states are made
    made.stepper.state.optimizer.zero_grad(set_to_none=True)
    with Passes(made.stepper) as seen:
        made.step()
    groups = len(made.stepper.state.optimizer.param_groups)
    assert [name for name in seen.gradients if "adamw" in name] == ["_fused_adamw_"] * groups
    return [name for name in seen.gradients if "adamw" not in name], seen.averages


def test_one_pass_for_each_average_and_none_to_clip():
    """Besides the norm, which has to be known, and AdamW, nothing reads the gradients."""
    assert passes(FEWER_PASSES) == (["_foreach_norm"], ["_fused_sgd_"] * 3)
    gradients, averages = passes(FIRST)
    assert gradients == ["_foreach_norm", "_foreach_mul_"] and averages == ["_foreach_sub", "_foreach_add_"] * 3


@pytest.mark.parametrize("arithmetic", [FIRST, FEWER_PASSES])
def test_no_clipping_makes_no_pass(arithmetic):
    assert passes(arithmetic, train__grad_clip=0.0)[0] == ["_foreach_norm"]


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
def test_both_are_the_same_mathematics(clip, monkeypatch):
    """Moments too, as AdamW's steps hardly hang on the scale of the gradients; in between a step that is refused."""
    monkeypatch.setattr(counter, "normal", lambda *args, make, **kwargs: runtime.normal(*args, **kwargs))
    found = []
    for arithmetic in (FIRST, FEWER_PASSES):
        made = subject(
            arithmetic, ema__stds=[0.1], train__grad_clip=clip, train__nonfinite="skip", train__nonfinite_cap=5
        )
        state = made.stepper.state
        for number in range(4):
            with monkeypatch.context() as spoilt:
                if number == 2:
                    spoilt.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(float("nan")))
                made.step()
        assert int(state.window.skipped) == 1
        averages = {f"average {n}": p for n, p in state.averages.by_std[0.1].network.named_parameters()}
        found.append({**dict(state.ema.network.named_parameters()), **averages, **state.optimizer_tensors()})
    first, second = found
    assert any(not torch.equal(first[name], second[name]) for name in first)  # or this shows nothing
    for name, wanted in first.items():
        torch.testing.assert_close(second[name], wanted, rtol=2e-5, atol=1e-3 * float(wanted.abs().max()) + 1e-12)


@pytest.mark.parametrize("decay", [0.9999, 0.7, 0.0, torch.tensor(0.3, dtype=torch.float64)], ids=str)
def test_an_average_in_one_pass(decay):
    """The formula in float64, of tensors of any size; a refused step changes no bit."""
    network = torch.nn.Sequential(torch.nn.Linear(37, 29), torch.nn.Linear(3, 1))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    moved = [parameter + 1e-2 * torch.randn_like(parameter) for parameter in before]
    average = EMA(network)
    average.update(moved, decay=decay, keep=torch.zeros(()), one_pass=True)
    assert all(torch.equal(a, b) for a, b in zip(average.network.parameters(), before, strict=True))
    average.update(moved, decay=decay, keep=torch.ones(()), one_pass=True)
    for found, old, new in zip(average.network.parameters(), before, moved, strict=True):
        wanted = old.double() + (1 - float(decay)) * (new.double() - old.double())
        torch.testing.assert_close(found, wanted.float(), rtol=0, atol=2e-7)


def test_who_takes_which():
    """A CPU keeps the numbers it always had; float64 keeps its digits, which fused kernels take a float32 scale from."""
    assert of_new_run(torch.device("cuda"), weights=torch.float32) == FEWER_PASSES
    assert of_new_run(torch.device("cuda"), weights=torch.float64) == FIRST
    assert of_new_run(torch.device("cpu"), weights=torch.float32) == FIRST
    assert of_new_run(torch.device("mps"), weights=torch.float32) == FIRST


def test_noise_is_drawn_by_the_run_s_own_way():
    made = subject(FIRST)
    (batch,) = made.batches
    by_image = made.stepper.draw(batch, first=0).noise
    made.stepper.state.arithmetic = FEWER_PASSES
    at_once = made.stepper.draw(batch, first=0).noise
    seed, shape = made.recipe.train.seed, (3, 16, 16)
    assert torch.equal(by_image, runtime.normal(seed, "noise", batch.index, shape, like=by_image))
    assert torch.equal(at_once, counter.normal(seed, "noise", batch.index, shape, like=by_image))


def test_a_compiled_step_compiles_its_noise_too():
    graphs = []
    made = subject(FEWER_PASSES)
    torch._dynamo.reset()
    made.stepper.compile(sizes=1, fall_back=False, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    (batch,) = made.batches
    noise = made.stepper.draw(batch, first=0).noise
    assert len(graphs) == 1 and noise.shape == batch.pixels.shape
    torch._dynamo.reset()
