"""Parity of DiT and of its diffusion with reference tensors, found by their layout here and under $HDIT_GOLDEN."""

import json

import golden
import pytest
import torch
from safetensors.torch import load_file

import hdit_cli
from hdit_cli.diffusion.guidance import classifier_free_channels
from hdit_cli.diffusion.samplers.timesteps import bits_per_dimension, ddim, ddim_reversed, ddpm
from hdit_cli.diffusion.sigma_view import SigmaView
from hdit_cli.diffusion.timesteps import linear_table, respace
from hdit_cli.engine.sharing.convert import convert
from hdit_cli.errors import UsageError
from hdit_cli.models.dit import DiT
from hdit_cli.models.dit_names import NotDiT, arguments_of, from_diffusers, is_diffusers, is_official
from hdit_cli.tasks.ddpm import DDPM
from hdit_cli.tasks.task import Drawn

CASES = golden.cases("dit.safetensors")
TABLE = linear_table()

pytestmark = pytest.mark.skipif(not CASES, reason="reference tensors (../shared/golden, $HDIT_GOLDEN) are not here")


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


class Case:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.facts = json.loads((folder / "facts.json").read_text())
        self.io = load_file(folder / "io.safetensors")
        config = self.config
        self.network = DiT(
            size=(config["input_size"],) * 2,
            patch=config["patch_size"],
            depth=config["depth"],
            width=config["hidden_size"],
            heads=config["num_heads"],
            channels=config["in_channels"],
            classes=config["num_classes"],
            mlp_ratio=config.get("mlp_ratio", 4.0),
            learn_variance=config.get("learn_sigma", True),
        ).eval()
        self.made_here = self.network.pos_embed.detach().clone()
        self.network.load_state_dict(load_file(folder / "dit.safetensors"))

    def has(self, *names):
        missing = [name for name in names if name not in self.io]
        if missing:
            pytest.skip(f"the case has no {', '.join(missing)}")
        return [self.io[name] for name in names]

    def told(self, label):
        return lambda x, t: self.network(x, t, label=label)

    def steps(self):
        return self.facts.get("sampling_timesteps") or self.facts["respaced_timesteps_10"]

    def guided(self, label, *, scale, channels):
        """(x, t) => the output of the conditional half."""

        def network(x, t):
            none = torch.full_like(label, self.config["num_classes"])
            cond, uncond = self.network(torch.cat([x, x]), torch.cat([t, t]), label=torch.cat([label, none])).chunk(2)
            return classifier_free_channels(cond, uncond, scale=scale, channels=channels)

        return network


@pytest.fixture(scope="module", params=CASES, ids=lambda p: p.name)
def case(request):
    return Case(request.param)


@pytest.fixture(autouse=True)
def _no_gradients(request):
    if "gradient" in request.node.name:
        yield
    else:
        with torch.no_grad():
            yield


def test_counts(case):
    parameters = list(case.network.parameters())
    assert sum(p.numel() for p in parameters) == case.facts["params"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == case.facts["params_trainable"]


def test_position_table_is_the_saved_one(case):
    assert relative(case.made_here, case.network.pos_embed) < 1e-6


def test_network(case):
    x, y, t = case.io.get("x", case.io.get("x_t")), case.io["y"], case.io["t"]
    assert relative(case.network(x, t, label=y), case.io["out"]) < 5e-6


def test_network_in_float64(case):
    x, y, out = case.has("x64", "y64", "out64")
    network = case.network.double()
    try:
        assert relative(network(x, torch.zeros(len(x)), label=y), out) < 1e-9
    finally:
        case.network.float()


def test_noised(case):
    x0, noise, t, x_t = case.has("x0", "noise", "t", "x_t")
    assert relative(TABLE.noised(x0, t, noise), x_t) < 1e-6


def task_of(case):
    return DDPM(case.network, timesteps=1000, learned_variance=True, clip=False, class_dropout=0.0)


def test_losses(case):
    x0, x_t, t, y, noise = case.has("x0", "x_t", "t", "y", "noise")
    out = case.network(x_t, t, label=y)
    mse = (noise - out[:, : x0.shape[1]]).square().flatten(1).mean(1)
    bound = TABLE.bound(out, x0, x_t, t)
    assert relative(mse, case.io["loss_mse"]) < 5e-6
    assert relative(bound, case.io["loss_vb"]) < 5e-6
    assert relative(mse + bound, case.io["loss_loss"]) < 5e-6
    assert relative(task_of(case)(Drawn(x0, noise, t, {"label": y})).loss, case.io["loss_loss"]) < 5e-6
    if "loss_kl_full" in case.io:
        assert relative(1000 * bound, case.io["loss_kl_full"]) < 5e-6


def check_gradients(network, wanted):
    for name, norm in wanted.items():
        parameter = dict(network.named_parameters())[name]
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=2e-5), name


