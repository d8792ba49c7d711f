"""What a DiT's ends become for patches of another side: the laws of the top of `models/dit_growth.py`."""

import pytest
import torch
from einops import rearrange, repeat

from hdit_cli.models.dit_blocks import PatchEmbed
from hdit_cli.models.dit_growth import area, resized_into, resized_out

PAIRS = [(2, 4), (4, 2), (2, 8), (8, 2), (1, 3), (3, 1), (2, 3), (3, 2), (4, 6), (6, 4), (5, 8), (4, 4)]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_resizing_keeps_constants_both_ways(old, new):
    matrix = area(old, new)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(0), torch.full((old,), new / old, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.pinv(matrix).sum(1), torch.ones(old, dtype=torch.float64))


def test_each_pixel_is_the_mean_of_what_lies_under_it():
    thirds = torch.tensor([[1, 0], [0.5, 0.5], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(area(2, 3), thirds)
    torch.testing.assert_close(area(4, 2) * 2, torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64))


def embedding(patch, weight):
    module = PatchEmbed(weight.shape[1], weight.shape[0], patch=patch).double()
    module.load_state_dict({"proj.weight": weight, "proj.bias": torch.zeros(weight.shape[0])})
    return module


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_tokens_are_equal_where_the_picture_is_constant_in_each_patch(old, new):
    torch.manual_seed(0)
    weight = torch.randn(8, 3, old, old, dtype=torch.float64)
    colours = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def tokens(patch, values):
        return embedding(patch, values)(repeat(colours, "n c h w -> n c (h a) (w b)", a=patch, b=patch))

    torch.testing.assert_close(tokens(new, resized_into(weight, patch=new)), tokens(old, weight))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_no_other_patches_fit_better(old, new):
    """The error over white patches, (B^T x B has the covariance of white x seen through B), has no slope at the solution."""
    torch.manual_seed(0)
    forth = torch.kron(area(old, new), area(old, new))  # (p' p', p p)
    weight = torch.randn(1, 1, old, old, dtype=torch.float64)
    found = resized_into(weight, patch=new).flatten().requires_grad_()
    (weight.flatten() - forth.T @ found).square().sum().backward()
    assert found.grad is not None and found.grad.abs().max() < 1e-12
    if new >= old:  # tokens of resized pictures are then the same, whatever is in them
        torch.testing.assert_close(forth.T @ found.detach(), weight.flatten())


@pytest.mark.parametrize(("old", "new"), [(2, 4), (2, 3), (4, 5)])
def test_to_larger_patches_and_back_is_the_same(old, new):
    weight, rows = torch.randn(8, 3, old, old), torch.randn(old * old * 6, 8)
    larger = resized_out(rows, patch=(old, new), channels=3, kinds=2)
    if new % old == 0:
        torch.testing.assert_close(resized_into(resized_into(weight, patch=new), patch=old).float(), weight)
        torch.testing.assert_close(resized_out(larger, patch=(new, old), channels=3, kinds=2).float(), rows)
    picture, seen = (
        rearrange(values, "(a b c) n -> n c a b", a=side, c=6) for values, side in ((rows.double(), old), (larger, new))
    )
    torch.testing.assert_close(seen, area(old, new) @ picture @ area(old, new).T)
    torch.testing.assert_close(seen.mean((-2, -1)), picture.mean((-2, -1)))
