"""Noise by a counter: the published words, normals that are normal, numbers that hang on seed, stream, image and element alone."""

import math

import numpy as np
import pytest
import torch

from hdit_cli import counter, runtime

LIKE = torch.empty(0)

# Random123's known answers for Philox 4x32 of ten rounds: counter, key, words
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [torch.tensor(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(("at", "key", "wanted"), KNOWN)
def test_the_published_words(at, key, wanted):
    assert [int(word) for word in counter.philox(tuple(words(at)), tuple(words(key)))] == list(map(int, words(wanted)))


def test_a_number_is_made_of_its_own_counter_and_key():
    """Element 4 j + lane of image i: words of the counter (i, j) under the stream's key, in float64 here."""
    image, key = 5 + (7 << 32), runtime.key(3, "noise")
    found = counter.normal(3, "noise", [image], (2, 11), like=LIKE).flatten()
    parts = [torch.tensor(value) for value in (5, 4, 7, 0)], [torch.tensor(value) for value in (key % 2**32, key >> 32)]
    a, b, c, d = (float(word) for word in counter.philox(tuple(parts[0]), tuple(parts[1])))
    for lane, (length, turn, part) in enumerate(
        [(a, b, math.cos), (a, b, math.sin), (c, d, math.cos), (c, d, math.sin)]
    ):
        wanted = math.sqrt(-2 * math.log((length + 0.5) / 2**32)) * part(2 * math.pi * turn / 2**32)
        assert float(found[16 + lane]) == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_the_numbers_are_normal():
    """Moments, the distance of Kolmogorov and Smirnov, and no lane that follows another."""
    lanes = counter.normal(0, "noise", range(50), (20_000,), like=LIKE).double().view(-1, 4)
    x = lanes.flatten()
    n = len(x)
    for power, wanted in [(1, 0), (2, 1), (3, 0), (4, 3)]:
        spread = math.sqrt((math.prod(range(1, 2 * power, 2)) - wanted**2) / n)
        assert abs(float((x**power).mean()) - wanted) < 4 * spread, power
    normal = torch.special.ndtr(x.sort().values)
    assert float((normal - torch.arange(n) / n).abs().max()) < 1.95 / math.sqrt(n)  # exceeded once in 1,000
    assert float((lanes.T @ lanes / len(lanes) - torch.eye(4)).abs().max()) < 4 * math.sqrt(2 / len(lanes))
    assert float((lanes[1:].T @ lanes[:-1] / len(lanes)).abs().max()) < 4 / math.sqrt(len(lanes))


def test_the_largest_and_the_smallest_word_give_numbers():
    ends = torch.tensor([0, 1, 2**32 - 1])
    for a in counter._box_muller(ends[:, None], ends[None]):
        assert torch.isfinite(a).all() and float(a.abs().max()) < 6.8


def test_a_number_hangs_on_seed_stream_image_and_element_alone():
    """Not on the batch, on the shape beyond it, nor on which process draws it."""
    index = np.array([4, 9, 2**40 + 1])
    whole = counter.normal(1, "noise", index, (3, 4, 6), like=LIKE)
    for part in ([2], [1, 0]):
        assert torch.equal(counter.normal(1, "noise", index[part], (3, 4, 6), like=LIKE), whole[part])
    assert torch.equal(counter.normal(1, "noise", index, (10,), like=LIKE), whole.flatten(1)[:, :10])
    others = [(2, "noise", index), (1, "other", index), (1, "noise", index + 1), (1, "noise", index + 2**32)]
    for seed, stream, numbers in others:
        assert not torch.isclose(counter.normal(seed, stream, numbers, (3, 4, 6), like=LIKE), whole).any(1).all()
    half = counter.normal(1, "noise", index, (3, 4, 6), like=torch.empty(0, dtype=torch.float64))
    assert half.dtype == torch.float64 and torch.equal(half, whole.double())


def test_numbers_made_apart_are_the_same():
    table = torch.tensor([[5, 7, 0xFFFFFFFF, 0x89ABCDEF], [0xFFFFFFFF, 0, 1, 2]])
    for count in (1, 2, 3, 4, 1003):
        torch.testing.assert_close(
            counter.normals_apart(table, count), counter.normals(table, count), rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.skipif(runtime.why_not_compiled(torch.device("cpu")) != "", reason="no compiler here")
def test_compiled_is_eager():
    """Whole words exactly; the normals to what a logarithm and a cosine differ by."""
    torch._dynamo.reset()
    table = torch.tensor([[5, 7, 0xFFFFFFFF, 0x89ABCDEF], [0xFFFFFFFF, 0, 1, 2]])

    def drawn(table):
        return counter._words(table, torch.arange(4003) >> 2), counter.normals_apart(table, 4003)

    words, numbers = torch.compile(drawn, fullgraph=True, dynamic=False)(table)
    wanted_words, wanted = drawn(table)
    assert all(torch.equal(a, b) for a, b in zip(words, wanted_words, strict=True))
    torch.testing.assert_close(numbers, wanted, rtol=1e-5, atol=1e-6)
