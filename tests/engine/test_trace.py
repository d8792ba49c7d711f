"""Memory that is followed on tensors without values, against what real tensors took."""

import dataclasses
import time

import pytest
import torch
from tiny_run import tiny_recipe
from torch import nn

from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.memory.out_of_memory import in_training
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.memory.trace import ByImages, follow, lower_precision
from hdit_cli.engine.model import build_task
from hdit_cli.models.attention import dispatch, tiled
from hdit_cli.models.dit import BLOCKS, DiT
from hdit_cli.models.hdit import HDiT, Level
from hdit_cli.models.kept import have_values
from hdit_cli.recipe import load_recipe
from hdit_cli.tasks.ddpm import DDPM

WITHIN = 0.2  # what is promised: masks of neighborhoods, made once and kept, are followed and not measured again
SLOW = pytest.mark.slow
BF16, FP32, FP64 = (torch.float32, True), (torch.float32, False), (torch.float64, False)


def hdit(levels, *, patch=4):
    network = HDiT(levels, patch=(patch, patch), mapping_width=64, mapping_depth=1, mapping_d_ff=192)
    return build_task(network, tiny_recipe())


def dit(block, *, size, patch, again, variance):
    network = DiT(
        size=size, patch=patch, depth=3, width=96, heads=4, classes=7, channels=3, block=block, checkpoint=again,
        learn_variance=variance,
    )  # fmt: skip
    if not variance:
        return build_task(network, tiny_recipe())
    return DDPM(network, timesteps=1000, learned_variance=True, clip=False, class_dropout=0.1)


def step_of(task, *, images, size, precision=FP32):
    """A task that goes forward and backward, and what it is called with: the same for real tensors and outlines."""
    dtype, autocast = precision

    def step(task):
        drawn = task.blank(images, size, like=torch.zeros((), dtype=dtype), told={})
        drawn = drawn._replace(x0=torch.randn_like(drawn.x0), noise=torch.randn_like(drawn.x0))
        with lower_precision(autocast):
            losses = task(drawn)
        del drawn
        losses.loss.mean().backward()

    return task.to(dtype).train(), step


def measured_and_followed(task, **options):
    """Bytes at the fullest moment of forward and backward, by measurement and by following them."""
    torch.manual_seed(0)
    task, step = step_of(task, **options)
    history = follow(task, step, device="cpu")
    with Peak(torch.device("cpu")) as peak:
        step(task)
    gradients = sum(parameter.nbytes for parameter in task.parameters() if parameter.requires_grad)
    assert sum(history.sizes[number] for number in history.gradients) == gradients
    return peak.bytes, history.peak


def hourglass(*flags, dropout=0.1):
    kinds = [
        {"attention": "neighborhood", "kernel": 5},
        {"attention": "shifted-window", "window": 4},
        {"attention": "global", "dropout": dropout},
    ]
    shapes = [(2, 32, 96), (1, 64, 192), (2, 96, 288)]
    return [
        Level(*shape, head_dim=16, checkpoint=flag, **kind)
        for shape, kind, flag in zip(shapes, kinds, flags or (False,) * 3, strict=True)
    ]


@pytest.mark.parametrize("flags", [(False, False, False), (True, False, False), (True, True, True)])
@pytest.mark.parametrize("precision", [pytest.param(BF16, marks=SLOW), FP32], ids=["bf16", "fp32"])
def test_an_hourglass(flags, precision):
    real, found = measured_and_followed(hdit(hourglass(*flags), patch=2), images=2, size=(48, 32), precision=precision)
    assert found == pytest.approx(real, rel=WITHIN)


KINDS = {
    "neighborhood": Level(2, 64, 192, attention="neighborhood", head_dim=32, kernel=7),
    "narrow heads": Level(2, 64, 128, attention="neighborhood", head_dim=8, kernel=3),
    "odd sides": Level(1, 64, 128, attention="neighborhood", head_dim=16, kernel=4, dropout=0.2),
    "global": Level(2, 64, 192, attention="global", head_dim=32),
    "windows": Level(2, 64, 192, attention="shifted-window", head_dim=32, window=5, dropout=0.1),
    "none": Level(3, 64, 256, attention="none"),
    "many weights": Level(4, 256, 768, attention="global", head_dim=64),
}


@SLOW
@pytest.mark.parametrize(
    ("precision", "images"), [(BF16, 2), (FP32, 1), (FP32, 6), (FP64, 2)], ids=["bf16-2", "fp32-1", "fp32-6", "fp64-2"]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [False, True], ids=["kept", "again"])
def test_one_level(kind, precision, images, again):
    level = dataclasses.replace(KINDS[kind], checkpoint=again)
    real, found = measured_and_followed(hdit([level]), images=images, size=(40, 80), precision=precision)
    assert found == pytest.approx(real, rel=WITHIN)


