"""What holds for every network under every task: the catalog's own combinations, each block of a network for itself."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from hdit_cli import catalog
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.sampling.generate import stream
from hdit_cli.engine.training.loop import train
from hdit_cli.recipe import Recipe
from hdit_cli.recipe.network import sections
from hdit_cli.tasks.sampling import Sampling
from hdit_cli.tasks.task import Place, guided

CLASSES = 2
OUTER = {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3}
DIT = {"size": [16, 16], "patch": 4, "depth": 2, "width": 24, "heads": 3, "classes": CLASSES}
NETWORKS = {
    "hdit": {
        "type": "hdit",
        "size": [16, 16],
        "patch": 2,
        "levels": [OUTER, {"depth": 1, "width": 32, "head_dim": 16, "attention": "global"}],
        "mapping_width": 16,
        "mapping_depth": 1,
        "classes": CLASSES,
    },
    **{
        f"dit {block}": {**DIT, "type": "dit", "block": block}
        for block in ("adaln-zero", "adaln", "in-context", "cross-attention")
    },
}
TASKS = {"denoise": {}, "ddpm": {"sample": {"sampler": "ddim", "n": 4, "steps": 3, "batch_size": 4}}}
CASES = [
    (network, task)
    for network, section in NETWORKS.items()
    for task in TASKS
    if task == "denoise" or sections()[section["type"]].told == "timestep"
]
QUICK = [("hdit", "denoise"), ("dit adaln-zero", "ddpm")]

every_case = pytest.mark.parametrize("case", CASES, ids=" ".join)
some_slow = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=" ".join(case), marks=[] if case == QUICK[1] else pytest.mark.slow) for case in CASES],
)


def test_the_cases_are_all_of_the_catalog():
    assert {section["type"] for section in NETWORKS.values()} | {"paella"} == set(catalog.names("model"))
    assert {*TASKS, "autoencode", "tokens"} == set(
        catalog.names("task")
    )  # whose laws are in test_autoencode and test_token_laws


def recipe_of(case, **changes):
    network, task = case
    base = {
        "name": "law",
        "data": {"workers": 0},
        "model": NETWORKS[network],
        "task": {"type": task},
        "train": {
            "steps": 4, "batch_size": 8, "precision": "fp32", "deterministic": True, "save_every": 2, "sample_every": 0,
            "log_every": 1,
        },
        "optimizer": {"lr": 2e-3, "warmup": 1},
        "validation": {"every": 0},
        "sample": {"n": 4, "steps": 3, "batch_size": 4},
        **TASKS[task],
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        base[section] = {**base[section], name: value} if name else value
    return Recipe.from_dict(base)


def made(case, *, shaken=True, dtype=torch.float64, **changes):
    """A task around a new network, its weights moved from where they start."""
    torch.manual_seed(0)
    recipe = recipe_of(case, **changes)
    network = build_network(recipe, classes=CLASSES)
    if shaken:
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return build_task(network.to(dtype), recipe), recipe


def drawn(task, *, index=range(8), batch=8, dtype=torch.float64):
    index = np.arange(8)[list(index)]
    x0 = torch.linspace(-1, 1, 8 * 3 * 256, dtype=dtype).view(8, 3, 16, 16).roll(5, 2)[torch.from_numpy(index)]
    label = torch.from_numpy(index % (CLASSES + 1))
    return task.draw(x0, label, Place(seed=3, index=index, first=0, batch=batch), told={})


# The network


@every_case
def test_a_new_network_says_nothing(case):
    task, _ = made(case, shaken=False)
    out = task.network(torch.randn(2, 3, 16, 16).double(), torch.tensor([1.0, 30.0]).double())
    assert not out.any()


@every_case
def test_it_tells_of_itself(case):
    task, recipe = made(case)
    network, parameters = task.network, dict(task.network.named_parameters())
    assert network.fits(16, 16) == "" and network.macs(16, 16) > 0
    height, width = network.unit
    assert recipe.model.unit == (height, width)
    assert network.fits(16 + height, 16 + width) == "" and network.fits(17, 16).count(".") <= 1 < len(
        network.fits(17, 16)
    )
    assert network.matrices()
    for name, rows in network.matrices().items():
        assert sum(rows) == len(parameters[name]) and parameters[name].ndim == 2, name
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert set(network.parameter_groups()) == trained


@every_case
def test_a_gradient_reaches_every_weight_and_every_condition_acts(case):
    task, _ = made(case)
    batch = drawn(task)
    task(batch).loss.mean().backward()
    silent = [
        name for name, p in task.network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    told = {"aug_in_proj.weight", "aug_emb.weight"} & set(silent)  # zeros are told where nothing is done to pictures
    assert set(silent) == told
    x, level = batch.x0, torch.full((8,), 20.0).double()
    for name, condition in task.network.wants().items():
        if name != "label":
            continue
        nothing = condition.none_like(batch.conditions["label"])
        first, second = (task.network(x, level, **{name: value}) for value in (nothing, torch.zeros_like(nothing)))
        assert not torch.equal(first, second)
        assert torch.equal(first, task.network(x, level))  # left out is "none"


# The task


@every_case
def test_a_batch_is_the_sum_of_its_pieces(case):
    """Whole = accumulated = shared: draws are functions of the place in the run, and the loss is each image's own."""
    task, _ = made(case)
    whole = drawn(task)
    losses = task(whole).loss
    losses.mean().backward()
    wanted = [p.grad.clone() for p in task.parameters() if p.grad is not None]
    task.zero_grad()
    for piece in (range(3), range(3, 8)):
        part = drawn(task, index=piece)
        for ours, theirs in zip(part[:3], whole[:3], strict=True):
            assert torch.equal(ours, theirs[list(piece)])
        found = task(part).loss
        torch.testing.assert_close(found, losses[list(piece)], rtol=1e-9, atol=1e-12)
        (found.sum() / 8).backward()
    found = [p.grad for p in task.parameters() if p.grad is not None]
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


