"""Dropout whose masks belong to images: a function of the key, the module and the place, of nothing else."""

import pytest
import torch
from torch import nn

from hdit_cli.models.layers import Dropout, seed_dropout


def dropped(keys, *, p=0.25, number=0, shape=(16, 16, 8), dtype=torch.float32):
    module = Dropout(p).train()
    network = nn.ModuleList([Dropout(0.1) for _ in range(number)] + [module])
    keys = torch.tensor(keys, dtype=torch.int32)
    seed_dropout(network, keys)
    return module(torch.ones(len(keys), *shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_p_is_zero_and_the_mean_is_kept(p, dtype):
    out = dropped(range(50), p=p, dtype=dtype).double()
    deviation = (p * (1 - p) / out.numel()) ** 0.5
    assert abs((out == 0).double().mean() - p) < 4 * deviation
    kept = out[out != 0]
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0
    )


def test_a_mask_does_not_depend_on_the_batch():
    whole = dropped([3, -7, 2**31 - 1, 3])
    for i, key in enumerate([3, -7, 2**31 - 1]):
        assert torch.equal(dropped([key])[0], whole[i])
    assert torch.equal(whole[0], whole[3])


@pytest.mark.parametrize("shift", [0, 1, 8, 128])
def test_images_modules_and_places_are_independent(shift):
    """Two masks, or a mask and itself moved, agree as often as independent ones do: (1-p)^2 + p^2."""
    ours = dropped(range(200), p=0.5)
    others = [
        dropped(range(1, 201), p=0.5),
        dropped(range(200), p=0.5, number=1),
        dropped([k ^ 2**31 - 1 for k in range(200)], p=0.5),
    ]
    if shift:
        others = [ours]
    for other in others:
        a, b = ours.flatten(1) == 0, other.flatten(1).roll(shift, dims=1) == 0
        agree = (a == b).double().mean()
        assert abs(agree - 0.5) < 4 * 0.5 / a.numel() ** 0.5


def test_every_place_is_dropped_as_often_as_another():
    counts = (dropped(range(2000), p=0.5, shape=(64,)) == 0).double().sum(0)
    assert ((counts - 1000).abs() < 5 * 500**0.5).all()


def test_gradients_are_those_of_the_mask():
    module = Dropout(0.3).train()
    seed_dropout(module, torch.tensor([5, 6], dtype=torch.int32))
    x = torch.randn(2, 40, requires_grad=True)
    module(x).sum().backward()
    assert torch.equal(x.grad, module(torch.ones_like(x)))


def test_evaluation_and_p_0_change_nothing():
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_without_keys_it_is_torchs_own():
    x = torch.ones(4, 50)
    torch.manual_seed(0)
    ours = Dropout(0.5).train()(x)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.functional.dropout(x, 0.5))
