import pytest
import torch

from hdit_cli.data import catmull_rom
from hdit_cli.data.catmull_rom import is_straight, resample

SHAPES = [(1, 3, 32, 32), (5, 1, 9, 11), (2, 4, 2, 2), (3, 2, 2, 7), (2, 3, 40, 25)]


def _case(shape, *, straight, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    inverse = torch.eye(3, dtype=torch.float64).repeat(len(x), 1, 1)
    inverse[:, :2] = torch.randn(len(x), 2, 3, generator=generator, dtype=torch.float64)
    inverse[:, :2, 2] *= 3 * max(shape)  # over the edges, by more than one mirror image
    if straight:
        inverse[:, 0, 1] = inverse[:, 1, 0] = 0
    return x, inverse


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cpu_and_an_accelerator_compute_the_same(shape, straight):
    x, inverse = _case(shape, straight=straight)
    exact = catmull_rom._by_grid(x.double(), inverse)
    assert torch.allclose(resample(x, inverse).double(), exact, atol=1e-6)
    assert torch.allclose(catmull_rom._by_grid(x, inverse).double(), exact, atol=1e-4)  # float32 places


@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_of_a_cpu_agree_where_both_apply(shape):
    x, inverse = _case(shape, straight=True)
    assert is_straight(inverse).all()
    assert torch.allclose(catmull_rom._straight(x, inverse), catmull_rom._anywhere(x, inverse), atol=1e-6)


def test_an_image_does_not_depend_on_those_beside_it():
    x, inverse = _case((4, 3, 16, 20), straight=False)
    whole = resample(x, inverse)
    for n in range(4):
        assert torch.allclose(resample(x[n : n + 1], inverse[n : n + 1])[0], whole[n], atol=1e-6)


def test_a_gradient_reaches_the_image():
    x, inverse = _case((2, 1, 4, 5), straight=False, dtype=torch.float64)
    resample(x.requires_grad_(), inverse).sum().backward()
    plain = x.detach().clone().requires_grad_()
    catmull_rom._by_grid(plain, inverse).sum().backward()
    assert torch.allclose(x.grad, plain.grad, atol=1e-5)
