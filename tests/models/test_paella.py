"""Paella's network: published counts, its start, its padding mask, and what it refuses."""

import math

import pytest
import torch

from hdit_cli.diffusion.tokens import loss
from hdit_cli.models.paella import Paella
from hdit_cli.models.paella_blocks import GlobalResponseNorm, ResBlock

SMALL = {
    "c_in": 16, "c_out": 16, "num_labels": 32, "c_r": 16, "patch_size": 1, "c_cond": 24, "c_hidden": (16, 24),
    "nhead": (-1, 4), "blocks": (1, 2), "level_config": ("CT", "CTA"), "clip_embd": 12, "byt5_embd": 20, "dropout": 0.0,
}  # fmt: skip
COUNTS = {
    "the released weights": ({"byt5_embd": 2560}, 1_008_350_592),
    "the defaults": ({}, 1_007_302_016),
    "a small one": (
        {
            "num_labels": 1024, "c_in": 128, "c_out": 128, "patch_size": 1, "c_cond": 128, "c_hidden": (128, 256),
            "nhead": (-1, 4), "blocks": (2, 4), "level_config": ("CT", "CTA"), "clip_embd": 128, "byt5_embd": 128,
        },
        8_187_264,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    arguments, wanted = COUNTS[name]
    with torch.device("meta"):
        network = Paella(**arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == wanted


def inputs(seed=0):
    torch.manual_seed(seed)
    return torch.randint(32, (2, 8, 8)), torch.rand(2), torch.randn(2, 5, 20)


def test_a_new_network_answers_nothing():
    """Its logits are 0, so the loss is ln K however the labels are smoothed."""
    tokens, t, byt5 = inputs()
    network = Paella(**SMALL)
    logits = network(tokens, t, byt5=byt5)
    assert not logits.any()
    for smoothing in (0.0, 0.1):
        found = loss(logits, tokens, torch.rand(2, 8, 8) < 0.5, t, smoothing=smoothing)
        assert torch.allclose(found, torch.full((2,), math.log(32)), rtol=1e-6)
    assert torch.equal(network.out_mapper[1].weight[:, :, 0, 0], network.in_mapper[0].weight)


def random(network):
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@torch.no_grad()
@pytest.mark.parametrize("self_attn", [True, False])
def test_padding_is_not_seen(self_attn):
    tokens, t, byt5 = inputs()
    network = random(Paella(**SMALL, self_attn=self_attn)).eval()
    clip = torch.randn(2, 12)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    masked = network(tokens, t, byt5=byt5, clip=clip, mask=mask)
    assert torch.allclose(masked, network(tokens, t, byt5=byt5[:, :3], clip=clip), atol=1e-5)
    assert not torch.allclose(masked, network(tokens, t, byt5=byt5, clip=clip), atol=1e-3)
    other = byt5.masked_fill(~mask[..., None], 7.0)
    assert torch.equal(network(tokens, t, byt5=other, clip=clip, mask=mask), masked)


def test_every_parameter_learns():
    tokens, t, byt5 = inputs()
    network = random(Paella(**{**SMALL, "level_config": ("CTF", "CTAF")}))
    network(tokens, t, byt5=byt5, clip=torch.randn(2, 12), clip_image=torch.randn(2, 12)).square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_half_the_outputs_see_the_skip():
    block = ResBlock(4, skip=True, kernel=3, dropout=0.0)
    x, skip = torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5)
    stack = torch.cat([x, skip], dim=1)
    change = block.depthwise(stack) - block.depthwise(torch.cat([x, torch.zeros_like(skip)], dim=1))
    assert not change[:, :2].any() and change[:, 2:].any()


def test_global_response_norm_by_its_formula():
    norm = GlobalResponseNorm(3).double()
    with torch.no_grad():
        norm.gamma.normal_()
        norm.beta.normal_()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    size = x.square().sum((1, 2), keepdim=True).sqrt()
    wanted = norm.gamma * x * (size / (size.mean(-1, keepdim=True) + 1e-6)) + norm.beta + x
    assert torch.allclose(norm(x), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"c_out": 8}, "c_out must equal c_in"),
        ({"blocks": (1,)}, "one entry for each level"),
        ({"level_config": ("TC", "CTA")}, "must begin with C"),
        ({"level_config": ("CX", "CTA")}, "hold only"),
    ],
)
def test_what_cannot_be_built(change, words):
    with pytest.raises(ValueError, match=words):
        Paella(**{**SMALL, **change})
