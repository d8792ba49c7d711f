"""Parity of Paella's tokenizer, network and samplers with reference tensors, found by their layout here and under $HDIT_GOLDEN."""

import json
from types import SimpleNamespace

import golden
import pytest
import torch
from safetensors.torch import load_file

from hdit_cli.diffusion import tokens as by_tokens
from hdit_cli.models.codecs.vq_vae import VQVAE
from hdit_cli.models.paella import Paella
from hdit_cli.models.paella_blocks import time_features

CASES = golden.cases("paella.safetensors")
pytestmark = pytest.mark.skipif(not CASES, reason="reference tensors (../shared/golden, $HDIT_GOLDEN) are not here")


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.name)
def case(request):
    folder = request.param
    config = json.loads((folder / "config.json").read_text())
    paella, vqgan = (load_file(folder / f"{name}.safetensors") for name in ("paella", "vqgan"))
    network, codec = Paella(**config["paella"]).eval(), VQVAE(**config["vqgan"]).eval()
    network.load_state_dict(paella)
    codec.load_state_dict(vqgan)
    return SimpleNamespace(
        network=network,
        codec=codec,
        weights=vqgan,
        config=config,
        io=load_file(folder / "io.safetensors"),
        facts=json.loads((folder / "facts.json").read_text()),
    )


def has(case, *names):
    if missing := [name for name in names if name not in case.io]:
        pytest.skip(f"the case has no {missing[0]}")
    return [case.io[name] for name in names]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts(case):
    assert count(case.network) == case.facts["paella_params"] and count(case.codec) == case.facts["vqgan_params"]


@torch.no_grad()
def test_tokenizer(case):
    image, z, indices = has(case, "image", "vq_z", "vq_indices")
    found = case.codec.encode(image)
    assert relative(found.z, z) < 5e-6 and torch.equal(found.indices, indices.long())
    decoded = case.codec.decode_indices(indices.long())
    assert relative(decoded, case.io.get("vq_decoded_indices", case.io["vq_decoded"])) < 5e-6
    if "vq_quantised" in case.io:
        assert relative(found.quantised, case.io["vq_quantised"]) < 5e-6
        assert relative(found.loss, case.io["vq_loss"]) < 5e-6
        assert relative(case.codec.decode(found.quantised), case.io["vq_decoded"]) < 5e-6


@torch.no_grad()
def test_tokenizer_in_float64(case):
    image, z, decoded = has(case, "image", "vq_z64", "vq_decoded64")
    codec = VQVAE(**case.config["vqgan"]).eval().double()
    codec.load_state_dict(case.weights)  # numbers of float32 in a network of float64
    found = codec.encode(image.double())
    assert relative(found.z, z) < 1e-9 and relative(codec.decode(found.quantised), decoded) < 1e-9


def test_gradients_go_through_the_codes(case):
    if "vq_grad_norms" not in case.facts:
        pytest.skip("the case has no gradient norms")
    image = case.io["image"]
    found = case.codec.encode(image)
    ((case.codec.decode(found.quantised) - image).square().mean() + found.loss).backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in case.codec.named_parameters()}
    case.codec.zero_grad()
    assert norms == pytest.approx(case.facts["vq_grad_norms"], rel=5e-6)


@torch.no_grad()
def test_batch_statistics(case):
    image, z, mean, var = has(case, "image", "vq_z_train", "vq_running_mean_after", "vq_running_var_after")
    codec = VQVAE(**case.config["vqgan"]).train()
    codec.load_state_dict(case.weights)
    assert relative(codec.encode(image).z, z) < 5e-6
    assert relative(codec.down_blocks[-1][1].running_mean, mean) < 5e-6
    assert relative(codec.down_blocks[-1][1].running_var, var) < 5e-6


def conditions(io, names):
    return {keyword: io[name] for keyword, name in names.items()}


ALL = {"byt5": "byt5", "clip": "clip", "clip_image": "clip_image"}
LOGITS = {
    "logits": ("noised", {"byt5": "byt5", "clip": "clip"}),
    "logits_text_only": ("noised", {"byt5": "byt5"}),
    "logits_all": ("tokens", ALL),
    "logits_text": ("tokens", {"byt5": "byt5"}),
    "logits_image": ("tokens", {"byt5": "byt5", "clip_image": "clip_image"}),
    "logits_uncond": ("tokens", {"byt5": "byt5_uncond", "clip": "clip_uncond"}),
}


@pytest.mark.parametrize("key", LOGITS)
@torch.no_grad()
def test_network(case, key):
    source, names = LOGITS[key]
    wanted, tokens, t = has(case, key, source, "t")
    assert relative(case.network(tokens.long(), t, **conditions(case.io, names)), wanted) < 5e-6


