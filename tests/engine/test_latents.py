"""A network of latents without a codec says so in one sentence; and guidance on some channels alone."""

import pytest
import torch
from tiny_run import tiny_recipe

import hdit_cli
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.settings import check_asked
from hdit_cli.engine.sharing.card import drawn_grid
from hdit_cli.engine.training.setup import open_data
from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.sampling import Sampling

MISSING = "latents of 4 channels, and the codec that turns pictures into them and back is missing"


def dit(**task):
    section = {
        "type": "dit",
        "size": [8, 8],
        "patch": 2,
        "depth": 1,
        "width": 16,
        "heads": 2,
        "channels": 4,
        "classes": 2,
    }
    return Recipe.from_dict(
        {"model": section, "task": {"type": "ddpm", **task}, "sample": {"sampler": "ddim", "steps": 2}}
    )


def model_of(recipe):
    torch.manual_seed(0)
    network = build_network(recipe, classes=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(build_task(network, recipe).eval().requires_grad_(False), recipe.to_dict(), ["a", "b"])


def test_pictures_of_latents_are_refused_and_the_latents_are_there(tiny_data):
    model = model_of(dit())
    with pytest.raises(UsageError, match=MISSING) as caught:
        hdit_cli.generate(model, n=1)
    assert "model.task.sample" in caught.value.hint
    assert drawn_grid(model) is None
    with pytest.raises(UsageError, match=MISSING) as caught:
        open_data(dit(), tiny_data)
    assert "model.channels = 3" in caught.value.hint
    latents = model.task.sample(
        Sampling(sampler="ddim", steps=2, cfg=2.0),
        noise=lambda stream: torch.ones(1, 4, 8, 8),
        conditions={"label": torch.tensor([1])},
        x0=None,
        on_step=None,
        wrap=lambda module: module,
    )
    assert latents.shape == (1, 4, 8, 8)
    assert torch.isfinite(latents).all()


def test_guided_channels_are_the_recipes_unless_asked():
    model = model_of(dit(cfg_channels=3))
    assert sampling_of(model).cfg_channels == 3
    assert sampling_of(model, cfg_channels=0).cfg_channels == 0
    check_asked([Sampling(cfg=1.0), Sampling(cfg=2.0)], {"cfg_channels": 3})
    check_asked([Sampling(cfg=1.0)], {"cfg_channels": None})
    with pytest.raises(UsageError, match="at cfg 1 there is none"):
        check_asked([Sampling(cfg=1.0)], {"cfg_channels": 3})
    with pytest.raises(UsageError, match="an image has 4 channels"):
        dit(cfg_channels=5)
    with pytest.raises(UsageError, match="--cfg-channels 9: the model has 3"):
        pixels = tiny_recipe(model__classes=2)
        hdit_cli.generate(
            Model(build_task(build_network(pixels, classes=2), pixels), pixels.to_dict(), ["a", "b"]),
            cfg=2.0,
            cfg_channels=9,
        )


def test_the_public_names():
    assert hdit_cli.respace("ddim50")[:2] == [0, 20]
    assert callable(hdit_cli.sampler("ddpm")) and callable(hdit_cli.sampler("ddim"))
    model = model_of(dit())
    assert model.codec.channels == 4 and model.denoiser.network is model.network is model.task.network
