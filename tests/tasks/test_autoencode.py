"""What holds for autoencoders in training: the formulas of their losses, who learns by what, and runs that go on."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from test_task_laws import afresh, data, digests  # noqa: F401  (fixtures)
from torch import nn

from hdit_cli.engine.model import build_network, build_task
from hdit_cli.engine.run import events
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import UsageError
from hdit_cli.models.codebook import Codebook
from hdit_cli.models.codecs.vq_vae import Norm
from hdit_cli.models.critic import PatchCritic
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.reconstruction import bands, hinge, l1, multiscale, psnr
from hdit_cli.tasks.task import Place

KINDS = {
    "kl-vae": {"type": "kl-vae", "size": [16, 16], "widths": [8, 16], "latent_channels": 3, "layers": 1, "groups": 4},
    "vq-vae": {
        "type": "vq-vae",
        "size": [16, 16],
        "levels": 1,
        "bottleneck_blocks": 1,
        "c_hidden": 12,
        "codebook_size": 24,
    },
}
CRITIC = {"gan_weight": 0.5, "gan_start": 16, "critic_width": 8, "critic_layers": 1}
every_kind = pytest.mark.parametrize("kind", KINDS)


def recipe_of(kind, *, task=None, **train_keys):
    return Recipe.from_dict(
        {
            "name": "codec",
            "data": {"workers": 0},
            "model": KINDS[kind],
            "task": {"type": "autoencode", **({"restart_every": 2} if kind == "vq-vae" else {}), **(task or {})},
            "train": {
                "steps": 4, "batch_size": 8, "precision": "fp32", "save_every": 2, "sample_every": 0, "log_every": 1, **train_keys,
            },
            "optimizer": {"lr": 2e-3},
            "validation": {"every": 0},
        }
    )  # fmt: skip


def made(kind, *, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    recipe = recipe_of(kind, **changes)
    network = build_network(recipe, classes=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return build_task(network.to(dtype), recipe).train()


def drawn(task, *, index=range(8), first=0, dtype=torch.float64):
    index = np.arange(8)[list(index)]
    x0 = torch.linspace(-1, 1, 8 * 3 * 256, dtype=dtype).view(8, 3, 16, 16).roll(5, 2)[torch.from_numpy(index)]
    place = Place(seed=3, index=first + index, first=first, batch=8)
    return task.draw(x0, torch.zeros(len(index), dtype=torch.int64), place, told={})


# Losses


def test_bands_add_up_to_the_picture_and_see_no_difference_between_equals():
    error = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    found = bands(error)
    whole = found[-1]
    for band in reversed(found[:-1]):
        whole = band + nn.functional.interpolate(whole, size=band.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, error)
    assert len(found) == 2 and min(found[-1].shape[2:]) >= 8
    assert not multiscale(torch.zeros(2, 3, 16, 16)).any()
    flat = torch.full((1, 3, 32, 32), 0.25)  # of one colour: in the coarse rest alone, a third of three bands
    torch.testing.assert_close(multiscale(flat), torch.tensor([0.25 / 3]))
    assert l1(flat) == 0.25


def test_psnr_is_that_of_eight_bits():
    x = torch.full((2, 3, 8, 8), -1.0)
    y = torch.stack([x[0], x[1] + 10 / 127.5])
    assert psnr(x, y)[1] == pytest.approx(20 * np.log10(255 / 10)) and psnr(x, y)[0] > 140


@every_kind
def test_the_loss_is_its_parts(kind):
    task = made(kind)
    batch = drawn(task)
    way = task.network.through(batch.x0, batch.noise if kind == "kl-vae" else None)
    error = way.picture - batch.x0
    charged = 1e-6 / batch.x0[0].numel() if kind == "kl-vae" else 1.0
    torch.testing.assert_close(task(batch).loss, l1(error) + multiscale(error) + charged * way.penalty)


def test_a_kl_latent_is_drawn_by_the_codec_stream():
    task = made("kl-vae")
    assert not torch.equal(drawn(task).noise, drawn(task, first=8).noise)
    for piece in (range(3), range(3, 8)):
        assert torch.equal(drawn(task, index=piece).noise, drawn(task).noise[list(piece)])


# The critic


@every_kind
def test_who_learns_by_what(kind):
    """The autoencoder by all but the hinge, its share balanced at the last layer; the critic by the hinge alone."""
    task = made(kind, task=CRITIC)
    batch = drawn(task, first=16)
    assert batch.judged and not drawn(task, first=8).judged
    task(batch).loss.mean().backward()
    found = {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}
    way, loss, _ = task.reconstruct(batch.x0, batch.noise)
    for parameter in task.critic.parameters():
        parameter.requires_grad_(False)
    *maps, verdict = task.critic(way.picture)
    fooled, last = -verdict.mean(), task.network.last
    norms = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (loss.mean(), fooled)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-4)
    matched = torch.stack([(a - b).abs().mean() for a, b in zip(maps, task.critic(batch.x0)[:-1], strict=True)]).mean()
    learn = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    wanted = torch.autograd.grad(loss.mean() + weight * (fooled + 2.0 * matched), list(learn.values()))
    for name, gradient in zip(learn, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient)
    for parameter in task.critic.parameters():
        parameter.requires_grad_(True)
    learnt = hinge(task.critic(batch.x0)[-1], task.critic(way.picture.detach())[-1]).mean()
    names = [f"critic.{name}" for name, _ in task.critic.named_parameters()]
    for name, gradient in zip(names, torch.autograd.grad(learnt, list(task.critic.parameters())), strict=True):
        torch.testing.assert_close(found[name], gradient)


def test_before_its_image_the_critic_learns_nothing():
    task = made("kl-vae", task=CRITIC)
    task(drawn(task)).loss.mean().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in task.critic.parameters())


def test_what_a_critic_says_of_a_picture_hangs_on_no_other():
    critic, pictures = PatchCritic(width=16, layers=2).double(), torch.randn(3, 3, 32, 32).double()
    for alone, among in zip(critic(pictures[1:2]), critic(pictures), strict=True):
        torch.testing.assert_close(alone[0], among[1])
    assert critic(pictures)[-1].shape[1] == 1


# Codes


def test_a_codebook_is_the_running_mean_of_what_it_stands_for():
    torch.manual_seed(0)
    codes, keeper = torch.randn(5, 3, dtype=torch.float64), Codebook(5, 3).double()
    start, counts, sums = codes.clone(), np.ones(5), codes.numpy().copy()
    for _ in range(3):
        z, indices = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 4, (40,))  # nothing becomes code 4
        keeper.follow(codes, z, indices, decay=0.9, keep=torch.ones(()), total=lambda tensor: tensor)
        for k in range(5):
            mine = z[indices == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0).numpy()
        smoothed = (counts + 1e-5) / (counts.sum() + 5e-5) * counts.sum()
        np.testing.assert_allclose(codes.numpy(), sums / smoothed[:, None], rtol=1e-12)
    torch.testing.assert_close(codes[4], start[4], rtol=1e-3, atol=1e-3)  # and it stays where it was
    perplexity, used = keeper.perplexity()
    assert used == 0.8 and 3 < perplexity <= 4
    keeper.forget()
    assert keeper.perplexity() == (0.0, 0.0)


def test_codes_that_are_hardly_used_are_put_elsewhere():
    codes, keeper = torch.zeros(4, 2), Codebook(4, 2)
    keeper.count.copy_(torch.tensor([1.0, 1.0, 0.01, 1.0]))
    rows = torch.arange(8.0).view(4, 2)
    keeper.restart(codes, rows, keep=torch.ones(()))
    assert torch.equal(codes[2], rows[2]) and not codes[[0, 1, 3]].any()
    assert keeper.count[2] == pytest.approx(0.7525) and torch.allclose(keeper.sums[2], rows[2] * 0.7525)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_refused_step_leaves_no_trace(dtype):
    task = made("vq-vae", dtype=dtype)
    task(drawn(task, dtype=dtype))
    task.after(torch.ones(()))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(drawn(task, first=8, dtype=dtype)._replace(x0=torch.full((8, 3, 16, 16), torch.nan, dtype=dtype)))
    task.after(torch.zeros(()))
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())


def test_the_norm_is_a_batch_norm_that_moves_when_told():
    ours, theirs = Norm(4).double(), nn.BatchNorm2d(4).double()
    for _ in range(2):
        x = torch.randn(6, 4, 3, 5).double()
        torch.testing.assert_close(ours(x), theirs(x))
        assert not torch.equal(ours.running_mean, theirs.running_mean)
        ours.follow(torch.ones(()))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_nearest_codes_are_found_in_full_precision():
    task = made("vq-vae", dtype=torch.float32)
    z = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.network.vquantizer.nearest(z), task.network.vquantizer.nearest(z))
        lower = task.network.vquantizer.nearest(z)
    assert torch.equal(lower, task.network.vquantizer.nearest(z))


# Runs


@pytest.mark.slow
def test_a_perceptual_loss_is_charged_and_its_file_is_asked_for(tmp_path, data):  # noqa: F811
    from hdit_cli.engine.run import lpips_file
    from hdit_cli.models.lpips import LPIPS
    from hdit_cli.recipe import load_recipe

    AcceleratorState._reset_state(reset_partial_state=True)
    wanted = recipe_of("kl-vae", task={"perceptual_weight": 0.5})
    with pytest.raises(UsageError, match="names no file of LPIPS"):
        train(tmp_path / "run", wanted, data=data, watch=lambda event: None)
    torch.manual_seed(0)
    weights = {name: tensor.abs() if "lin" in name else tensor for name, tensor in LPIPS().state_dict().items()}
    for name in ("a", "b"):
        lpips_file.write(tmp_path / f"{name}.safetensors", weights, {"vgg16": name * 64, "heads": "1" * 64})
    told = []

    def with_file(name, steps):
        task = {"perceptual_weight": 0.5, "perceptual": str(tmp_path / f"{name}.safetensors")}
        recipe = recipe_of("kl-vae", task=task, steps=steps)
        train(tmp_path / "run", recipe, data=data, watch=lambda event: told.append(event))
        return recipe

    first = with_file("a", 2)
    logged = [event.values for event in told if isinstance(event, events.Logged)]
    parts = logged[0]["l1"] + 0.5 * logged[0]["lpips"]
    assert logged[0]["loss"] > parts > 0 and first.without_files().task.perceptual == ""
    assert load_recipe(str(tmp_path / "run" / "recipe.toml")).task.perceptual == ""  # a run may have been received
    with pytest.raises(UsageError, match="another file"):
        with_file("b", 4)
    with_file("a", 4)


def test_whole_is_accumulated():
    """Of a Gaussian without a critic: batch statistics and the critic's balance are those of a micro-batch."""
    task = made("kl-vae")
    losses = task(drawn(task)).loss
    for piece in (range(3), range(3, 8)):
        torch.testing.assert_close(task(drawn(task, index=piece)).loss, losses[list(piece)])


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("vq-vae", {}),
        ("kl-vae", {}),
        pytest.param("vq-vae", {"precision": "bf16", "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("kl-vae", {"precision": "bf16", "accumulate": 2}, marks=pytest.mark.slow),
    ],
)
def test_resumed_is_unbroken_with_a_critic(kind, changes, data, tmp_path):  # noqa: F811
    recipe = recipe_of(kind, task=CRITIC, **changes)

    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Stepped) and event.step == 3:
            raise Cut

    train(tmp_path / "whole", recipe, data=data, watch=lambda event: None)
    with pytest.raises(Cut):
        train(tmp_path / "cut", recipe, data=data, watch=stop)
    train(tmp_path / "cut", recipe, data=data, watch=lambda event: None)
    found = digests(tmp_path / "cut")
    assert found == digests(tmp_path / "whole")
    beside = {"critic", "codebook"} if kind == "vq-vae" else {"critic"}
    assert {name.split("beside-")[1].split(".")[0] for name in found if "beside-" in name} == beside


