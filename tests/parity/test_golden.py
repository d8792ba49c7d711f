"""Parity of HDiT and its diffusion with reference tensors: by `hdit convert` and the public Python API, as a user goes."""

import json
from functools import partial

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hdit_cli
from hdit_cli import catalog
from hdit_cli.diffusion.guidance import classifier_free
from hdit_cli.engine.model import count
from hdit_cli.recipe import Recipe

CASES = golden.cases("kdiffusion.safetensors")
TOLERANCE = {"network": 3e-5, "denoiser": 2e-5, "loss": 2e-6, "gradient": 4e-4, "sample": 3e-4, "schedule": 1e-6}

LAWS = golden.found("densities.safetensors")
NOT_HERE = "reference tensors (../shared/golden, $HDIT_GOLDEN) are not here"

pytestmark = pytest.mark.skipif(not CASES and not LAWS, reason=NOT_HERE)


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.fixture(scope="module", params=CASES, ids=lambda p: p.name)
def case(request, tmp_path_factory):
    from hdit_cli.engine.sharing.convert import convert

    folder = request.param
    out = tmp_path_factory.mktemp("converted") / "model.safetensors"
    convert(folder / "kdiffusion.safetensors", out=out, config=None)
    model = hdit_cli.load(out, device="cpu")
    io = load_file(folder / "io.safetensors")
    conditions = {"augment": io["aug_cond"]}
    if "class_cond" in io:
        conditions["label"] = io["class_cond"]
    if "mapping_cond" in io:
        conditions["mapping"] = io["mapping_cond"]
    return model, io, json.loads((folder / "facts.json").read_text()), conditions


def noisy(io):
    return io["x0"] + io["noise"] * io["sigma"][:, None, None, None]


def test_counts_are_exact(case):
    model, _, facts, _ = case
    assert sum(p.numel() for p in model.network.parameters()) == facts["params"]
    macs = count(Recipe.from_dict(model.recipe))["gmacs"]
    assert macs == pytest.approx(facts["gmacs_per_image"], rel=1e-9)


def test_network(case):
    model, io, _, conditions = case
    with torch.no_grad():
        out = model.network(noisy(io), io["sigma"], **conditions)
    assert relative(out, io["inner_out"]) < TOLERANCE["network"]


def test_denoiser(case):
    model, io, _, conditions = case
    with torch.no_grad():
        out = model.denoiser(noisy(io), io["sigma"], **conditions)
    assert relative(out, io["denoised"]) < TOLERANCE["denoiser"]


def test_loss_and_gradients(case):
    model, io, facts, conditions = case
    model.denoiser.requires_grad_(True)
    loss = model.denoiser.loss(io["x0"], io["noise"], io["sigma"], **conditions)
    assert relative(loss.detach(), io["loss"]) < TOLERANCE["loss"]
    loss.mean().backward()
    norms = {name: float(p.grad.norm()) for name, p in model.network.named_parameters()}
    model.denoiser.zero_grad()
    model.denoiser.requires_grad_(False)
    assert norms.keys() == facts["grad_norms"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(facts["grad_norms"][name], rel=TOLERANCE["gradient"]), name


def test_parameter_groups(case):
    model, _, facts, _ = case
    names = {parameter: name for name, parameter in model.network.named_parameters()}
    groups = {g["name"]: sorted(names[p] for p in g["params"]) for g in model.param_groups(lr=1.0, weight_decay=0.1)}
    assert groups == {name: sorted(members) for name, members in facts["param_groups"].items()}


def test_schedule(case):
    model, io, _, _ = case
    section = model.recipe["diffusion"]
    sigmas = hdit_cli.schedule("karras")(8, sigma_min=section["sigma_min"], sigma_max=section["sigma_max"], rho=7.0)
    assert relative(sigmas, io["sigmas_karras_8"]) < TOLERANCE["schedule"]


def parse(key):
    """`sample_dpmpp_2m_sde_heun_eta0` => ("dpmpp-2m-sde", {"solver": "heun", "eta": 0.0}, cfg or None)."""
    words, options, cfg = key.removeprefix("sample_").split("_"), {}, None
    if words[-1].startswith("cfg"):
        cfg = float(words.pop()[3:])
    if words[-1] == "eta0":
        options["eta"] = float(words.pop()[3:])
    if words[-1] in ("heun", "midpoint") and len(words) > 1:
        options["solver"] = words.pop()
    return "-".join(words), options, cfg


def test_samplers_and_guidance(case):
    model, io, _, conditions = case
    keys = [key for key in io if key.startswith("sample_")]
    assert {parse(key)[0] for key in keys} <= set(catalog.names("sampler"))
    for key in keys:
        name, options, cfg = parse(key)
        denoise = partial(model.denoiser, **conditions)
        if cfg is not None:
            none = {"label": torch.full_like(conditions["label"], len(model.classes))}
            denoise = classifier_free(model.denoiser, conditions=conditions, none=none, scale=cfg)
        with torch.no_grad():
            x = hdit_cli.sampler(name)(
                denoise, io["x_T"], io["sigmas_karras_8"], noise=lambda i: io["fixed_noise"][i], **options
            )
        assert relative(x, io[key]) < TOLERANCE["sample"], key


DENSITIES = {
    "loguniform": ("loguniform", {"sigma_min": 0.01, "sigma_max": 80.0}),
    "loglogistic": ("loglogistic", {"loc": np.log(0.5), "scale": 0.5, "sigma_min": 1e-3, "sigma_max": 1e3}),
    "lognormal_-1.2_1.2": ("lognormal", {"loc": -1.2, "scale": 1.2}),
    "cosine_sd0.5": ("cosine", {"sigma_data": 0.5, "sigma_min": 1e-3, "sigma_max": 1e3}),
    **{
        f"cosine_interpolated_{n}_sd0.5": (
            "cosine-interpolated",
            {
                "image_size": n,
                "noise_d_low": 32,
                "noise_d_high": n,
                "sigma_data": 0.5,
                "sigma_min": 1e-3,
                "sigma_max": 1e3,
            },
        )
        for n in (64, 256)
    },
}


@pytest.mark.parametrize("file", LAWS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("key", DENSITIES)
def test_densities(key, file):
    tensors = load_file(file)
    name, options = DENSITIES[key]
    assert relative(hdit_cli.noise_density(name, **options)(tensors["u"]), tensors[key]) < 1e-4


@pytest.mark.parametrize("file", LAWS, ids=lambda path: path.parent.name)
def test_ema_warm_up(file):
    expected = load_file(file)["ema_warmup_power0.75_first1000"]
    ours = [hdit_cli.ema_decay(step, power=0.75, max_value=0.9999) for step in range(1000)]
    assert relative(torch.tensor(ours), expected) < 1e-6
