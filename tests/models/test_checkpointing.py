"""Levels that compute their insides a second time: the same loss and gradients, less memory kept."""

import dataclasses

import pytest
import torch

from hdit_cli.models.hdit import HDiT, Level

LEVELS = [
    Level(1, 32, 64, attention="neighborhood", head_dim=16, kernel=3),
    Level(2, 48, 96, attention="shifted-window", head_dim=24, window=4),
    Level(2, 32, 64, attention="global", head_dim=16),
]


def make(flags, *, dropout, dtype):
    torch.manual_seed(0)
    levels = [
        dataclasses.replace(level, checkpoint=flag, dropout=dropout) for level, flag in zip(LEVELS, flags, strict=True)
    ]
    network = HDiT(levels, patch=(2, 2), mapping_width=32, mapping_depth=1, mapping_d_ff=64).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.train()


def loss_and_gradients(network, *, autocast=False):
    """The loss, its gradients, bytes kept for the backward pass, and the next random number after it."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    x, sigma = torch.randn(3, 3, 16, 32, generator=generator).to(dtype), torch.tensor([0.1, 1.0, 30.0]).to(dtype)
    torch.manual_seed(2)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = network(x, sigma).square().mean()
    found = sum(kept.values())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters()}, found, torch.rand(1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("flags", [(True, False, False), (False, True, True), (True, True, True)])
def test_equal_loss_and_gradients(flags, dropout):
    plain = loss_and_gradients(make((False, False, False), dropout=dropout, dtype=torch.float64))
    again = loss_and_gradients(make(flags, dropout=dropout, dtype=torch.float64))
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(gradient, again[1][name]) for name, gradient in plain[1].items())
    assert torch.equal(plain[3], again[3])  # what comes after draws the same
    assert again[2] < 0.8 * plain[2]


def test_equal_in_bf16():
    plain = loss_and_gradients(make((False, False, False), dropout=0.3, dtype=torch.float32), autocast=True)
    again = loss_and_gradients(make((True, True, True), dropout=0.3, dtype=torch.float32), autocast=True)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(gradient, again[1][name]) for name, gradient in plain[1].items())


def test_nothing_is_computed_twice_outside_training(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("checkpointed")

    monkeypatch.setattr("hdit_cli.models.hdit.checkpoint", never)
    network = make((True, True, True), dropout=0.0, dtype=torch.float32)
    x, sigma = torch.zeros(1, 3, 16, 16), torch.ones(1)
    network.eval()(x, sigma)
    with torch.no_grad():
        network.train()(x, sigma)
    with pytest.raises(AssertionError, match="checkpointed"):
        network.train()(x, sigma)