def test_gradients_of_the_loss(case):
    x0, x_t, t, y, noise = case.has("x0", "x_t", "t", "y", "noise")
    if "grad_norms_loss" not in case.facts:
        pytest.skip("the case has no gradient norms")
    half = x0.shape[1]
    case.network.zero_grad()
    task_of(case)(Drawn(x0, noise, t, {"label": y})).loss.mean().backward()
    trained = {name for name, parameter in case.network.named_parameters() if parameter.requires_grad}
    assert set(case.facts["grad_norms_loss"]) == trained
    check_gradients(case.network, case.facts["grad_norms_loss"])

    out = case.network(x_t, t, label=y)
    case.network.zero_grad()
    TABLE.bound(torch.cat([out[:, :half].detach(), out[:, half:]], dim=1), x0, x_t, t).mean().backward()
    check_gradients(case.network, case.facts["grad_norms_vb"])


def test_prediction_and_posterior(case):
    x0, x_t, t, y, p_mean = case.has("x0", "x_t", "t", "y", "p_mean")
    io, out = case.io, case.network(x_t, t, label=y)
    mean, log_variance, clean = TABLE.predicted(out, x_t, t)
    assert relative(TABLE.posterior_mean(x0, x_t, t), io["q_mean"]) < 1e-6
    assert relative(TABLE.at(TABLE.posterior_log_variance, t, like=x0).flatten(), io["q_logvar"]) < 1e-6
    assert relative(mean, p_mean) < 1e-6 and relative(log_variance, io["p_logvar"]) < 1e-6
    assert relative(clean, io["pred_x0"]) < 1e-5
    clipped = TABLE.predicted(out, x_t, t, clip=True)
    assert relative(clipped.mean, io["p_mean_clip"]) < 1e-6
    assert relative(clipped.x0, io["pred_x0_clip"]) < 1e-3


def test_tables(case):
    for name, values in {
        "alphas_cumprod": TABLE.abar,
        "sigmas": TABLE.sigmas,
        "posterior_log_variance_clipped": TABLE.posterior_log_variance,
    }.items():
        for t, value in case.facts.get(name, {}).items():
            assert float(values[int(t)]) == pytest.approx(value, rel=1e-9), (name, t)
    if "respaced_betas" in case.facts:
        betas = TABLE.respaced(case.facts["sampling_timesteps"]).betas.tolist()
        assert betas == pytest.approx(case.facts["respaced_betas"], rel=1e-9)


def test_respacing_is_equal(case):
    wanted = dict(case.facts.get("respaced", {}))
    if "respaced_timesteps_10" in case.facts:
        wanted["10"] = case.facts["respaced_timesteps_10"]
    assert wanted
    for text, timesteps in wanted.items():
        if timesteps is None:
            with pytest.raises(UsageError):
                respace(text)
        else:
            assert respace(text) == timesteps, text


def test_guidance(case):
    io, channels = case.io, case.config["in_channels"]
    none = case.config["num_classes"]
    if "out_cfg4" in io:
        checks = [("out_cfg4", io["x"], io["y"], io["t"], 4.0, 3)]
    else:
        x, y = case.has("x_T", "y_sample")
        t = torch.full((len(x),), case.facts["settings"].get("guided_t", 321))
        settings = case.facts["settings"]
        checks = [("guided_3", x, y, t, settings["cfg_scale_3"], 3)]
        checks += [("guided_all", x, y, t, settings["cfg_scale_all"], channels)]
    for key, x, y, t, scale, first in checks:
        both = torch.cat([y, torch.full_like(y, none)])
        cond, uncond = case.network(torch.cat([x, x]), torch.cat([t, t]), label=both).chunk(2)
        ours = classifier_free_channels(cond, uncond, scale=scale, channels=first)
        assert relative(ours, io[key][: len(x)]) < 1e-5, key
        halves = torch.cat([ours[:, :first], uncond[:, first:]], dim=1)
        assert relative(halves, io[key][len(x) :]) < 1e-5, key


def test_samplers_clipped(case):
    x, noise, ddim_10, ddpm_10 = case.has("x_T", "fixed_noise", "ddim10", "ddpm10")
    table, network = TABLE.respaced(case.steps()), case.told(case.io["y"])
    assert relative(ddim(network, x, table, clip=True), ddim_10) < 1e-4
    assert relative(ddpm(network, x, table, clip=True, noise=lambda i: noise[i]), ddpm_10) < 1e-4


