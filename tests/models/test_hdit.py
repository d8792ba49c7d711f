"""The network: zeros when new, gradients everywhere, any size its levels divide, its conditions."""

import math

import pytest
import torch

from hdit_cli.models.hdit import HDiT, Level
from hdit_cli.models.layers import AxialRoPE, axial_positions, coarser_positions, rotate

KINDS = ["neighborhood", "global", "shifted-window", "none"]


def make(kind="neighborhood", **options):
    torch.manual_seed(0)
    local = Level(1, 32, 64, attention=kind, head_dim=16, kernel=3, window=4)
    middle = Level(2, 48, 96, attention="global", head_dim=24)
    options = {"mapping_width": 32, "mapping_depth": 1, "mapping_d_ff": 64, "patch": (2, 2)} | options
    return HDiT([local, middle], **options).double()


def stir(network):
    """Random weights everywhere, so that every parameter matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def inputs(height=16, width=24, n=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64), torch.tensor(
        [0.1, 1.0, 30.0]
    ).double()


@pytest.mark.parametrize("kind", KINDS)
def test_new_networks_return_zeros(kind):
    assert torch.equal(make(kind)(*inputs()), torch.zeros(3, 3, 16, 24, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_every_parameter(kind):
    network = stir(make(kind, classes=4, mapping_inputs=5))
    x, sigma = inputs()
    out = network(
        x, sigma, label=torch.tensor([0, 3, 4]), augment=torch.randn(3, 9).double(), mapping=torch.randn(3, 5).double()
    )
    assert out.shape == x.shape
    out.square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("height, width", [(8, 8), (16, 48), (40, 8), (32, 32)])
def test_sizes(height, width):
    network = stir(make("global"))
    x, sigma = inputs(height, width)
    assert network(x, sigma).shape == (3, 3, height, width)


def test_a_size_that_does_not_divide_is_told():
    with pytest.raises(ValueError, match="multiples of 4 and 4"):
        make()(*inputs(18, 24))


def test_images_of_a_batch_do_not_meet():
    network = stir(make())
    x, sigma = inputs()
    together = network(x, sigma)
    alone = torch.cat([network(x[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_neighborhood_and_windows_are_local():
    """A change in one corner does not reach the other through local levels alone."""
    torch.manual_seed(0)
    for kind in ("neighborhood", "shifted-window"):
        level = Level(1, 32, 64, attention=kind, head_dim=16, kernel=3, window=4)
        network = stir(HDiT([level], patch=(1, 1), mapping_width=32, mapping_depth=1, mapping_d_ff=64).double())
        x, sigma = inputs(16, 16)
        changed = x.clone()
        changed[:, :, 0, 0] += 1
        difference = (network(changed, sigma) - network(x, sigma)).detach().abs().amax(dim=(0, 1))
        assert float(difference[0, 0]) > 0
        assert float(difference[6:, 6:].max()) == 0


def test_no_class_is_the_last_row_and_the_default():
    network = stir(make(classes=4))
    x, sigma = inputs()
    torch.testing.assert_close(network(x, sigma), network(x, sigma, label=torch.full((3,), 4)))
    assert not torch.allclose(network(x, sigma), network(x, sigma, label=torch.zeros(3, dtype=torch.long)))


def test_no_augmentation_is_nine_zeros():
    network = stir(make())
    x, sigma = inputs()
    torch.testing.assert_close(network(x, sigma), network(x, sigma, augment=torch.zeros(3, 9).double()))


def test_conditions_the_network_does_not_have():
    x, sigma = inputs()
    with pytest.raises(ValueError, match="no classes"):
        make()(x, sigma, label=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="no condition vector"):
        make()(x, sigma, mapping=torch.zeros(3, 2).double())
    with pytest.raises(ValueError, match=r"\(N, 5\)"):
        make(mapping_inputs=5)(x, sigma)


def test_dropout_acts_in_training_only():
    level = Level(1, 32, 64, dropout=0.5, attention="global", head_dim=16)
    network = stir(HDiT([level], patch=(2, 2), mapping_width=32, mapping_depth=1, mapping_d_ff=64).double())
    x, sigma = inputs()
    assert torch.equal(network(x, sigma), network(x, sigma))
    network.train()
    assert not torch.equal(network(x, sigma), network(x, sigma))


def test_positions():
    positions = axial_positions(4, 8, like=torch.zeros((), dtype=torch.float64))
    assert positions.shape == (4, 8, 2)
    torch.testing.assert_close(positions[0, 0], torch.tensor([-0.375, -0.875], dtype=torch.float64))
    torch.testing.assert_close(positions[-1, -1], torch.tensor([0.375, 0.875], dtype=torch.float64))
    coarse = coarser_positions(positions)
    torch.testing.assert_close(coarse, axial_positions(2, 4, like=positions))


def test_rotation_keeps_lengths_and_depends_on_differences():
    """q.k after rotation is a function of the difference of positions (Su et al. 2021)."""
    rope = AxialRoPE(heads=3, head_dim=16).double()
    assert rope.freqs.shape == (3, 2)
    assert float(rope.freqs.min()) == pytest.approx(math.pi)
    assert float(rope.freqs.max()) < 10 * math.pi
    assert len(rope.freqs.unique()) == 6
    positions = axial_positions(6, 6, like=rope.freqs)
    angles = rope.angles(positions)
    q, k = (torch.randn(16, dtype=torch.float64).expand(1, 6, 6, 3, 16) for _ in range(2))
    rotated_q, rotated_k = (rotate(t, angles.cos(), angles.sin()) for t in (q, k))
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm(dim=-1))
    product = torch.einsum("nhwad,nijad->nahwij", rotated_q, rotated_k)[0, 0]
    torch.testing.assert_close(product[1, 2, 3, 3], product[2, 3, 4, 4])
    assert not torch.allclose(product[1, 2, 3, 3], product[1, 2, 3, 4])


def test_parameter_roles_of_a_one_level_network():
    level = Level(1, 32, 64, attention="global", head_dim=16)
    network = HDiT([level], patch=(2, 2), mapping_width=32, mapping_depth=2, mapping_d_ff=64, classes=3)
    roles = list(network.parameter_groups().values())
    counts = [roles.count(role) for role in ((False, True), (False, False), (True, True), (True, False))]
    assert counts == [6, 5, 6, 4]
