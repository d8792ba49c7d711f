"""The passes written by hand against the formulas they stand for, and where they are used."""

import pytest
import torch

from hdit_cli.models import fused, hdit, layers
from hdit_cli.models.fused import RotatedCosine, ScaledRMSNorm, by_hand
from hdit_cli.models.hdit import HDiT, Level

LEVELS = [
    Level(2, 32, 96, 0.1, "neighborhood", 16, 5),
    Level(1, 64, 128, 0.0, "shifted-window", 32, window=4),
    Level(1, 96, 200, 0.1, "global", 48),
]


def network(dtype):
    torch.manual_seed(0)
    found = HDiT(LEVELS, mapping_width=32, mapping_depth=1, mapping_d_ff=64, classes=3).to(dtype).train()
    with torch.no_grad():
        for p in found.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return found


def output_and_gradients(dtype):
    """Of a network's mean squared output: output, gradient of the image, gradients of the parameters."""
    net = network(dtype)
    layers.seed_dropout(net, torch.tensor([5, 9], dtype=torch.int32))
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    x.requires_grad_()
    out = net(x, torch.tensor([0.3, 4.0], dtype=dtype), torch.tensor([0, 2]))
    out.square().mean().backward()
    with torch.no_grad():
        again = net(x.detach(), torch.tensor([0.3, 4.0], dtype=dtype), torch.tensor([0, 2]))
    return [out.detach(), again, x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_a_network_by_hand_equals_the_formulas(dtype, tolerance, monkeypatch):
    ours = output_and_gradients(dtype)
    for module in (layers, hdit):
        monkeypatch.setattr(module, "by_hand", lambda x: False)
    for found, expected in zip(ours, output_and_gradients(dtype), strict=True):
        assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_gradcheck():
    torch.manual_seed(0)
    x, scale = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *t: ScaledRMSNorm.apply(*t, 1e-6), (x.requires_grad_(), scale.requires_grad_())
    )
    x, scale = torch.randn(2, 1, 2, 2, 3, 8, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 1
    turn = torch.randn(1, 2, 1, 3, 2, dtype=torch.complex128)
    turn = turn / turn.abs()
    assert torch.autograd.gradcheck(
        lambda *t: RotatedCosine.apply(*t, turn, 1e-6), (x.requires_grad_(), scale.requires_grad_())
    )


def test_turns_are_those_of_the_angles():
    rope = layers.AxialRoPE(3, 16)
    positions = layers.axial_positions(6, 10, like=torch.zeros(()))
    angles = rope.angles(positions)
    turns = rope.turns(positions)
    assert torch.equal(turns.real, angles.cos()) or torch.allclose(turns.real, angles.cos(), atol=1e-6, rtol=0)
    assert torch.allclose(turns.imag, angles.sin(), atol=1e-6, rtol=0)


def test_inputs_are_left_as_they_were():
    """In-place arithmetic touches only what it made."""
    net = network(torch.float32)
    x, sigma = torch.randn(1, 3, 64, 96), torch.tensor([1.0])
    copies = x.clone(), sigma.clone(), [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        net.eval()(x, sigma)
    assert torch.equal(x, copies[0])
    assert torch.equal(sigma, copies[1])
    assert all(torch.equal(p, c) for p, c in zip(net.parameters(), copies[2], strict=True))


def test_where_it_is_used():
    x = torch.zeros(1)
    assert by_hand(x)
    assert by_hand(x.double())
    assert not by_hand(x.bfloat16())
    assert not by_hand(torch.zeros(1, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_hand(x)


@pytest.mark.slow  # most of a minute; a whole step is traced in the quick tests of training
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_compiles_without_a_graph_break(training):
    """The whole network is one graph, whatever the batch; a change of batch compiles once more, not every time."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    net = network(torch.float32).train(training)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for images in (2, 2, 2):
        layers.seed_dropout(net, torch.arange(images, dtype=torch.int32))
        compiled(torch.randn(images, 3, 64, 96), torch.rand(images) + 0.1, torch.zeros(images, dtype=torch.long))
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_pairs_together_is_a_permutation_within_heads():
    rows = torch.arange(2 * 3 * 16.0)[:, None]
    moved = fused.pairs_together(rows, heads=3)[:, 0].view(6, 16)
    assert torch.equal(moved.sort(1).values, rows.view(6, 16))
    assert moved[0, :4].tolist() == [0, 4, 1, 5]
