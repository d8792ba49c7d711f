import numpy as np
import pytest
import torch

from hdit_cli.data import augment
from hdit_cli.data.augment import draw, matrices, warp

pytest.importorskip("numba", reason="numba is not installed")

SHAPES = [(3, 32, 32), (1, 9, 11), (4, 2, 2), (2, 2, 7), (3, 40, 25)]


def _case(shape, *, count=64):
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    return x, matrices(draw(np.arange(count), seed=1, probability=0.3), height=shape[1], width=shape[2])


def test_it_is_what_torch_computes():
    for shape in SHAPES:
        x, matrix = _case(shape)
        x *= 2
        x -= 1
        got = warp(x, matrix)
        assert got.dtype == torch.float32 and got.is_contiguous()
        assert torch.allclose(got.double(), warp(x.double(), matrix), atol=2e-6, rtol=0)


@pytest.mark.slow
def test_far_over_the_edges():
    x, matrix = _case((2, 6, 5), count=8)
    matrix[:, :2, 2] *= torch.tensor([300.0, -70.0])
    assert torch.allclose(warp(x, matrix).double(), warp(x.double(), matrix), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_any_layout_is_read_and_left_alone():
    x, matrix = _case((3, 12, 17))
    wide = x.contiguous(memory_format=torch.channels_last)
    before = wide.clone()
    assert torch.equal(warp(wide, matrix), warp(x, matrix))
    assert torch.equal(wide, before)
    part = torch.zeros(64, 3, 12, 40)[..., 5:22]
    part.copy_(x)
    assert torch.equal(warp(part, matrix), warp(x, matrix))


@pytest.mark.slow
def test_pixels_do_not_depend_on_the_batch():
    x, matrix = _case((3, 20, 20))
    whole = warp(x, matrix)
    assert all(torch.equal(warp(x[n : n + 1], matrix[n : n + 1])[0], whole[n]) for n in range(len(x)))


@pytest.mark.slow
def test_nan_stays_where_it_is_read():
    x, matrix = _case((1, 16, 16), count=16)
    x[:, 0, 8, 8] = torch.nan
    got, expected = warp(x, matrix), warp(x.double(), matrix)
    assert torch.equal(got.isnan(), expected.isnan()) and expected.isnan().any()


def test_without_numba_torch_does_it(monkeypatch):
    x, matrix = _case((3, 16, 16))
    monkeypatch.setattr(augment, "has_compiler", lambda: False)
    monkeypatch.setattr(augment, "_warp_compiled", None)
    assert torch.allclose(warp(x, matrix).double(), warp(x.double(), matrix), atol=2e-6, rtol=0)
