"""A model of timesteps under the settings of samplings, in exports and on cards."""

import json
import math

import pytest
import torch
from tiny_run import tiny_recipe

from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run.checkpoint import metadata_of
from hdit_cli.engine.sampling.generate import generate
from hdit_cli.engine.sampling.settings import check_asked
from hdit_cli.engine.sharing.card_file import write_card
from hdit_cli.engine.sharing.export import to_safetensors
from hdit_cli.errors import UsageError
from hdit_cli.models.dit_names import NotDiT, arguments_of
from hdit_cli.tasks.sampling import Sampling

DIT = {"type": "dit", "size": [16, 16], "patch": 4, "depth": 2, "width": 32, "heads": 2, "classes": "data"}


def make(classes=("a", "b", "c")):
    """A small DiT of timesteps with random weights everywhere."""
    model = DIT if classes else {**DIT, "classes": 0}
    recipe = tiny_recipe(model=model, task={"type": "ddpm", "clip": True})
    torch.manual_seed(0)
    network = build_network(recipe, classes=len(classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Model(build_task(network, recipe).eval().requires_grad_(False), recipe.to_dict(), list(classes))


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.mark.parametrize("interval", [(500.0, 800.0), (0.0, 0.001)], ids=["above", "below"])
def test_guidance_outside_the_noise_levels_of_the_process_does_not_act(model, interval):
    settings = {"n": 2, "steps": 4, "sampler": "ddim", "label": "a"}
    plain = generate(model, **settings)
    assert torch.equal(generate(model, **settings, cfg=6.0, cfg_interval=interval), plain)
    assert not torch.equal(generate(model, **settings, cfg=6.0, cfg_interval=(0.0, 800.0)), plain)


@pytest.mark.parametrize("asked", [{"rho": 3.0}, {"schedule": "exponential"}, {"eta": 0.5}], ids=str)
def test_settings_of_noise_levels_are_refused_for_timesteps(asked):
    ddpm, heun = Sampling(sampler="ddpm"), Sampling(sampler="dpmpp-3m-sde")
    with pytest.raises(UsageError) as refused:
        check_asked([ddpm], asked)
    assert next(iter(asked)) in refused.value.message and "ddpm" in refused.value.message
    assert "deterministic" not in refused.value.message  # it is not
    check_asked([ddpm, heun], {"rho": 3.0})  # a point of a sweep takes it


def test_the_sigma_view_of_a_level_is_a_number_whatever_the_level(model):
    told = model.denoiser.timestep(torch.tensor([1e-6, 0.0100005, 157.4, 1e6]))
    assert told[0] == 0 and told[-1] == 999
    assert math.isclose(float(told[1]), 0, abs_tol=1e-3)


def test_files_and_cards_say_which_network_it_is(model, tmp_path):
    told = metadata_of(model)
    assert told["modelspec.architecture"] == "diffusion-transformer"
    assert json.loads(told["hdit.recipe"])["model"]["type"] == "dit"
    done = to_safetensors(model, tmp_path / "a.safetensors", dtype="fp32")
    path, _ = write_card(model, done, checkpoint=done.path, licence="unknown", picture=None)
    card = path.read_text()
    assert "A Diffusion Transformer ([arXiv 2212.09748]" in card and '- "arxiv:2212.09748"' in card
    assert "ourglass" not in card and "2401.11605" not in card


@pytest.mark.parametrize("name, shape", [("x_embedder.proj.weight", (1,)), ("pos_embed", (1,)), ("blocks.x.y", (1,))])
def test_shapes_of_no_dit_are_told_in_words(model, name, shape):
    shapes = {key: tuple(value.shape) for key, value in model.network.state_dict().items()}
    with pytest.raises(NotDiT, match="names or shapes of its tensors are none of a DiT"):
        arguments_of({**shapes, name: shape}, heads=2)
