"""Paella's tokenizer: counts, its start, and the straight way of gradients through the codes."""

import torch

from hdit_cli.models.codecs.vq_vae import VQVAE, Quantiser


def test_published_count():
    with torch.device("meta"):
        network = VQVAE()
    count = {name: sum(p.numel() for p in getattr(network, name).parameters()) for name, _ in network.named_children()}
    assert sum(count.values()) == 18_406_894
    assert count["in_block"] + count["down_blocks"] == 2_667_284 and count["vquantizer"] == 32_768
    assert count["up_blocks"] + count["out_block"] == 15_706_842


def test_blocks_begin_as_the_identity():
    network = VQVAE(c_hidden=8, bottleneck_blocks=1, codebook_size=16)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(network.down_blocks[0](x), x)


def test_sizes():
    for levels, factor in ((2, 4), (3, 8)):
        network = VQVAE(levels=levels, c_hidden=16, bottleneck_blocks=1, codebook_size=16).eval()
        found = network.encode(torch.rand(2, 3, 32, 64))
        assert network.factor == factor and found.indices.shape == (2, 32 // factor, 64 // factor)
        assert network.decode_indices(found.indices).shape == (2, 3, 32, 64)


def test_the_nearest_row_and_the_first_of_equals():
    quantiser = Quantiser(8, 3).double()
    with torch.no_grad():
        quantiser.codebook.weight.normal_()
        quantiser.codebook.weight[5] = quantiser.codebook.weight[2]
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    slow = (z[:, None] - quantiser.codebook.weight[None, :, :, None, None]).square().sum(2).argmin(1)
    found = quantiser(z)
    assert torch.equal(found.indices, slow) and 5 not in found.indices
    assert torch.allclose(found.codes, quantiser.rows(slow))


def test_many_places_are_looked_up_in_parts(monkeypatch):
    quantiser, z = Quantiser(8, 3), torch.randn(2, 3, 5, 7)
    whole = quantiser.nearest(z)
    monkeypatch.setattr("hdit_cli.models.codecs.vq_vae._DISTANCES", 100)
    assert torch.equal(quantiser.nearest(z), whole)


def test_gradients_pass_the_codes_as_they_are():
    quantiser = Quantiser(8, 3)
    z = torch.randn(1, 3, 2, 2, requires_grad=True)
    weight = torch.randn(1, 3, 2, 2)
    (quantiser(z).codes * weight).sum().backward()
    assert torch.equal(z.grad, weight) and quantiser.codebook.weight.grad is None
