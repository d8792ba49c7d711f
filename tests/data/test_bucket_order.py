"""Batches of one bucket: a function of (seed, position), each bucket its share, each picture equally often. Random cuts."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_set import make_set, pixels_of

from hdit_cli.data import shards
from hdit_cli.data.loader import Loader, cut_at_random
from hdit_cli.data.order import BucketOrder, _floor_sum, sample_at, split
from hdit_cli.data.reader import ShardReader

SIZES = [(16, 8), (12, 12), (8, 16)]


@given(n=st.integers(0, 40), m=st.integers(1, 60), a=st.integers(0, 200), b=st.integers(0, 200))
def test_the_sum_of_floors(n, m, a, b):
    assert _floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


@settings(deadline=None, max_examples=20)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 2**40))
def test_each_bucket_has_its_share_at_any_time(counts, seed):
    numbers = np.repeat(np.arange(len(counts)), counts)
    order = BucketOrder(numbers, batch_size=4, seed=seed)
    before = np.zeros(len(counts))
    for batch in range(150):
        assert [order.batches_before(batch, bucket=b) for b in range(len(counts))] == before.tolist()
        assert np.abs(before - batch * np.array(counts) / sum(counts)).max() < 4
        before[order.bucket(batch)] += 1


@settings(deadline=None, max_examples=40)
@given(batch=st.integers(0, 10**9), seed=st.integers(0, 2**40))
def test_counts_are_exact_however_far(batch, seed):
    numbers = np.repeat(np.arange(3), [7, 90, 400])
    order = BucketOrder(numbers, batch_size=2, seed=seed)
    here = order.bucket(batch)
    for bucket in range(3):
        grown = order.batches_before(batch + 1, bucket=bucket) - order.batches_before(batch, bucket=bucket)
        assert grown == (bucket == here)
    assert sum(order.batches_before(batch, bucket=bucket) for bucket in range(3)) == batch
    share = batch * np.array([7, 90, 400]) / 497
    found = [order.batches_before(batch, bucket=bucket) for bucket in range(3)]
    assert np.abs(found - share).max() < 10


def test_the_order_of_buckets_never_changes_silently():
    order = BucketOrder(np.array([0, 1, 1, 0, 1, 1, 1, 0]), batch_size=3, seed=0)
    found = [(order.bucket(k), order.samples(np.arange(3 * k, 3 * k + 3)).tolist()) for k in range(6)]
    assert found == [
        (0, [7, 0, 3]),
        (1, [5, 4, 1]),
        (0, [0, 3, 7]),
        (1, [2, 6, 2]),
        (1, [5, 4, 1]),
        (0, [3, 7, 0]),
    ]


def test_a_bucket_walks_through_epochs_of_its_own():
    """In the batches of a bucket, end to end, each stretch of its size has each of its pictures once."""
    numbers = np.random.default_rng(0).integers(0, 3, 50)
    order = BucketOrder(numbers, batch_size=8, seed=5)
    walks = [[], [], []]
    for batch in range(120):
        walks[order.bucket(batch)] += order.samples(np.arange(8 * batch, 8 * batch + 8)).tolist()
    for bucket, walk in enumerate(walks):
        members = np.flatnonzero(numbers == bucket).tolist()
        epochs = [walk[i : i + len(members)] for i in range(0, len(walk) - len(members) + 1, len(members))]
        assert len(epochs) > 10
        assert all(sorted(epoch) == members for epoch in epochs)
        assert len(set(map(tuple, epochs))) > len(epochs) - 2


def test_another_seed_is_another_order():
    numbers = np.arange(60) % 3
    found = {tuple(BucketOrder(numbers, batch_size=4, seed=seed).samples(np.arange(4)).tolist()) for seed in range(20)}
    assert len(found) > 15


def make_buckets(folder, counts=(9, 14, 6)):
    """PNG pictures whose pixels tell their number, of three sizes, mixed."""
    folder.mkdir(parents=True)
    of = np.random.default_rng(1).permutation(np.repeat(np.arange(3), counts))
    with shards.writing_shard(folder, 0, sized=True) as writer:
        for number, bucket in enumerate(of):
            height, width = SIZES[bucket]
            stream = io.BytesIO()
            Image.fromarray(pixels_of(number, height=height, width=width)).save(stream, "PNG")
            writer.add(number, {".png": stream.getvalue()}, label=number % 2, size=SIZES[bucket])
    told = shards.buckets_of(dict(zip(SIZES, counts, strict=True)))
    infos = [writer.info("00000.tar")]
    shards.save_manifest(folder, shards.Manifest(sum(counts), ["a", "b"], [12, 12], infos, buckets=told))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_buckets(tmp_path_factory.mktemp("buckets") / "set")


def loader(folder, *, position=0, steps=12, world=1, rank=0, accumulate=1, workers=0, batch_size=12, **more):
    return Loader(
        ShardReader(folder),
        batch_size=batch_size,
        seed=7,
        position=position,
        steps=steps,
        slots=split(batch_size, world=world, rank=rank, accumulate=accumulate),
        workers=workers,
        **more,
    )


def told(batches):
    """Per step: the shape, and position => (number in the pixels, label)."""
    found = []
    for micros in batches:
        shapes = {tuple(batch.pixels.shape[2:]) for batch in micros}
        assert len(shapes) == 1
        facts = {}
        for batch in micros:
            numbers = (batch.pixels[:, 0, 0, 0].int() + 256 * batch.pixels[:, 1, 0, 0].int()).tolist()
            facts |= dict(zip(batch.index.tolist(), zip(numbers, batch.label.tolist(), strict=True), strict=True))
        found.append((shapes.pop(), facts))
    return found


def test_batches_are_of_one_size_and_hold_their_pictures(folder):
    reader = ShardReader(folder)
    with loader(folder, steps=20) as batches:
        found = told(batches)
    assert {shape for shape, _ in found} == set(SIZES)
    for step, (shape, facts) in enumerate(found):
        assert list(facts) == list(range(12 * step, 12 * step + 12))
        for number, label in facts.values():
            assert reader.size_of(number) == shape
            assert label == number % 2


@pytest.mark.parametrize(("world", "accumulate", "workers"), [(1, 3, 0), (2, 1, 0), (3, 2, 0), (1, 2, 2)])
def test_the_order_is_the_same_however_the_batch_is_shared(folder, world, accumulate, workers):
    with loader(folder) as batches:
        expected = told(batches)
    merged = [(shape, {}) for shape, _ in expected]
    for rank in range(world):
        with loader(folder, world=world, rank=rank, accumulate=accumulate, workers=workers) as batches:
            for (shape, facts), (here, mine) in zip(told(batches), merged, strict=True):
                assert shape == here
                mine |= facts
    assert merged == expected


def test_a_later_start_goes_on_in_the_same_order(folder):
    with loader(folder, steps=12) as batches:
        whole = told(batches)
    with loader(folder, position=60, steps=7) as batches:
        assert told(batches) == whole[5:]


def test_without_buckets_nothing_changes(tmp_path):
    """Number by number what the walk over the whole set gives."""
    with loader(make_set(tmp_path / "set", count=25), steps=5) as batches:
        for micros in batches:
            (batch,) = micros
            numbers = (batch.pixels[:, 0, 0, 0].int() + 256 * batch.pixels[:, 1, 0, 0].int()).numpy()
            assert np.array_equal(numbers, sample_at(batch.index, count=25, seed=7))


# Random cuts


def test_every_place_is_equally_likely():
    pixels = np.broadcast_to(np.arange(5 * 4).reshape(1, 1, 5, 4), (6000, 1, 5, 4)).astype(np.uint8)
    cut = cut_at_random(pixels, (3, 3), index=np.arange(6000), seed=1)
    assert cut.shape == (6000, 1, 3, 3)
    corners, seen = np.unique(cut[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [0, 1, 4, 5, 8, 9]  # rows 0 to 2, columns 0 to 1
    assert ((seen - 1000) ** 2 / 1000).sum() < 20.5  # 5 degrees of freedom: 0.1 %
    assert np.array_equal(cut[:, 0, 2, 2] - cut[:, 0, 0, 0], np.full(6000, 10))


def test_a_cut_of_the_whole_picture_is_the_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 4), dtype=np.uint8)
    assert np.array_equal(cut_at_random(pixels, (5, 4), index=np.arange(3), seed=1), pixels)


def test_cuts_depend_on_seed_and_position_alone(tmp_path):
    folder = make_set(tmp_path / "set", count=25)

    def seen(**how):
        with loader(folder, cut=(6, 7), **how) as batches:
            steps = list(batches)
        parts = [batch for micros in steps for batch in micros]
        order = np.argsort(np.concatenate([batch.index for batch in parts]))
        return torch.cat([batch.pixels for batch in parts])[order]

    whole = seen(steps=5)
    assert whole.shape == (60, 3, 6, 7)
    assert len(set(whole[:, 2, 0, 0].tolist())) == 6  # the left edge: columns 0 to 5
    assert torch.equal(seen(steps=5, accumulate=3, workers=1), whole)
    assert torch.equal(seen(steps=3, position=24), whole[24:])
    twice = [n for n in range(25, 50) if torch.equal(whole[n, :2], whole[n - 25, :2])]
    assert len(twice) < 25  # the same picture is cut elsewhere when it comes again
