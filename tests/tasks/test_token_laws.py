"""What holds for the task of tokens: its draws, its loss, its samples, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from hdit_cli.engine.model import build_network, build_task
from hdit_cli.engine.sampling.generate import Numbers, of_seed
from hdit_cli.errors import NonFiniteError, UsageError
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.sampling import Sampling
from hdit_cli.tasks.task import Place

K, CLASSES = 16, 2
MODEL = {
    "type": "paella", "size": [4, 4], "vocabulary": K, "embedding": 8, "time_features": 8, "patch": 1, "widths": [8, 16],
    "heads": [0, 2], "blocks": [1, 1], "kinds": ["CT", "CTA"], "condition_width": 8, "text_width": 0, "clip_width": 0,
    "classes": CLASSES, "dropout": 0.3,
}  # fmt: skip


def made(*, shaken=True, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    task = changes.pop("task", {})
    recipe = Recipe.from_dict({"model": {**MODEL, **changes}, "task": {"type": "tokens", **task}})
    network = build_network(recipe, classes=int(recipe.model.classes))
    if shaken:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return build_task(network.to(dtype), recipe)


def pictures(index):
    return torch.arange(8 * 16).mul(7).remainder(K).view(8, 4, 4)[torch.from_numpy(index)]


def drawn(task, index=range(8)):
    index = np.arange(8)[list(index)]
    label = torch.from_numpy(index % (CLASSES + 1))
    return task.draw(pictures(index), label, Place(seed=3, index=index, first=0, batch=8), told={})


def sampled(task, index, sampling, *, label=None, x0=None, paint=None, **conditions):
    task.eval()
    label = torch.tensor([0, 1, 0, 1, 0, 1])[list(index)] if label is None else label
    told = {"label": label, **conditions} if task.network.classes else conditions
    noise = Numbers(lambda *a, **k: of_seed(sampling.seed, *a, **k), list(index), (1, 4, 4), torch.empty(0))
    with torch.inference_mode():
        how = {"noise": noise, "conditions": told, "x0": x0, "on_step": None, "wrap": lambda module: module}
        return task.sample(sampling, **how, **({} if paint is None else {"mask": paint}))


# Training


def test_a_batch_is_the_sum_of_its_pieces():
    """Whole = accumulated = shared, with dropout on: draws are functions of the place in the run."""
    task = made()
    whole = drawn(task)
    losses = task(whole).loss
    losses.mean().backward()
    wanted = [p.grad.clone() for p in task.parameters()]
    task.zero_grad()
    for piece in (range(3), range(3, 8)):
        part = drawn(task, piece)
        for ours, theirs in zip(part[:3], whole[:3], strict=True):
            assert torch.equal(ours, theirs[list(piece)])
        found = task(part).loss
        torch.testing.assert_close(found, losses[list(piece)], rtol=1e-9, atol=1e-12)
        (found.sum() / 8).backward()
    torch.testing.assert_close([p.grad for p in task.parameters()], wanted, rtol=1e-7, atol=1e-10)


def test_the_share_of_noise_is_its_level():
    task, index = made(task={"t_min": 0.25}), np.arange(4000)
    x0 = torch.zeros(4000, 4, 4, dtype=torch.int64)
    found = task.draw(x0, torch.zeros(4000, dtype=torch.int64), Place(0, index, 0, 4000), told={})
    share = (found.noise >= 0).double().mean((1, 2))
    assert float(found.level.min()) >= 0.25 and float(found.level.max()) == 1  # 1 - u + 0.25, clamped
    assert abs(float((share - found.level).mean())) < 0.005 and float((found.level == 1).double().mean()) > 0.2
    counts = torch.bincount(found.noise[found.noise >= 0], minlength=K).double()
    assert len(counts) == K and float((counts / counts.mean() - 1).abs().max()) < 0.05


def test_classes_are_dropped_to_none():
    task = made()
    task.class_dropout = 1.0
    batch = drawn(task)
    assert (batch.conditions["label"] == CLASSES).all()
    x, t = batch.x0, batch.level
    task.eval()
    none = task.network(x, t)
    assert torch.equal(task.network(x, t, label=torch.full((8,), CLASSES)), none)
    assert not torch.allclose(task.network(x, t, label=torch.zeros(8, dtype=torch.int64)), none)


def test_a_class_reaches_levels_without_attention():
    task = made(kinds=["CT", "CT"], heads=[0, 0]).eval()
    batch = drawn(task)
    first, second = (task.network(batch.x0, batch.level, label=torch.full((8,), each)) for each in (0, 1))
    assert not torch.allclose(first, second)


def test_recomputing_changes_no_gradient():
    one, other = made(), made(checkpoint=True)
    for task in (one, other):
        task.train()
        task(drawn(task)).loss.mean().backward()
    torch.testing.assert_close(
        [p.grad for p in other.parameters()], [p.grad for p in one.parameters()], rtol=1e-9, atol=1e-12
    )


def test_it_tells_of_itself():
    task = made()
    network, parameters = task.network, dict(task.network.named_parameters())
    assert network.unit == (2, 2) and network.fits(4, 6) == "" and "the nearest size is 6 x 4" in network.fits(5, 4)
    for name, rows in network.matrices().items():
        assert sum(rows) == len(parameters[name]) and parameters[name].ndim == 2, name
    assert set(network.parameter_groups()) == set(parameters)
    task(drawn(task)).loss.mean().backward()
    assert not [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]


def test_multiplications_are_counted():
    """By a counter that sees every product of the network."""
    from torch.utils.flop_counter import FlopCounterMode

    task = made(checkpoint=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.network(
            torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1).double(), label=torch.zeros(1, dtype=torch.int64)
        )
    attention = 2 * (2 * 4 * 5 * 16)  # of 4 places to themselves and a class, at width 16, twice: not seen on a CPU
    counted = counter.get_total_flops() / 2 + attention
    assert counted == pytest.approx(task.network.macs(4, 4))


@pytest.mark.slow
def test_it_overfits_eight_pictures():
    task = made(shaken=False, dtype=torch.float32, dropout=0.0, embedding=32, widths=[32, 64], task={"smoothing": 0.0})
    optimizer = torch.optim.AdamW(task.parameters(), lr=4e-3)
    label = torch.zeros(8, dtype=torch.int64)
    for step in range(220):
        index = np.arange(8) + 8 * step
        loss = task(task.draw(pictures(np.arange(8)), label, Place(0, index, 8 * step, 8), told={})).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    x0, sampling = pictures(np.arange(8)), Sampling(sampler="paella", steps=8, temperature=(1.0, 0.1))
    found = sampled(task, range(6), sampling, label=torch.zeros(6, dtype=torch.int64))
    nearest = (found[:, None] == x0).double().mean((2, 3)).max(1).values
    assert float(nearest.mean()) > 0.9


@pytest.mark.slow
def test_compiled_losses_are_the_eager_ones():
    torch._dynamo.reset()
    task = made()
    batch = drawn(task)
    wanted = task(batch).loss
    task.losses = torch.compile(task.losses, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(task(batch).loss, wanted, rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()


# Validation


def test_measures_hang_on_the_level():
    task = made(shaken=False).eval()
    x0, sigma = pictures(np.arange(8)), task.levels(4)
    assert torch.allclose(sigma / (1 + sigma), torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64))
    noise = task.noise(0, "validation", range(8), like=x0)
    found = task.measured(x0, noise, sigma[1].expand(8), {})
    assert torch.allclose(found["loss"], torch.full((8,), math.log(K)).double())  # a new network answers nothing
    assert set(found) == set(task.measures) and (found["accuracy"] <= 1).all()
    assert torch.equal(noise[2:3], task.noise(0, "validation", [2], like=x0[:1]))


# Sampling

PLANS = {
    "paella": Sampling(seed=5, sampler="paella", steps=3, cfg=2.0, temperature=(1.0, 0.5)),
    "a ramp": Sampling(seed=5, sampler="paella", steps=3, cfg=(4.0, 1.0)),
    "v1": Sampling(seed=5, sampler="paella-v1", steps=3, cfg=2.0, typical=0.5, renoise="rand", temperature=(1.0, 1.0)),
    "v1, prev": Sampling(seed=5, sampler="paella-v1", steps=3, typical=0.0, renoise="prev", renoise_steps=1),
}


@pytest.mark.parametrize("plan", PLANS)
def test_samples_are_functions_of_seed_and_number(plan):
    task, sampling = made(), PLANS[plan]
    together = sampled(task, range(4), sampling)
    assert together.dtype == torch.int64 and 0 <= int(together.min()) <= int(together.max()) < K
    for i in (0, 3):
        assert torch.equal(sampled(task, [i], sampling)[0], together[i])
    assert not torch.equal(together[0], together[2])  # of one class


def test_guidance_at_one_is_off():
    task = made()
    plain, guided = (Sampling(sampler="paella", steps=3, cfg=cfg) for cfg in (1.0, 6.0))
    calls = []
    task.network.register_forward_hook(lambda *_: calls.append(1))
    first = sampled(task, range(4), plain)
    assert len(calls) == 3
    assert torch.equal(first, sampled(task, range(4), Sampling(sampler="paella", steps=3, cfg=(1.0, 1.0))))
    assert not torch.equal(first, sampled(task, range(4), guided)) and len(calls) == 12


def test_from_a_picture():
    task, x0 = made(), torch.arange(16).view(1, 4, 4)
    for sampler in ("paella", "paella-v1"):
        near, far = (
            sampled(task, range(4), Sampling(sampler=sampler, steps=8, strength=strength), x0=x0)
            for strength in (0.25, 1.0)
        )
        assert not torch.equal(near, far)
        assert task.steps(Sampling(sampler=sampler, steps=8, strength=0.25)) == 2


@pytest.mark.parametrize("sampler", ["paella", "paella-v1"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_under_a_mask_the_rest_stays(sampler, strength):
    task, x0 = made(), torch.arange(16).view(1, 4, 4)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2, 1:] = True
    sampling = Sampling(sampler=sampler, steps=4, strength=strength, cfg=3.0)
    found = sampled(task, range(4), sampling, x0=x0, paint=mask)
    outside, inside = ~mask.expand_as(found), mask.expand_as(found)
    assert torch.equal(found[outside], x0.expand_as(found)[outside])
    assert not torch.equal(found[inside], x0.expand_as(found)[inside])
    whole = sampled(task, range(4), sampling, x0=x0, paint=torch.ones_like(mask))
    assert torch.equal(whole, sampled(task, range(4), sampling, x0=x0))


def test_texts_and_pictures_are_conditions():
    task = made(text_width=6, clip_width=5, classes=0, self_attention=False)
    told = {"byt5": torch.randn(4, 3, 6), "clip_image": torch.randn(4, 5)}
    sampling = Sampling(sampler="paella", steps=2, cfg=3.0)
    first = sampled(task, range(4), sampling, **told)
    mask = torch.tensor([[True, True, False]] * 4)
    assert not torch.equal(first, sampled(task, range(4), sampling, byt5=told["byt5"] + 1))
    masked = sampled(task, range(4), sampling, **told, mask=mask)
    other = torch.where(mask[..., None], told["byt5"], 9.0)
    assert torch.equal(masked, sampled(task, range(4), sampling, byt5=other, clip_image=told["clip_image"], mask=mask))
    x, t = torch.zeros(2, 4, 4, dtype=torch.int64), torch.ones(2).double()
    alone = task.network(x, t)  # nothing is told, and nothing is looked at
    hidden = task.network(x, t, byt5=torch.randn(2, 3, 6).double(), mask=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(alone, hidden)
    for name, value in {"byt5": torch.randn(2, 3, 6), "clip": torch.randn(2, 5), "mask": mask[:2]}.items():
        none = task.network.wants()[name].none_like(value)
        assert none.shape[:2] == (2, 0)


def test_what_cannot_be_sampled():
    task = made()
    with pytest.raises(UsageError, match="makes numbers of noise, and this model makes tokens") as error:
        task.check(Sampling())
    assert "paella or paella-v1" in error.value.hint
    with torch.no_grad():
        task.network.clf[1].weight.fill_(math.nan)
    with pytest.raises(NonFiniteError):
        sampled(task, range(2), PLANS["paella"])
