"""Samples: a function of (seed, i), whatever the batch; records that make them again; exports that compute the same."""

import dataclasses
import json

import pytest
import torch
from tiny_run import tiny_recipe

import hdit_cli
from hdit_cli import runtime
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.sampling.collect import Order, collect, load_for, sampling_of
from hdit_cli.engine.sampling.generate import choose_labels, generate, stream
from hdit_cli.engine.sampling.recorded import read_order
from hdit_cli.engine.sharing.convert import convert
from hdit_cli.engine.sharing.export import to_safetensors, to_torch_export
from hdit_cli.errors import CheckpointError, NonFiniteError, UsageError
from hdit_cli.tasks.sampling import Sampling


def make(classes=("a", "b", "c"), seed=0, **changes):
    """A small model with random weights everywhere."""
    recipe = tiny_recipe(**changes)
    torch.manual_seed(seed)
    network = build_network(recipe, classes=len(classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    denoiser = build_task(network, recipe).eval().requires_grad_(False)
    return Model(denoiser, recipe.to_dict(), list(classes), data={"class_counts": [6, 3, 1]})


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    checkpoint.save_inference(path, model)
    return path


@pytest.mark.parametrize("sampler", ["dpmpp-3m-sde", "dpmpp-2m-sde", "euler-ancestral", "heun"])
def test_an_image_does_not_depend_on_its_batch(model, sampler):
    """Bit for bit in the noise, so to 1/255 in the pixels; on a CPU with float32 mostly exactly."""
    whole = generate(model, n=7, seed=3, steps=4, sampler=sampler, batch_size=7, label="all")
    split = generate(model, n=7, seed=3, steps=4, sampler=sampler, batch_size=2, label="all")
    assert int((whole.int() - split.int()).abs().max()) <= 1
    again = generate(model, n=7, seed=3, steps=4, sampler=sampler, batch_size=7, label="all")
    assert torch.equal(whole, again)
    labels = choose_labels(model, n=7, wanted="all", seed=3)
    sampling = Sampling(seed=3, steps=4, sampler=sampler)
    alone = {i: x for n, x in stream(model, indices=[5], labels=labels, sampling=sampling) for i in n}
    assert int((alone[5][0].int() - whole[5].int()).abs().max()) <= 1


def test_seeds_differ(model):
    assert not torch.equal(generate(model, n=1, seed=0, steps=2), generate(model, n=1, seed=1, steps=2))


def test_the_noise_of_an_image_is_pinned():
    """A change here would change every sample anyone has recorded."""
    noise = runtime.normal(0, "sample/start", [0, 1], (2,), like=torch.empty(0))
    again = runtime.normal(0, "sample/start", [1], (2,), like=torch.empty(0))
    assert torch.equal(noise[1], again[0])
    assert runtime.bits(0, "sample/start", [0, 1])[:, 0].tolist() == PINNED


PINNED = [15766784329845878761, 4277636008156501700]


def test_labels(model):
    assert choose_labels(model, n=6, wanted="all", seed=0).tolist() == [0, 0, 1, 1, 2, 2]
    assert choose_labels(model, n=2, wanted="b", seed=0).tolist() == [1, 1]
    assert choose_labels(model, n=2, wanted="2", seed=0).tolist() == [2, 2]
    drawn = choose_labels(model, n=5000, wanted=None, seed=0)
    shares = torch.bincount(drawn, minlength=3) / 5000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.03)
    assert torch.equal(drawn[:10], choose_labels(model, n=10, wanted=None, seed=0))
    with pytest.raises(UsageError, match="unknown class 'd'"):
        choose_labels(model, n=1, wanted="d", seed=0)
    with pytest.raises(UsageError, match="unknown class '3'"):
        choose_labels(model, n=1, wanted="3", seed=0)


@pytest.mark.parametrize(
    ("wanted", "label"),
    [("caf\u00e9", 0), (" cafe\u0301 ", 0), ("\ufeffcaf\u00e9", 0), ("7", 1), ("7.0", 1), ("Rose", 2), (" 2 ", 2)],
)
def test_a_class_is_found_however_it_is_written(model, wanted, label):
    named = dataclasses.replace(model, classes=["cafe\u0301", "7", "Rose"])  # NFD, as older data sets have it
    assert choose_labels(named, n=1, wanted=wanted, seed=0).tolist() == [label]


@pytest.mark.parametrize("wanted", ["rose", "07", "\u00b2", "9" * 5000, ""])
def test_a_class_of_another_name_is_another_class(model, wanted):
    named = dataclasses.replace(model, classes=["a", "7", "Rose"])
    with pytest.raises(UsageError, match="unknown class"):
        choose_labels(named, n=1, wanted=wanted, seed=0)


def test_guidance_of_one_is_off_and_the_interval_is_kept(model):
    plain = generate(model, n=2, steps=3, label="a")
    assert torch.equal(plain, generate(model, n=2, steps=3, label="a", cfg=1.0))
    guided = generate(model, n=2, steps=3, label="a", cfg=6.0)
    assert not torch.equal(plain, guided)
    nowhere = generate(model, n=2, steps=3, label="a", cfg=6.0, cfg_interval=(500.0, 600.0))
    assert torch.equal(plain, nowhere)


def test_sizes(model):
    assert generate(model, n=1, steps=2, size=(20, 28)).shape == (1, 20, 28, 3)
    with pytest.raises(UsageError, match="multiples of 4"):
        generate(model, n=1, steps=2, size=(18, 16))
    with pytest.raises(UsageError, match="kernel"):
        generate(model, n=1, steps=2, size=(4, 16))


def test_weights_that_diverged_are_told():
    broken = make()
    with torch.no_grad():
        broken.network.patch_out.proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="image 0"):
        generate(broken, n=1, steps=2)


