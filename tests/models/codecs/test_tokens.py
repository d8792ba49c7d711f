"""Tokens of a frozen tokenizer: those of its network, alone or among others, and pixels of them in pieces as in one."""

import pytest
import torch

from hdit_cli.models.codecs.tokens import Tokens
from hdit_cli.models.codecs.vq_vae import VQVAE


def random_network(seed=0, **changes):
    """A tokenizer that has seen pictures: its norm has statistics, its blocks do something."""
    torch.manual_seed(seed)
    network = VQVAE(**{"levels": 2, "bottleneck_blocks": 2, "c_hidden": 8, "codebook_size": 32, **changes})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gammas"):
                parameter.normal_(std=0.3)
        network.vquantizer.codebook.weight.normal_()
        network.down_blocks[-1][1].momentum = 1.0
        network.train().encode(torch.rand(4, 3, 16, 16))
        network.down_blocks[-1][1].follow(torch.ones(()))
        for norm in network.norms():
            norm.follow(torch.ones(()))
    return network.eval()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_tokens_are_those_of_the_network(levels):
    network = random_network(levels=levels, c_hidden=16)
    codec = Tokens(network, sha256="").train()
    pixels = torch.rand(3, 3, 16, 32) * 2 - 1
    found = codec.encode(pixels)
    assert found.dtype == torch.int64 and found.shape == (3, 16 // codec.factor, 32 // codec.factor)
    assert torch.equal(found, network.encode((pixels + 1) / 2).indices) and len(found.unique()) > 3
    assert torch.equal(codec.latent(codec.moments(pixels), None), found)
    assert (codec.factor, codec.channels, codec.vocabulary) == (2**levels, 1, 32)
    assert torch.equal(codec.encode(pixels[1:2]), found[1:2])
    made = codec.decode(found)
    assert torch.allclose(made, network.decode_indices(found).clamp(0, 1) * 2 - 1, atol=1e-5)
    assert made.shape == pixels.shape and made.dtype == torch.float32 and made.abs().max() <= 1
    assert codec.encode(pixels[:0]).shape == (0, *found.shape[1:]) and codec.decode(found[:0]).shape == (
        0,
        *pixels.shape[1:],
    )


def test_a_large_map_is_decoded_in_pieces_as_in_one(monkeypatch):
    codec = Tokens(random_network(levels=3, c_hidden=16), sha256="")
    with torch.no_grad():
        codec.network.up_blocks[-1].gammas.fill_(1.0)  # a change shows as far as it can reach
    tokens = torch.randint(32, (2, 17, 30))
    whole = codec.decode(tokens)
    monkeypatch.setattr("hdit_cli.models.codecs.tokens.TILE", 7)
    assert torch.allclose(codec.decode(tokens), whole, atol=1e-5)


def test_the_norm_counts_no_batches_and_takes_weights_that_do():
    network = random_network()
    state = network.state_dict()
    assert all(tensor.is_floating_point() for tensor in state.values())
    counted = {**state, "down_blocks.3.1.num_batches_tracked": torch.tensor(7)}
    assert {name.rsplit(".", 1)[0] for name in state} >= {"down_blocks.3.1"}
    other = random_network(1)
    other.load_state_dict(counted)
    assert "down_blocks.3.1.num_batches_tracked" in counted  # what was given stays as it was
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
