"""Parity of the KL autoencoder with reference tensors, found by their layout here and under $HDIT_GOLDEN."""

import json
from types import SimpleNamespace

import golden
import pytest
import torch
from safetensors.torch import load_file

from hdit_cli.models.codecs import kl_vae_names
from hdit_cli.models.codecs.kl_vae import KLVAE

CASES = golden.cases("vae.safetensors")
pytestmark = pytest.mark.skipif(not CASES, reason="reference tensors (../shared/golden, $HDIT_GOLDEN) are not here")


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.name)
def case(request):
    folder = request.param
    config = json.loads((folder / "config.json").read_text())
    tensors = kl_vae_names.tensors(load_file(folder / "vae.safetensors"))
    found = kl_vae_names.arguments_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    network = KLVAE(**found).eval()
    network.load_state_dict(tensors)
    return SimpleNamespace(
        network=network,
        arguments=found,
        tensors=tensors,
        scaling=kl_vae_names.scaling_of(config),
        io=load_file(folder / "io.safetensors"),
        facts=json.loads((folder / "facts.json").read_text()),
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts_and_names(case):
    network, facts = case.network, case.facts
    assert (count(network), count(network.encoder), count(network.decoder)) == (
        facts["params"],
        facts["encoder_params"],
        facts["decoder_params"],
    )
    assert sorted(network.state_dict()) == sorted(facts["keys"])
    assert network.factor == facts["downsample"]


@torch.no_grad()
def test_float32(case):
    io, network, (shift, scale) = case.io, case.network, case.scaling
    gaussian = network.encode(io["image"])
    sample = gaussian.sample(io["noise"])
    made = {
        "encoder_out": network.encoder(io["image"]),
        "moments": network.moments(io["image"]),
        "mean": gaussian.mean,
        "logvar": gaussian.log_variance,
        "std": gaussian.std,
        "kl": gaussian.kl(),
        "sample": sample,
        "nll": gaussian.nll(io["sample"]),
        "latent": (sample - shift) * scale,
        "decoded": network.decode(io["latent"] / scale + shift),
    }
    for name, tensor in made.items():
        assert relative(tensor, io[name]) < 5e-6, name


@torch.no_grad()
def test_float64(case):
    io, (shift, scale) = case.io, case.scaling
    network = KLVAE(**case.arguments).eval().double()
    network.load_state_dict({name: tensor.double() for name, tensor in case.tensors.items()})
    assert relative(network.moments(io["image"].double()), io["moments64"]) < 1e-9
    assert relative(network.decode((io["latent"] / scale + shift).double()), io["decoded64"]) < 1e-9
