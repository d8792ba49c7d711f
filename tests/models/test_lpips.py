"""LPIPS against a slow one in NumPy, and what a distance must be; with random weights, since the published ones are not here."""

import numpy as np
import pytest
import torch

from hdit_cli.models.lpips import LPIPS, WIDTHS

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's VGG16, `features.N`


@pytest.fixture(scope="module")
def net():
    """VGG16's shapes with random weights whose maps neither die out nor explode, and random heads."""
    torch.manual_seed(0)
    found = LPIPS()
    for name, parameter in found.named_parameters():
        if name.startswith("lin"):
            parameter.uniform_(0, 1)
        elif name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter)
        else:
            parameter.uniform_(-0.1, 0.1)
    return found


def pictures(height=32, width=24):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 2, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def slow_map(x, weight, bias):
    """A 3 x 3 convolution with zeros around and the ReLU, (C, H, W): sums over the nine places."""
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    y = bias[:, None, None] + sum(
        np.tensordot(weight[:, :, i, j], padded[:, i : i + height, j : j + width], axes=1)
        for i in range(3)
        for j in range(3)
    )
    return np.maximum(y, 0)


def slow_taps(tensors, picture):
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x, convolutions, found = (picture - shift[:, None, None]) / scale[:, None, None], iter(CONVOLUTIONS), []
    for block, widths in enumerate(WIDTHS):
        if block:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2).max((2, 4))
        for _ in widths:
            number = next(convolutions)
            x = slow_map(x, tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"])
        found.append(x)
    return found


def slow_distance(tensors, one, other, *, heads):
    total = 0.0
    for number, (a, b) in enumerate(zip(slow_taps(tensors, one), slow_taps(tensors, other), strict=True)):
        channels = tensors[f"lin{number}.weight"].ravel() if heads else np.ones(len(a))
        places = [(i, j) for i in range(a.shape[1]) for j in range(a.shape[2])]
        for i, j in places:
            u, v = (x[:, i, j] / (np.sqrt((x[:, i, j] ** 2).sum()) + 1e-10) for x in (a, b))
            total += float(channels @ (u - v) ** 2) / len(places)
    return total


@pytest.mark.parametrize("heads", [True, False])
def test_it_is_the_slow_one(net, heads):
    x, y = pictures(17, 30)  # poolings that leave a row out
    double = LPIPS(heads=heads).double()
    double.load_state_dict({name: t for name, t in net.state_dict().items() if heads or not name.startswith("lin")})
    tensors = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}
    wanted = [slow_distance(tensors, a, b, heads=heads) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    found = double(x, y)
    assert found.shape == (2,) and min(wanted) > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-6)  # shift and scale are float32 numbers


def test_a_distance_is_zero_on_itself_symmetric_and_grows(net):
    x, y = pictures().float()
    assert torch.equal(net(x, x), torch.zeros(2))
    assert torch.equal(net(x, y), net(y, x))
    near, far = net(x, x + 0.05 * (y - x)), net(x, x + 0.5 * (y - x))
    assert (near < far).all() and (near > 0).all()
    single = torch.cat([net(x[i : i + 1], y[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(net(x, y), single)  # a picture's distance does not hang on its batch


def test_gradients_reach_both_pictures_and_no_weight(net):
    x, y = (part.float().requires_grad_() for part in pictures(16, 16))
    net.train()(x, y).sum().backward()
    assert not net.training
    for picture in (x, y):
        assert torch.isfinite(picture.grad).all() and (picture.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(parameter.requires_grad for parameter in net.parameters())
    step = 1e-3 * x.grad / x.grad.norm()
    with torch.no_grad():
        assert net(x - step, y).sum() < net(x, y).sum()


def test_the_gradient_is_a_number_where_no_feature_answers():
    dark = LPIPS()
    for name, parameter in dark.named_parameters():
        parameter.fill_(-1.0 if name == "features.0.bias" else 0.0)
    x, y = (part.float().requires_grad_() for part in pictures(16, 16))
    dark(x, y).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x)) and torch.equal(y.grad, torch.zeros_like(y))


def test_half_precision_is_compared_in_float32(net):
    x, y = pictures(16, 16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, net(x, y), rtol=0.05, atol=0)


def test_names_and_counts_are_torchvisions(net):
    names = {f"features.{n}.{part}" for n in CONVOLUTIONS for part in ("weight", "bias")}
    assert set(net.state_dict()) == names | {f"lin{k}.weight" for k in range(5)}
    assert set(LPIPS(heads=False).state_dict()) == names
    assert sum(p.numel() for name, p in net.named_parameters() if name in names) == 14_714_688
    assert net.macs(224, 224) == 15_346_630_656  # VGG16's 15.47 G less its classifier


def test_what_cannot_be_compared_is_said(net):
    assert net.fits((16, 40)) == ""
    x, y = torch.zeros(2, 1, 3, 15, 40)
    with pytest.raises(ValueError, match="16 pixels a side or more, and these are 15x40"):
        net(x, y)
    with pytest.raises(ValueError, match="compares"):
        net(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="compares"):
        net(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
