"""The formula of a step's peak memory against what tensors really took."""

import pytest
import torch

from hdit_cli import catalog
from hdit_cli.diffusion.denoiser import Denoiser
from hdit_cli.diffusion.weightings import soft_min_snr
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.models import memory
from hdit_cli.models.attention import strips
from hdit_cli.models.attention.request import Request
from hdit_cli.models.hdit import HDiT, Level

WITHIN = 0.2
BF16, FP32, FP64 = (torch.float32, True), (torch.float32, False), (torch.float64, False)


def measured_and_estimated(levels, *, images, size, precision=FP32, patch=4):
    """Bytes at the fullest moment of forward and backward, by measurement and by the formula."""
    torch.manual_seed(0)
    dtype, autocast = precision
    network = HDiT(levels, patch=(patch, patch), mapping_width=64, mapping_depth=1, mapping_d_ff=192).to(dtype)
    loss_of = Denoiser(network, sigma_data=0.5, weighting=soft_min_snr).train().loss

    def step():
        x0, sigma = torch.randn(images, 3, *size, dtype=dtype), torch.rand(images, dtype=dtype) + 0.1
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(x0, torch.randn_like(x0), sigma).mean()
        del x0
        loss.backward()

    with Peak(torch.device("cpu")) as peak:
        step()
    found = memory.peak(network, memory.Setting(images, size, weights=dtype, autocast=autocast))
    return peak.bytes, found.activations + found.gradients


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
@pytest.mark.parametrize("precision", [BF16, FP32], ids=["bf16", "fp32"])
def test_an_hourglass(flags, precision):
    real, formula = measured_and_estimated(hourglass(*flags), images=2, size=(48, 32), precision=precision, patch=2)
    assert formula == pytest.approx(real, rel=WITHIN)


KINDS = {
    "neighborhood": Level(2, 64, 192, attention="neighborhood", head_dim=32, kernel=7),
    "narrow heads": Level(2, 64, 128, attention="neighborhood", head_dim=8, kernel=3),
    "odd sides": Level(1, 64, 128, attention="neighborhood", head_dim=16, kernel=4, dropout=0.2),
    "global": Level(2, 64, 192, attention="global", head_dim=32),
    "windows": Level(2, 64, 192, attention="shifted-window", head_dim=32, window=5, dropout=0.1),
    "none": Level(3, 64, 256, attention="none"),
    "many weights": Level(4, 256, 768, attention="global", head_dim=64),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "images"), [(BF16, 2), (FP32, 1), (FP32, 6), (FP64, 2)], ids=["bf16-2", "fp32-1", "fp32-6", "fp64-2"]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [False, True], ids=["kept", "again"])
def test_one_level(kind, precision, images, again):
    import dataclasses

    level = dataclasses.replace(KINDS[kind], checkpoint=again)
    real, formula = measured_and_estimated([level], images=images, size=(40, 80), precision=precision)
    assert formula == pytest.approx(real, rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("flags", [(True, False, True), (False, True, False)])
@pytest.mark.parametrize(("images", "size"), [(1, (64, 64)), (16, (16, 16)), (3, (64, 32))])
def test_an_hourglass_in_other_shapes(images, size, flags, precision):
    real, formula = measured_and_estimated(hourglass(*flags), images=images, size=size, precision=precision, patch=1)
    assert formula == pytest.approx(real, rel=WITHIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["strips", "reference"])  # what runs on a CPU
@pytest.mark.parametrize(("height", "width", "kernel"), [(16, 24, 3), (13, 9, 5)])
def test_what_a_backend_keeps(backend, dtype, height, width, kernel):
    q, k, v = (torch.randn(2, height, width, 3, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = strips.plan(height, width, kernel, torch.float32).masks  # one for all images
    given = {t.untyped_storage().data_ptr() for t in (q, k, v, mask)}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    module = catalog.get("attention", backend)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module.attend(q, k, v, kernel=kernel)
    kept[out.untyped_storage().data_ptr()] = out.untyped_storage().nbytes()  # kept by what reads it
    found = sum(size for place, size in kept.items() if place not in given) / dtype.itemsize / (2 * height * width * 3)
    held = module.held(Request("cpu", dtype, 16, kernel), height=height, width=width)
    assert held.kept == pytest.approx(found, rel=WITHIN)


def test_the_peak_of_a_block_of_code():
    with Peak(torch.device("cpu")) as peak:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b[10:] * 2  # noqa: F841 - held
        b.add_(1)  # nothing new
    assert peak.bytes == 4 * (1000 + 1000)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "hourglass", "hourglass that computes again"])
def test_a_forward_pass_alone(kind, dtype):
    levels = [KINDS[kind]] if kind in KINDS else hourglass(*(("again" in kind,) * 3))
    network = HDiT(levels, patch=(2, 2), mapping_width=64, mapping_depth=1, mapping_d_ff=192).to(dtype)
    denoiser = Denoiser(network, sigma_data=0.5, weighting=soft_min_snr).eval()
    x, sigma = torch.randn(3, 3, 40, 80, dtype=dtype), torch.ones(3, dtype=dtype)
    if kind not in KINDS:
        x = x[:, :, :32, :32].contiguous()
    with torch.inference_mode():
        denoiser(x, sigma)  # makes masks that are kept
        with Peak(torch.device("cpu")) as real:
            denoiser(x, sigma)
    setting = memory.Setting(3, (x.shape[2], x.shape[3]), weights=dtype, inference=True)
    assert 0.8 < memory.inference_peak(network, setting) / real.bytes < 1.25
