"""DiT: published counts, what a new network returns, and that every condition and token matters."""

import pytest
import torch

from hdit_cli.models.dit import BLOCKS, DiT
from hdit_cli.models.dit_blocks import position_table, time_features

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
COUNTS = {  # total, trainable, 10^9 multiply-accumulates; arXiv 2212.09748, table 4, to the unit
    "S/2": (32_963_360, 32_865_056, 6.056), "S/4": (32_945_024, 32_920_448, 1.413), "S/8": (33_148_160, 33_142_016, 0.358),
    "B/2": (130_512_416, 130_315_808, 23.005), "B/4": (130_475_648, 130_426_496, 5.565),
    "B/8": (130_881_536, 130_869_248, 1.418), "L/2": (458_102_816, 457_840_672, 80.698),
    "L/4": (458_053_760, 457_988_224, 19.696), "L/8": (458_594_816, 458_578_432, 5.011),
    "XL/2": (675_129_632, 674_834_720, 118.621), "XL/4": (675_074_432, 675_000_704, 29.044),
    "XL/8": (675_683_072, 675_664_640, 7.392),
}  # fmt: skip


def counted(**options):
    with torch.device("meta"):
        network = DiT(**options)
    parameters = list(network.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        round(network.macs(*network.size) / 1e9, 3),
    )


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_twelve_sizes(name):
    letter, patch = name.split("/")
    depth, width, heads = SIZES[letter]
    assert counted(size=(32, 32), patch=int(patch), depth=depth, width=width, heads=heads) == COUNTS[name]


@pytest.mark.parametrize(
    ("block", "counts"),
    [
        ("in-context", (449_457_440, 119.354)),
        ("cross-attention", (598_286_624, 137.603)),
        ("adaln", (600_747_296, 118.547)),
    ],
)
def test_counts_of_the_other_blocks(block, counts):
    total, _, gmacs = counted(size=(32, 32), patch=2, depth=28, width=1152, heads=16, block=block)
    assert (total, gmacs) == counts


@pytest.mark.parametrize(("side", "gmacs"), [(128, 106.458), (256, 657.627), (512, 6341.228)])
def test_counts_on_pixels(side, gmacs):
    assert counted(size=(side, side), patch=4, depth=12, width=768, heads=12, channels=3)[2] == gmacs


def small(block="adaln-zero", **options):
    torch.manual_seed(0)
    defaults = {"size": (8, 12), "patch": 2, "depth": 2, "width": 24, "heads": 3, "channels": 3, "classes": 5}
    return DiT(**{**defaults, "block": block, **options})


def shaken(block, **options):
    network = small(block, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("learn_variance", [True, False])
def test_new_network_returns_zeros(block, learn_variance):
    network = small(block, learn_variance=learn_variance)
    out = network(torch.randn(2, 3, 8, 12), torch.tensor([0, 500]), label=torch.tensor([1, 5]))
    assert out.shape == (2, 6 if learn_variance else 3, 8, 12)
    assert not out.any()


def test_new_blocks_of_adaln_zero_are_the_identity_and_the_others_are_not():
    for block in BLOCKS:
        network, x = small(block), torch.randn(2, 24, 24)
        conditions = network.conditions(torch.tensor([3, 7]), torch.tensor([1, 2]))
        assert torch.equal(network.blocks[0](x, conditions), x) == (block == "adaln-zero")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("classes", [0, 5])
def test_every_weight_learns_and_every_condition_matters(block, classes):
    network = shaken(block, classes=classes)
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([20.0, 500.0])
    label = torch.tensor([1, 5]) if classes else None
    out = network(x, t, label=label)
    out.square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not silent
    assert network.pos_embed.grad is None
    assert not torch.allclose(out, network(x, t + 1, label=label))
    if classes:
        assert not torch.allclose(out, network(x, t, label=torch.tensor([2, 5])))
        assert torch.allclose(network(x, t), network(x, t, label=torch.tensor([5, 5])))  # left out is "no class"
        weights = torch.nn.functional.one_hot(label, classes + 1).float()
        assert torch.allclose(out, network(x, t, label=weights), atol=1e-6)
    else:
        with pytest.raises(ValueError, match="no classes"):
            network(x, t, label=torch.tensor([0, 0]))


def test_positions():
    table = position_table(3, 5, 16).reshape(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8])  # the first half knows the column alone
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])  # the second half the row
    assert torch.allclose(table[1, 2, :4], torch.sin(2 * 10000 ** (-torch.arange(4) / 4)))


def test_time_features_begin_with_cosines():
    features = time_features(torch.tensor([0.0, 10.0]))
    assert features.shape == (2, 256)
    assert torch.equal(features[0], torch.tensor([1.0] * 128 + [0.0] * 128))
    assert float(features[1, 128]) == pytest.approx(float(torch.tensor(10.0).sin()))


def test_sizes_that_do_not_divide():
    for options in ({"size": (9, 8)}, {"width": 26}, {"heads": 5}, {"block": "film"}):
        with pytest.raises(ValueError):
            small(**options)
    with pytest.raises(ValueError, match="nearest size is 8 x 12"):
        small()(torch.zeros(1, 3, 8, 11), torch.tensor([0]))
