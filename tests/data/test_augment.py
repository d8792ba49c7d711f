import math

import numpy as np
import pytest
import torch

from hdit_cli.data import augment as module
from hdit_cli.data.augment import SCALE, augment, condition, draw, matrices, warp

ROW, COLUMN = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
PICTURE = (((7 * ROW + 3 * COLUMN + ROW * COLUMN**2) % 17) / 16)[None, None]  # (1, 1, 9, 11)
PLACES = ([0, 0, 3, 4, 6, 8, 8], [0, 10, 2, 5, 9, 0, 10])

# scikit-image 0.26.0: warp(PICTURE, AffineTransform(matrix).inverse, order=3, mode="reflect", clip=False), float64
FACTS = {
    "shift": (
        [[1, 0, 2.25], [0, 1, -1.75]],
        [0.570347, 0.784447, 0.205219, 0.174789, 0.520653, 0.340412, 0.413643],
        45.98799,
    ),
    "turn": (
        [[0.82533561491, 0.564642473395, -1.385247968129], [-0.564642473395, 0.82533561491, 3.521869907336]],
        [0.421239, 0.253781, 0.456802, 0.4375, 0.679577, 0.529019, 0.048849],
        45.4285,
    ),
    "flip, zoom, turn, stretch, shift by over half of the picture": (
        [[-0.59674556954, 0.522217939752, -0.490793583495], [0.751993833242, 0.414406645514, -1.0925507297]],
        [0.52612, 0.541838, 0.736868, 0.339, 0.669246, 0.296891, 0.352967],
        43.49958,
    ),
}


# numba takes seconds to compile; the quick set looks at it in test_compiled_warp.py
@pytest.fixture(autouse=True, params=["torch", pytest.param("compiled", marks=pytest.mark.slow)])
def way(request, monkeypatch):
    """Both ways to warp on a CPU."""
    if request.param == "compiled" and not module.has_compiler():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(module, "has_compiler", lambda: request.param == "compiled")


def _square(rows):
    return torch.tensor([*rows, [0, 0, 1]], dtype=torch.float64)[None]


@pytest.mark.parametrize("name", FACTS)
def test_warp_is_that_of_the_published_pipeline(name):
    rows, values, total = FACTS[name]
    out = warp(PICTURE, _square(rows))[0, 0]
    assert out[PLACES].tolist() == pytest.approx(values, abs=1e-5)
    assert out.double().sum().item() == pytest.approx(total, abs=1e-3)


def _catmull_rom(t):  # a = -1/2, as the sum over taps that defines it
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def _slow_warp(image, matrix):  # (H, W), (3, 3) => (H, W), float64, tap by tap
    height, width = image.shape
    mirrored = [np.pad(np.arange(side), 60 * (side - 1), "reflect") for side in (height, width)]
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y, _ = np.linalg.inv(matrix) @ [column, row, 1]
            for j in range(math.floor(y) - 1, math.floor(y) + 3):
                for i in range(math.floor(x) - 1, math.floor(x) + 3):
                    seen = image[mirrored[0][j + 60 * (height - 1)], mirrored[1][i + 60 * (width - 1)]]
                    out[row, column] += seen * _catmull_rom(x - i) * _catmull_rom(y - j)
    return out