@every_case
def test_recomputing_changes_no_gradient(case):
    task, recipe = made(case)
    network = case[0]
    section = NETWORKS[network]
    again = (
        {"levels": [{**level, "checkpoint": True} for level in section["levels"]]}
        if "levels" in section
        else {"checkpoint": True}
    )
    other = recipe_of(case, model={**section, **again})
    assert other.model.recomputes and not recipe.model.recomputes
    twin = build_task(build_network(other, classes=CLASSES).double(), other)
    twin.load_state_dict(task.state_dict())
    for each in (task, twin):
        each.train()
        each(drawn(each)).loss.mean().backward()
    for ours, theirs in zip(twin.parameters(), task.parameters(), strict=True):
        assert (ours.grad is None and theirs.grad is None) or torch.allclose(
            ours.grad, theirs.grad, rtol=1e-10, atol=1e-13
        )


@every_case
def test_guidance_at_one_is_off(case):
    task, _ = made(case)
    x, label = torch.randn(2, 3, 16, 16).double(), torch.tensor([0, 1])
    level = torch.tensor([2.0, 2.0]).double()
    plain = task.denoiser(x, level, label=label)
    base = Sampling()
    for cfg, same in ((1.0, True), (3.0, False)):
        call = guided(task.denoiser, task.network, {"label": label}, replace(base, cfg=cfg), interval=None)
        assert torch.equal(call(x, level), plain) == same
    one = guided(task.denoiser, task.network, {"label": label}, replace(base, cfg=3.0, cfg_channels=1), interval=None)(
        x, level
    )
    assert torch.allclose(one[:, 1:], plain[:, 1:]) and not torch.allclose(one[:, 0], plain[:, 0])


@every_case
def test_samples_are_functions_of_seed_and_number(case):
    task, recipe = made(case, dtype=torch.float32)
    model = Model(task.eval(), recipe.to_dict(), ["a", "b"])
    samplers = ["dpmpp-3m-sde"] + (["ddpm", "ddim"] if case[1] == "ddpm" else [])
    labels = torch.tensor([0, 1, 0, 1])
    for sampler in samplers:
        one, three = (
            {
                i: image
                for batch, images in stream(
                    model,
                    indices=range(4),
                    labels=labels,
                    sampling=Sampling(seed=5, steps=3, sampler=sampler, batch_size=size, cfg=2.0),
                )
                for i, image in zip(batch, images.int(), strict=True)
            }
            for size in (1, 3)
        )
        assert all((one[i] - three[i]).abs().max() <= 1 for i in range(4))
        assert (one[0] - one[2]).abs().max() > 1  # of one class


@pytest.mark.slow
@every_case
def test_compiled_losses_are_the_eager_ones(case):
    torch._dynamo.reset()
    task, _ = made(case)
    batch = drawn(task)
    wanted = task(batch).loss
    task.losses = torch.compile(task.losses, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(task(batch).loss, wanted, rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()


@some_slow
def test_torch_export_takes_the_denoiser(case, tmp_path):
    from hdit_cli.engine.sharing.export import to_safetensors, to_torch_export

    task, recipe = made(case, dtype=torch.float32)
    model = Model(task.eval().requires_grad_(False), recipe.to_dict(), ["a", "b"])
    assert to_safetensors(model, tmp_path / "a.safetensors", dtype="fp32").error == 0
    assert to_torch_export(model, tmp_path / "a.pt2", dtype="fp32").error < 1e-4


# The run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 pictures of 16x16 in two classes, prepared."""
    from PIL import Image

    from hdit_cli.data.prepare import PrepareOptions, prepare

    root = tmp_path_factory.mktemp("set")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "source" / name).mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "source" / name / f"{i}.png")
    prepare(root / "source", out=root / "data", options=PrepareOptions(size=(16, 16)), workers=1)
    return root / "data"


def digests(folder):
    newest = checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    wanted = [folder / "metrics.jsonl", folder / "ckpt.safetensors"]
    wanted += sorted((folder / "checkpoints" / newest).glob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in wanted}


SETTINGS = {
    "plain": {},
    "accumulated bf16": {"train__precision": "bf16", "train__accumulate": 2},
}
RUNS = [
    pytest.param(case, SETTINGS[name], id=f"{' '.join(case)} {name}", marks=[] if quick else pytest.mark.slow)
    for case in CASES
    for name in SETTINGS
    for quick in [case in QUICK and name == "plain"]
]


@pytest.fixture
def afresh():
    """accelerate takes the precision of the first run for all of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(("case", "changes"), RUNS)
def test_resumed_is_unbroken(case, changes, data, tmp_path):
    recipe = recipe_of(case, **changes)

    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Stepped) and event.step == 3:
            raise Cut

    train(tmp_path / "whole", recipe, data=data, watch=lambda event: None)
    with pytest.raises(Cut):
        train(tmp_path / "cut", recipe, data=data, watch=stop)
    train(tmp_path / "cut", recipe, data=data, watch=lambda event: None)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.slow
@every_case
def test_two_processes_come_to_the_weights_of_one(case, data, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "law.toml").write_text(recipe_of(case).to_toml())
    train(tmp_path / "one", recipe_of(case), data=data, watch=lambda event: None)
    words = ["train", "law.toml", "--data", str(data), "--run", "two", "--processes", "2", "--oversubscribe"]
    found = subprocess.run(
        [sys.executable, "-m", "hdit_cli", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    one, two = (load_file(tmp_path / name / "ckpt.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)