def test_a_record_makes_the_same_images_again(saved, tmp_path):
    model, sha256 = load_for(Order(str(saved), Sampling(), n=5, label="all"))
    order = Order(
        str(saved), sampling_of(model, seed=4, steps=3, cfg_interval=(0.1, 9.0), cfg=2.0, size=(20, 16)), 5, "all"
    )
    collect(model, order, out=tmp_path / "first", sha256=sha256)
    recorded = read_order(tmp_path / "first" / "samples.json")
    again = recorded.order
    assert again == order
    model, _ = load_for(again, sha256=recorded.sha256)
    collect(model, again, out=tmp_path / "second", sha256=recorded.sha256)
    names = sorted(p.name for p in (tmp_path / "first").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "00003.png", "00004.png", "grid.png", "samples.json"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    record = json.loads((tmp_path / "first" / "samples.json").read_text())
    assert [image["class"] for image in record["images"]] == ["a", "a", "b", "b", "c"]
    with pytest.raises(CheckpointError, match="not the checkpoint"):
        load_for(again, sha256="0" * 64)


def test_inference_files_have_deterministic_bytes(model, saved):
    raw = saved.read_bytes()
    assert checkpoint.serialise(model.network.state_dict(), checkpoint.metadata_of(model)) == raw
    loaded = hdit_cli.load(saved, device="cpu")
    assert checkpoint.serialise(loaded.network.state_dict(), checkpoint.metadata_of(loaded)) == raw
    assert torch.equal(generate(model, n=2, steps=2), generate(loaded, n=2, steps=2))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_export_to_safetensors(saved, tmp_path, dtype):
    model = hdit_cli.load(saved, device="cpu")
    done = to_safetensors(model, tmp_path / "out.safetensors", dtype=dtype)
    assert done.error == 0
    back = hdit_cli.load(tmp_path / "out.safetensors", device="cpu")
    assert back.dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
    ours, theirs = generate(model, n=2, steps=3).int(), generate(back, n=2, steps=3).int()
    assert float((ours - theirs).abs().float().mean()) <= (0 if dtype == "fp32" else 6)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [("a", "b", "c"), ()], ids=["classes", "unconditional"])
def test_torch_export_takes_any_batch(tmp_path, classes):
    model = make(classes, **({} if classes else {"model__classes": 0}))
    done = to_torch_export(model, tmp_path / "out.pt2", dtype="fp32")
    assert done.error < 1e-5
    program = torch.export.load(tmp_path / "out.pt2").module()
    x, sigma = torch.randn(5, 3, 16, 16), torch.rand(5) + 0.1
    label = (torch.tensor([0, 1, 2, 3, 0]),) if classes else ()
    expected = model.denoiser(x, sigma, label=label[0] if classes else None)
    torch.testing.assert_close(program(x, sigma, *label), expected, rtol=1e-4, atol=1e-5)