def test_warp_is_the_sum_over_its_taps():
    x = torch.rand(5, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    matrix = matrices(draw(np.arange(5), seed=2, probability=1.0), height=6, width=9)
    out = warp(x, matrix)
    for n in range(5):
        for channel in range(2):
            slow = _slow_warp(x[n, channel].double().numpy(), matrix[n].numpy())
            assert out[n, channel].numpy() == pytest.approx(slow, abs=1e-5)


def test_flips_are_copied_bit_by_bit():
    a = torch.zeros(4, 8, dtype=torch.float64)
    a[:, 0], a[:, 1] = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    x = torch.randn(4, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    out = warp(x, matrices(a, height=7, width=10))
    for got, expected in zip(out, (x[0], x[1].flip(2), x[2].flip(1), x[3].flip((1, 2))), strict=True):
        assert torch.equal(got, expected)


def test_bfloat16_rounds_values_only_never_places():
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    matrix = matrices(draw(np.arange(4), seed=2, probability=1.0), height=64, width=64)
    out = warp(x, matrix)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, warp(x.float(), matrix).bfloat16())


def test_whole_shifts_are_exact_within_the_picture():
    out = warp(PICTURE, _square([[1, 0, 3], [0, 1, -2]]))
    assert torch.allclose(out[..., :7, 3:], PICTURE[..., 2:, :8], atol=1e-6)


def test_a_picture_that_is_not_square_turns_about_its_centre():
    a = torch.zeros(1, 8, dtype=torch.float64)
    a[0, 3] = math.pi
    x = torch.randn(1, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(warp(x, matrices(a, height=6, width=10)), x.flip((2, 3)), atol=1e-5)


def test_shift_is_a_share_of_each_side():
    a = torch.zeros(1, 8, dtype=torch.float64)
    a[0, 6], a[0, 7] = 1.0, -2.0
    matrix = matrices(a, height=16, width=48)[0]
    assert matrix.tolist() == [[1, 0, 6], [0, 1, -4], [0, 0, 1]]


def test_each_transform_alone():
    def linear(**values):
        a = torch.zeros(1, 8, dtype=torch.float64)
        for name, value in values.items():
            a[0, int(name[1])] = value
        return matrices(a, height=9, width=9)[0, :2, :2]

    def near(matrix, expected):
        return torch.allclose(matrix, torch.tensor(expected, dtype=torch.float64))

    c, s = math.cos(0.4), math.sin(0.4)
    assert near(linear(a0=1), [[-1, 0], [0, 1]])
    assert near(linear(a1=1), [[1, 0], [0, -1]])
    assert near(linear(a2=2), [[SCALE**2, 0], [0, SCALE**2]])
    assert near(linear(a3=0.4), [[c, s], [-s, c]])
    assert near(linear(a5=1), [[SCALE, 0], [0, 1 / SCALE]])
    assert near(linear(a4=math.pi / 2, a5=1), [[1 / SCALE, 0], [0, SCALE]])
    assert near(linear(a0=1, a3=0.4), [[-c, -s], [-s, c]])  # the flip comes after the turn


def test_condition_as_written():
    a = torch.tensor([[1, 0, -0.5, 0.3, 1.1, 2.0, 0.7, -0.2]], dtype=torch.float64)
    expected = [1, 0, -0.5, math.cos(0.3) - 1, math.sin(0.3), 2 * math.cos(1.1), 2 * math.sin(1.1), 0.7, -0.2]
    assert condition(a)[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_draws_follow_their_distributions():
    n = 40_000
    a = draw(np.arange(n), seed=0, probability=1.0)
    error = 4 / math.sqrt(n)  # four standard errors
    for coin in (0, 1):
        assert set(a[:, coin].tolist()) == {0.0, 1.0}
        assert abs(a[:, coin].mean() - 0.5) < error / 2
    for normal in (2, 5, 6, 7):
        assert abs(a[:, normal].mean()) < error
        assert abs(a[:, normal].var() - 1) < error * math.sqrt(2)
    for angle in (3, 4):
        assert a[:, angle].abs().max() <= math.pi
        assert abs(a[:, angle].var() / (math.pi**2 / 3) - 1) < error
    correlation = torch.corrcoef(a.T) - torch.eye(8)
    assert correlation.abs().max() < 1.2 * error


def test_each_transform_comes_with_its_probability():
    n, p = 40_000, 0.12
    a = draw(np.arange(n), seed=0, probability=p)
    shares = (a != 0).double().mean(0)
    expected = torch.tensor([0.5, p / 2, p, p, p, p, p, p], dtype=torch.float64)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()
    assert torch.equal(a[:, 4] != 0, a[:, 5] != 0)  # one gate for both
    assert torch.equal(a[:, 6] != 0, a[:, 7] != 0)


def test_an_image_is_a_function_of_seed_and_index_alone():
    x = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    index = np.arange(100, 108)
    whole, told = augment(x, index=index, seed=3, probability=0.5)
    for n in range(8):
        one, told_one = augment(x[n : n + 1], index=index[n : n + 1], seed=3, probability=0.5)
        assert torch.allclose(one[0], whole[n], atol=1e-6)
        assert torch.equal(told_one[0], told[n])
    other, _ = augment(x, index=index, seed=4, probability=0.5)
    assert not torch.equal(other, whole)


def test_the_condition_tells_who_is_untouched():
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    out, told = augment(x, index=np.arange(64), seed=0, probability=0.12)
    assert out.shape == x.shape
    assert told.shape == (64, 9)
    assert told.dtype == torch.float32
    same = (out == x).flatten(1).all(1)
    assert 5 < same.sum() < 40
    assert torch.equal(same, (told == 0).all(1))


def test_probability_zero_switches_all_of_it_off():
    x = torch.rand(32, 3, 8, 8)
    out, told = augment(x, index=np.arange(32), seed=0, probability=0.0)
    assert torch.equal(out, x)
    assert not told.any()
    assert told.shape == (32, 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same():
    x = torch.rand(16, 3, 32, 48)
    there, told = augment(x.cuda(), index=np.arange(16), seed=0, probability=0.5)
    here, _ = augment(x, index=np.arange(16), seed=0, probability=0.5)
    assert told.is_cuda
    assert torch.allclose(there.cpu(), here, atol=1e-5)