def test_samplers_at_every_step(case):
    x, y, noise, wanted_ddpm, wanted_ddim = case.has("x_T", "y_sample", "fixed_noise", "ddpm", "ddim")
    table, settings = TABLE.respaced(case.steps()), case.facts["settings"]
    options = {"noise": lambda i: noise[i], "clip": settings["clip_denoised"]}
    for sampler, wanted in ((ddpm, wanted_ddpm), (ddim, wanted_ddim)):
        states = []
        sampler(case.told(y), x, table, on_state=lambda _, state: states.append(state), **options)  # noqa: B023
        assert len(states) == len(wanted)
        for state, reference in zip(states, wanted, strict=True):
            assert relative(state, reference) < 1e-4
    assert relative(ddim(case.told(y), x, table, eta=settings["ddim_eta"], **options), case.io["ddim_eta"]) < 1e-4
    for key, scale, first in (
        ("ddpm_cfg3", settings["cfg_scale_3"], 3),
        ("ddpm_cfg_all", settings["cfg_scale_all"], case.config["in_channels"]),
    ):
        out = ddpm(case.guided(y, scale=scale, channels=first), x, table, **options)
        assert relative(out, case.io[key]) < 1e-4, key


def test_way_back_and_bound(case):
    x0, y, noise, back = case.has("x0", "y_sample", "fixed_noise", "ddim_reversed")
    table, x0 = TABLE.respaced(case.steps()), x0[:2]
    assert relative(ddim_reversed(case.told(y), x0, table), back) < 1e-4
    bits = bits_per_dimension(case.told(y), x0, table, noise=lambda i: noise[i])
    assert relative(bits.steps, case.io["bpd_vb"]) < 1e-4
    assert relative(bits.prior, case.io["bpd_prior_bpd"]) < 1e-4
    assert relative(bits.total, case.io["bpd_total_bpd"]) < 1e-4


def test_sigma_view(case):
    x0, noise, t, y, sigma, denoised = case.has("x0", "noise", "t", "y", "edm_sigma", "edm_denoised")
    view = SigmaView(case.network, TABLE)
    assert relative(view.timestep(sigma), t) < 1e-6
    x = x0 + sigma[:, None, None, None] * noise
    assert relative(view(x, sigma, label=y), denoised) < 1e-5


def test_names_and_shapes_tell_the_network():
    for folder in CASES:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "dit.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert is_official(tensors) and not is_diffusers(tensors)
        told = arguments_of(shapes, heads=config["num_heads"])
        network = DiT(**told)
        network.load_state_dict(tensors)
        assert told["size"] == (config["input_size"],) * 2 and told["classes"] == config["num_classes"]
        with pytest.raises(NotDiT, match="heads"):
            arguments_of(shapes)


@pytest.mark.parametrize("file", ["dit.safetensors", "diffusers.safetensors"])
@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_converted(folder, file, tmp_path):
    if not (folder / file).exists():
        pytest.skip(f"the case has no {file}")
    config, io = json.loads((folder / "config.json").read_text()), load_file(folder / "io.safetensors")
    convert(folder / file, out=tmp_path / "out.safetensors", config=config)
    network = hdit_cli.load(tmp_path / "out.safetensors", device="cpu").network
    assert relative(network(io.get("x", io.get("x_t")), io["t"], label=io["y"]), io["out"]) < 5e-6


def test_diffusers_names():
    folders = [folder for folder in CASES if (folder / "diffusers.safetensors").exists()]
    if not folders:
        pytest.skip("no case has weights under diffusers' names")
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        foreign, ours = load_file(folder / "diffusers.safetensors"), load_file(folder / "dit.safetensors")
        assert is_diffusers(foreign) and not is_official(foreign)
        told = {"sample_size": config["input_size"], "patch_size": config["patch_size"]}
        found = from_diffusers(foreign, told)
        assert found.keys() == ours.keys()
        assert all(relative(found[name], tensor) < 1e-6 for name, tensor in ours.items())
        with pytest.raises(NotDiT):
            from_diffusers({**foreign, "caption.weight": torch.zeros(1)}, told)
        shared = next(name for name in foreign if "blocks.1" in name and "timestep_embedder" in name)
        with pytest.raises(NotDiT, match="do not agree"):
            from_diffusers({**foreign, shared: foreign[shared] + 1}, told)
        with pytest.raises(NotDiT):
            from_diffusers(foreign, {})
