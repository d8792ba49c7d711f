import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdit_cli.data import order
from hdit_cli.data.order import permutation, sample_at, split
from hdit_cli.errors import UsageError


@given(count=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_every_epoch_sees_every_image_once(count, seed, epoch):
    positions = np.arange(epoch * count, (epoch + 1) * count)
    assert sorted(sample_at(positions, count=count, seed=seed)) == list(range(count))


def test_the_order_never_changes_silently():
    epochs = sample_at(np.arange(20), count=10, seed=0).reshape(2, 10)
    assert epochs.tolist() == [[6, 5, 2, 9, 1, 7, 3, 4, 8, 0], [7, 8, 0, 2, 9, 3, 1, 6, 4, 5]]


def test_differs_by_epoch_and_seed():
    orders = {
        tuple(sample_at(np.arange(50) + 50 * epoch, count=50, seed=seed)) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16


def test_a_position_tells_its_image_alone():
    positions = np.random.default_rng(0).integers(0, 1000, size=200)
    whole = sample_at(np.arange(1000), count=37, seed=5)
    assert np.array_equal(sample_at(positions, count=37, seed=5), whole[positions])
    assert sample_at(positions, count=37, seed=5).dtype == np.int64


def test_the_cached_order_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        permutation(10, seed=0, epoch=0)[0] = 1


def test_every_image_comes_everywhere_equally_often():
    count, epochs = 8, 4000
    order = sample_at(np.arange(count * epochs), count=count, seed=1).reshape(epochs, count)
    seen = np.stack([np.bincount(slot, minlength=count) for slot in order.T])  # (slot, image)
    chi2 = ((seen - epochs / count) ** 2 / (epochs / count)).sum()
    assert 20 < chi2 < 90  # (count - 1)^2 = 49 degrees of freedom, standard deviation 10


@pytest.mark.parametrize(("batch_size", "world", "accumulate"), [(12, 1, 1), (12, 2, 3), (64, 4, 2), (6, 3, 2)])
def test_split_shares_out_every_slot_once(batch_size, world, accumulate):
    parts = [split(batch_size, world=world, rank=rank, accumulate=accumulate) for rank in range(world)]
    assert all(len(part) == accumulate for part in parts)
    slots = np.concatenate([micro for part in parts for micro in part])
    assert sorted(slots) == list(range(batch_size))
    for part in parts:  # stratified: every micro-batch has one slot in each of its equal stretches of the global batch
        for micro in part:
            assert micro.dtype == np.int64
            assert (micro // (world * accumulate)).tolist() == list(range(len(micro)))


def test_split_is_interleaved_as_written():
    assert [m.tolist() for m in split(12, world=2, rank=1, accumulate=3)] == [[1, 7], [3, 9], [5, 11]]


@pytest.mark.parametrize(("batch_size", "nearest"), [(13, 12), (17, 18), (1, 6), (0, 6)])
def test_split_refuses_an_uneven_batch(batch_size, nearest):
    with pytest.raises(UsageError) as caught:
        split(batch_size, world=2, rank=0, accumulate=3)
    assert caught.value.hint.endswith(f"train.batch_size = {nearest}")


def test_equal_words_keep_their_order():
    words = np.random.default_rng(0).integers(0, 50, 2_000).astype(np.uint64)
    assert np.array_equal(order._ranked(words), np.argsort(words, kind="stable"))
    words = np.random.default_rng(0).permutation(2_000).astype(np.uint64) << np.uint64(50)
    assert np.array_equal(order._ranked(words), np.argsort(words, kind="stable"))