CONFIG = {
    "model": {
        "type": "image_transformer_v2",
        "input_channels": 3,
        "input_size": [16, 24],
        "patch_size": [2, 2],
        "depths": [1, 1],
        "widths": [16, 32],
        "self_attns": [{"type": "shifted-window", "d_head": 8, "window_size": 4}, {"type": "none"}],
        "mapping_width": 16,
        "mapping_cond_dim": 3,
        "sigma_min": 0.02,
        "sigma_max": 50,
        "sigma_sample_density": {"type": "lognormal", "mean": -1.2, "std": 1.2},
    },
    "dataset": {"num_classes": 4},
}


def training_file(path):
    """A training checkpoint as k-diffusion writes it."""
    from hdit_cli.models.hdit_names import kdiffusion_recipe
    from hdit_cli.recipe import Recipe

    network = build_network(Recipe.from_dict(kdiffusion_recipe(CONFIG)), classes=4)
    state = network.state_dict()
    stored = {
        "config": CONFIG,
        "model": {name: torch.zeros_like(t) for name, t in state.items()},
        "model_ema": state,
        "opt": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]},
        "sched": {"last_epoch": 7, "_last_lr": [5e-4]},
        "ema_sched": {"last_epoch": 7},
        "epoch": 0,
        "step": 7,
        "gns_stats": None,
        "ema_stats": {"loss": 0.1},
        "demo_gen": torch.Generator().get_state(),
        "elapsed": 12.5,
    }
    torch.save(stored, path)
    return state


def test_convert_a_training_checkpoint(tmp_path):
    state = training_file(tmp_path / "run_00000007.pth")
    model = convert(tmp_path / "run_00000007.pth", out=tmp_path / "ours.safetensors", config=None)
    assert (model.step, model.weights) == (7, "ema")
    back = hdit_cli.load(tmp_path / "ours.safetensors", device="cpu")
    assert all(torch.equal(t, state[name]) for name, t in back.network.state_dict().items())
    assert back.recipe["diffusion"]["sigma_data"] == 1.0  # k-diffusion's default where a configuration is silent
    assert back.recipe["diffusion"]["weighting"] == "karras"
    assert back.recipe["diffusion"]["density"] == {"type": "lognormal", "loc": -1.2, "scale": 1.2}
    assert back.network.mapping_inputs == 3
    assert len(back.classes) == 4


def test_convert_fp16_without_a_configuration(tmp_path):
    from safetensors.torch import save_file

    state = training_file(tmp_path / "x.pth")
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_file(half, tmp_path / "slim.safetensors")
    with pytest.raises(UsageError, match="carries no configuration"):
        convert(tmp_path / "slim.safetensors", out=tmp_path / "o.safetensors", config=None)
    model = convert(tmp_path / "slim.safetensors", out=tmp_path / "o.safetensors", config=CONFIG)
    assert model.dtype == torch.float32


def test_convert_says_what_does_not_fit(tmp_path):
    training_file(tmp_path / "x.pth")
    wider = {**CONFIG, "model": {**CONFIG["model"], "widths": [16, 48]}}
    with pytest.raises(CheckpointError, match="has shape"):
        convert(tmp_path / "x.pth", out=tmp_path / "o.safetensors", config=wider)
    older = {**CONFIG, "model": {**CONFIG["model"], "type": "image_v1"}}
    with pytest.raises(UsageError, match="image_v1"):
        convert(tmp_path / "x.pth", out=tmp_path / "o.safetensors", config=older)
    with pytest.raises(UsageError, match="not complete"):
        convert(tmp_path / "x.pth", out=tmp_path / "o.safetensors", config={"model": {"type": "image_transformer_v2"}})
    assert not (tmp_path / "o.safetensors").exists()


def test_all_leaves_out_classes_that_no_picture_was_seen_of(model):
    told = dataclasses.replace(model, data={"class_counts": [6, 0, 1]})
    assert choose_labels(told, n=4, wanted="all", seed=0).tolist() == [0, 0, 2, 2]
    assert choose_labels(told, n=1, wanted="b", seed=0).tolist() == [1]  # asked for by name it is drawn
    unknown = dataclasses.replace(model, data={})
    assert choose_labels(unknown, n=3, wanted="all", seed=0).tolist() == [0, 1, 2]