@SLOW
@pytest.mark.parametrize("precision", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("flags", [(True, False, True), (False, True, False)])
@pytest.mark.parametrize(("images", "size"), [(1, (64, 64)), (16, (16, 16)), (3, (64, 32))])
def test_an_hourglass_in_other_shapes(images, size, flags, precision):
    real, found = measured_and_followed(hdit(hourglass(*flags), patch=1), images=images, size=size, precision=precision)
    assert found == pytest.approx(real, rel=WITHIN)


@pytest.mark.parametrize(("precision", "again"), [(BF16, True), (FP32, False)], ids=["bf16-again", "fp32-kept"])
@pytest.mark.parametrize("variance", [True, pytest.param(False, marks=SLOW)], ids=["ddpm", "denoise"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("images", "size", "patch"), [(2, (16, 24), 2), pytest.param(5, (32, 32), 4, marks=SLOW)])
def test_another_backbone_and_task(images, size, patch, block, variance, precision, again):
    task = dit(block, size=size, patch=patch, again=again, variance=variance)
    real, found = measured_and_followed(task, images=images, size=size, precision=precision)
    assert found == pytest.approx(real, rel=0.01)  # no masks that an earlier step made


def test_the_peak_of_a_block_of_code():
    with Peak(torch.device("cpu")) as peak:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b[10:] * 2  # noqa: F841 - held
        b.add_(1)  # nothing new
    assert peak.bytes == 4 * (1000 + 1000)


FEW = ("neighborhood", "windows", "hourglass that computes again")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=SLOW)], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in FEW else SLOW)
        for kind in (*KINDS, "hourglass", "hourglass that computes again")
    ],
)
def test_a_forward_pass_alone(kind, dtype):
    levels = [KINDS[kind]] if kind in KINDS else hourglass(*(("again" in kind,) * 3))
    denoiser = hdit(levels, patch=2).denoiser.to(dtype).eval()
    side = (40, 80) if kind in KINDS else (32, 32)

    def call(denoiser):
        x, sigma = torch.randn(3, 3, *side, dtype=dtype), torch.ones(3, dtype=dtype)
        with torch.no_grad():
            denoiser(x, sigma)

    with Peak(torch.device("cpu")) as real:
        call(denoiser)
    assert follow(denoiser, call, device="cpu").peak == pytest.approx(real.bytes, rel=WITHIN)


# What is there, and what is left behind


def test_following_changes_nothing_that_is_real():
    task = hdit(hourglass(), patch=2)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    task, step = step_of(task, images=1, size=(32, 32))
    follow(task, step, device="cuda")
    assert have_values()
    assert all(parameter.grad is None for parameter in task.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())
    step(task)  # with masks that hold values
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters())


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(device, monkeypatch):
    """The code takes the way that it takes there."""
    seen = set()
    attend = tiled.attend

    def noted(q, k, v, *, kernel):
        seen.add((q.device.type, q.dtype))
        return attend(q, k, v, kernel=kernel)

    monkeypatch.setattr("hdit_cli.models.attention.tiled.attend", noted)
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)  # nothing chosen here is remembered
    for name in ("fused", "flex"):
        monkeypatch.setattr(f"hdit_cli.models.attention.{name}.refuse", lambda request: "not now")
    task, step = step_of(hdit([KINDS["neighborhood"]]), images=2, size=(40, 80), precision=BF16)
    there, here = (follow(task, step, device=name).peak for name in (device, "cpu"))
    assert seen == {(device, torch.bfloat16), ("cpu", torch.bfloat16)}
    assert there == here  # both in plain torch
    task, step = step_of(hdit([KINDS["none"]]), images=2, size=(40, 80), precision=FP32)
    there, here = (follow(task, step, device=name).peak for name in (device, "cpu"))
    assert there > here  # norms and gates are not by hand


@pytest.mark.parametrize("backend", ["natten", "fused", "flex"])
def test_fused_attention_keeps_no_scores(backend, monkeypatch):
    monkeypatch.setattr(dispatch, "choose", dispatch.choose.__wrapped__)  # nothing chosen here is remembered
    for name in ("natten", "fused", "flex"):
        monkeypatch.setattr(
            f"hdit_cli.models.attention.{name}.refuse", lambda request, name=name: "" if name == backend else "not now"
        )
    local = KINDS["neighborhood"]

    def peak(level):
        task, step = step_of(hdit([level]), images=2, size=(64, 64), precision=BF16)
        return follow(task, step, device="cuda").peak

    assert peak(local) == pytest.approx(peak(dataclasses.replace(local, attention="global")), rel=0.05)


def test_any_number_of_images_follows_from_two():
    followed = []

    def history(images):
        followed.append(images)
        task, step = step_of(hdit([KINDS["global"]]), images=images, size=(16, 16), precision=BF16)
        return follow(task, step, device="cpu")

    found = ByImages(history)
    peaks = {images: found(images).peak for images in (2, 5, 16, 3, 1)}
    assert followed == [2, 5, 1]
    assert peaks == {images: history(images).peak for images in peaks}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradients_of_an_earlier_pass_are_there(device):
    recipe = tiny_recipe(train__batch_size=16)
    once = estimate(recipe, images=4, device=device, classes=2)
    again = estimate(tiny_recipe(train__batch_size=16, train__accumulate=4), images=4, device=device, classes=2)
    assert once["gradients"] <= again["gradients"] == again["weights"]
    assert once["total"] <= again["total"] <= once["total"] + once["weights"]


def test_what_is_frozen_has_no_gradient():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.trained = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.kept.requires_grad_(False)

    history = follow(Half(), lambda m: m.trained(m.kept(torch.ones(1, 64))).sum().backward(), device="cpu")
    assert history.fullest()[0] == 64 * 64 * 4


# How long it takes


@SLOW
@pytest.mark.parametrize(("name", "seconds"), [("flowers256", 3), ("imagenet256-557m", 5), ("dit-xl2-256", 5)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_estimate_is_there_at_once(name, seconds, device):
    recipe, start = load_recipe(name), time.process_time()
    assert estimate(recipe, images=recipe.train.batch_size, device=device, classes=10)["total"] > 2**30
    assert time.process_time() - start < seconds


@SLOW
@pytest.mark.parametrize("name", ["flowers256", "imagenet256-557m", "ffhq1024-85m", "dit-xl2-256"])
def test_advice_is_there_soon(name):
    start = time.process_time()
    assert in_training(load_recipe(name)).hint.count("--set") == 3
    assert time.process_time() - start < 10