@pytest.mark.slow
@every_kind
def test_two_processes_come_to_the_weights_of_one(kind, data, tmp_path):  # noqa: F811
    from safetensors.torch import load_file

    recipe = recipe_of(
        kind, precision="fp64"
    )  # a bias of keys has no gradient but rounding, of which AdamW makes whole steps
    (tmp_path / "codec.toml").write_text(recipe.to_toml())
    train(tmp_path / "one", recipe, data=data, watch=lambda event: None)
    words = ["train", "codec.toml", "--data", str(data), "--run", "two", "--processes", "2", "--oversubscribe"]
    found = subprocess.run(
        [sys.executable, "-m", "hdit_cli", *words],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    parts = [
        "ckpt.safetensors",
        *(["checkpoints/step-00000004/beside-codebook.safetensors"] if kind == "vq-vae" else []),
    ]
    for part in parts:
        one, two = (load_file(tmp_path / name / part) for name in ("one", "two"))
        assert all(torch.allclose(one[name], two[name], rtol=1e-6, atol=1e-8) for name in one), part


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):  # noqa: F811
    """A run of a tokenizer, four steps, validated and drawn."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("codec") / "run"
    recipe = recipe_of("vq-vae", sample_every=2).model_copy()
    recipe = Recipe.from_dict(
        {**recipe.to_dict(), "validation": {"every": 2, "path": str(held_out_of(data, run.parent))}, "sample": {"n": 6}}
    )
    train(run, recipe, data=data, watch=lambda event: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


def held_out_of(data, root):  # noqa: F811
    from PIL import Image

    from hdit_cli.data.prepare import PrepareOptions, prepare

    (root / "more").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "more" / f"{i}.png")
    prepare(root / "more", out=root / "held", options=PrepareOptions(size=(16, 16)), workers=1)
    return root / "held"


def test_what_a_run_tells_and_draws(trained):
    lines = [json.loads(line) for line in (trained / "validation.jsonl").read_text().splitlines()]
    assert {(line["weights"], line["split"], line["n"]) for line in lines} == {
        (weights, split, 5) for weights in ("raw", "ema") for split in ("held-out", "training")
    }
    for line in lines:
        assert 0 < line["psnr"] < 30 and line["swd"] > 0 and 0 < line["codes_used"] <= 1 and line["perplexity"] >= 1
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["l1"] < logged[0]["loss"] and logged[0]["loss_by_sigma"] == []
    with Image.open(trained / "samples" / "step-00000004-ema.png") as grid:
        assert grid.width > 2 * 64  # each picture, and its reconstruction beside it


def test_a_trained_codec_is_a_codec_and_makes_no_pictures(trained, data, tmp_path):  # noqa: F811
    import hdit_cli
    from hdit_cli.engine.scoring.evaluate import evaluate
    from hdit_cli.engine.scoring.request import Request
    from hdit_cli.tasks.sampling import Sampling

    codec, model = hdit_cli.load_codec(trained / "ckpt.safetensors"), hdit_cli.load(trained)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    found = codec.encode(pixels)
    assert found.shape == (2, 8, 8) and found.dtype == torch.int64 and codec.vocabulary == 24
    with torch.no_grad():
        wanted = model.network.through(pixels, None).picture.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(found), wanted, rtol=1e-4, atol=1e-4)
    for sampled in (lambda: hdit_cli.generate(model), lambda: model.task.check(Sampling())):
        with pytest.raises(UsageError, match="makes no pictures of its own"):
            sampled()
    asked = Request(trained, metrics=("swd",), reference=data, allow_small=True)
    assert evaluate(asked, on_progress=lambda *done: None).scores[0].value > 0
    with pytest.raises(UsageError, match="nothing is sampled"):
        evaluate(replace(asked, sampling={"steps": 4}), on_progress=lambda *done: None)


def test_latents_that_nobody_measured_train_no_network(data, tmp_path):  # noqa: F811
    from hdit_cli.data.reader import ShardReader
    from hdit_cli.engine.training.setup import check_fit

    AcceleratorState._reset_state(reset_partial_state=True)
    train(tmp_path / "run", recipe_of("kl-vae", steps=1), data=data, watch=lambda event: None)
    path = tmp_path / "run" / "ckpt.safetensors"
    model = {"type": "dit", "size": [8, 8], "channels": 3, "patch": 2, "depth": 1, "width": 24, "heads": 2}
    latent = Recipe.from_dict({"model": model, "codec": {"path": str(path)}})
    with pytest.raises(UsageError, match="nobody has measured") as error:
        check_fit(latent, ShardReader(data))
    assert "hdit encode" in error.value.hint
    AcceleratorState._reset_state(reset_partial_state=True)
    again = recipe_of("kl-vae", steps=1)
    train(tmp_path / "again", again, data=data, watch=lambda event: None, init=path)


@pytest.mark.parametrize(
    ("kind", "task", "told"),
    [
        ("kl-vae", {"codebook": "gradient"}, "acts on nothing"),
        ("vq-vae", {"kl": 0.1}, "acts on nothing"),
        ("kl-vae", {"gan_start": 5}, "gan_weight is 0"),
        ("kl-vae", {"perceptual": "x"}, "perceptual_weight is 0"),
        ("vq-vae", {"codebook": "gradient", "restart_every": 7}, "acts on nothing"),
        ("kl-vae", {"gan_weight": 0.1, "critic_layers": 4}, "nothing is left to judge"),
    ],
)
def test_keys_that_would_act_on_nothing_are_told(kind, task, told):
    with pytest.raises(UsageError) as error:
        Recipe.from_dict({"model": KINDS[kind], "task": {"type": "autoencode", **task}})
    assert told in f"{error.value.message} {error.value.hint}"
    with pytest.raises(UsageError):
        Recipe.from_dict({"model": KINDS[kind], "task": {"type": "autoencode"}, "train": {"shard": True}})
    with pytest.raises(UsageError):
        Recipe.from_dict({"model": KINDS[kind]})  # an autoencoder under the task of another network


@pytest.mark.parametrize("codec", [{"path": "codec.safetensors"}, {"sample": False}])
def test_an_autoencoder_learns_pictures_and_not_what_a_codec_made_of_them(codec):
    with pytest.raises(UsageError, match="an autoencoder learns pictures"):
        Recipe.from_dict({**recipe_of("kl-vae").to_dict(), "codec": codec})


@pytest.mark.long
@every_kind
def test_compiled_losses_are_the_eager_ones(kind):
    """By the compiler that runs use: forward and backward, while no critic judges."""
    torch._dynamo.reset()
    task = made(kind, dtype=torch.float32)
    batch = drawn(task, dtype=torch.float32)
    task(batch).loss.mean().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in task.named_parameters() if parameter.grad is not None}
    task.zero_grad()
    task.losses = torch.compile(task.losses, fullgraph=True)
    task(batch).loss.mean().backward()
    for name, gradient in wanted.items():
        torch.testing.assert_close(dict(task.named_parameters())[name].grad, gradient, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_what_three_processes_do_before_their_first_step_leaves_no_trace():
    """They take one backward pass of a grey picture, which is to count in no codebook, statistics or critic."""
    from hdit_cli.engine.checking.steps import Step

    AcceleratorState._reset_state(reset_partial_state=True)
    stepper = Step(recipe_of("vq-vae", task={**CRITIC, "gan_start": 0}), precision="fp32", device=None).stepper
    task = stepper.state.model.task
    before = {name: value.clone() for name, value in task.state_dict().items()}
    stepper._settle()
    assert not task._seen and all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