@torch.no_grad()
def test_network_in_float64(case):
    wanted, tokens, features = has(case, "logits64", "tokens", "r_embedding")
    network = Paella(**case.config["paella"]).eval().double()
    network.load_state_dict(case.network.state_dict())
    told = {name: tensor.double() for name, tensor in conditions(case.io, ALL).items()}
    out = network(tokens.long(), torch.zeros(len(tokens), dtype=torch.float64), **told)
    assert relative(out, wanted) < 1e-9
    assert relative(time_features(case.io["t"], case.config["paella"]["c_r"]), features) < 1e-6


def test_noising_and_loss(case):
    wanted, weight, tokens, noise, mask, t, logits, noised = has(
        case, "loss", "loss_weight", "tokens", "random_tokens", "mask", "t", "logits", "noised"
    )
    tokens = tokens.long()
    assert torch.equal(by_tokens.noised(tokens, noise.long(), mask), noised.long())
    assert relative(by_tokens.loss_weight(mask, t), weight) < 5e-6
    assert relative(by_tokens.loss(logits, tokens, mask, t), wanted) < 5e-6


@pytest.mark.parametrize("name", ["sample", "sample_ramp", "sample_from"])
@torch.no_grad()
def test_sampled_tokens(case, name):
    wanted, noise, u, again = has(case, name, f"{name}_init", f"{name}_u", f"{name}_renoise_u")
    io, told, network = case.io, case.facts[name], case.network
    plan = by_tokens.Steps(
        steps=told["steps"],
        cfg=tuple(told["cfg"]),
        temperature=tuple(told["temperature"]),
        conditional_steps=told.get("sampling_conditional_steps"),
        renoise_steps=told.get("renoise_steps"),
        t_start=told.get("t_start", 1.0),
        t_end=told.get("t_end", 0.0),
    )
    x = by_tokens.sample(
        lambda x, t: network(x, t, **conditions(io, ALL)),
        noise.long(),
        plan,
        uniform=lambda what, step: {"token": u, "renoise": again}[what][step],
        unconditional=lambda x, t: network(x, t, byt5=io["byt5_uncond"], clip=io["clip_uncond"]),
        start=io["tokens"].long() if name == "sample_from" else None,
    )
    assert torch.equal(x, wanted.long())


def edit_of(case, name):
    told = case.facts[name]
    return by_tokens.Edit(
        steps=told["T"],
        first=told["starting_t"],
        cfg=told["classifier_free_scale"] if told["classifier_free_scale"] >= 0 else None,
        mass=told["typical_mass"] if told["typical_filtering"] else None,
        temperature=tuple(told["temp_range"]),
        renoise_steps=told["renoise_steps"],
        renoise=told["renoise_mode"],
    )


@pytest.mark.parametrize("name", ["edit_inpaint", "edit_morph", "edit_rand"])
@torch.no_grad()
def test_edited_tokens(case, name):
    wanted, gumbel, again = has(case, name, f"{name}_gumbel_u", f"{name}_renoise_u")
    io, network, plan, mask = case.io, case.network, edit_of(case, name), None
    if name == "edit_inpaint":
        mask = io["edit_mask"].bool()
        start = by_tokens.noised(io["tokens"].long(), io["edit_inpaint_noise"].long(), mask)
    else:
        start = io["edit_morph_start" if name == "edit_morph" else "edit_rand_noise"].long()
    x = by_tokens.edit(
        lambda x, t: network(x, t, byt5=io["byt5"]),
        start,
        plan,
        uniform=lambda what, step: {"gumbel": gumbel, "renoise": again}[what][step - plan.first],
        unconditional=lambda x, t: network(x, t, byt5=torch.zeros_like(io["byt5"])),
        mask=mask,
        fresh=lambda step: io["edit_rand_renoise_tokens"][step].long(),
    )
    assert torch.equal(x, wanted.long())
    if mask is not None:
        assert torch.equal(x[~mask], io["tokens"].long()[~mask])


@pytest.mark.parametrize(("mass", "key"), [(0.2, "typical_keep_02"), (0.9, "typical_keep_09")])
def test_typical_tokens(case, mass, key):
    logits, wanted = has(case, "typical_logits", key)
    assert torch.equal(by_tokens.typical(logits, mass=mass).isfinite(), wanted.bool())


def test_slerp(case):
    a, b, wanted = has(case, "clip", "clip_uncond", "slerp_03")
    assert relative(by_tokens.slerp(a, b, 0.3), wanted) < 1e-6
