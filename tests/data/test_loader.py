import os
import signal
import sys
from multiprocessing import resource_tracker
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from slow_reader import Overlapping
from tiny_set import damage, make_set, pixels_of

from hdit_cli.data import decoders
from hdit_cli.data.loader import Loader, flip, to_x0
from hdit_cli.data.order import sample_at, split
from hdit_cli.data.reader import ShardReader
from hdit_cli.errors import DataError, OutOfMemory, UsageError


@pytest.fixture
def folder(tmp_path):
    return make_set(tmp_path / "set", count=25)


def loader(folder, *, position=0, steps=3, world=1, rank=0, accumulate=1, workers=0, batch_size=12):
    return Loader(
        ShardReader(folder),
        batch_size=batch_size,
        seed=7,
        position=position,
        steps=steps,
        slots=split(batch_size, world=world, rank=rank, accumulate=accumulate),
        workers=workers,
    )


def numbers_of(batch):
    return (batch.pixels[:, 0, 0, 0].int() + 256 * batch.pixels[:, 1, 0, 0].int()).numpy()


def test_batches_hold_the_pictures_of_their_positions(folder):
    with loader(folder, steps=4) as batches:
        for step, (batch,) in enumerate(batches):
            assert batch.index.dtype == np.int64
            assert batch.index.tolist() == list(range(12 * step, 12 * step + 12))
            samples = sample_at(batch.index, count=25, seed=7)
            expected = np.stack([pixels_of(n) for n in samples]).transpose(0, 3, 1, 2)
            assert batch.pixels.dtype == torch.uint8
            assert batch.pixels.shape == (12, 3, 8, 12)
            assert np.array_equal(batch.pixels.numpy(), expected)
            assert batch.label.dtype == torch.int64
            assert batch.label.tolist() == [n % 3 if n % 7 else 3 for n in samples]
    assert step == 3


def test_without_classes_all_labels_mean_none(tmp_path):
    folder = make_set(tmp_path / "set", count=5, classes=0)
    with loader(folder, steps=1) as batches:
        ((batch,),) = list(batches)
    assert batch.label.tolist() == [0] * 12


def test_the_order_is_the_same_for_any_number_of_processes_and_micro_batches(folder):
    def seen(world, accumulate):
        out = {}
        for rank in range(world):
            with loader(folder, world=world, rank=rank, accumulate=accumulate) as batches:
                for micros in batches:
                    assert len(micros) == accumulate
                    for batch in micros:
                        out.update(zip(batch.index.tolist(), numbers_of(batch), strict=True))
        return out

    expected = dict(enumerate(sample_at(np.arange(36), count=25, seed=7)))
    assert all(seen(world, accumulate) == expected for world, accumulate in ((1, 1), (2, 1), (1, 3), (2, 3), (3, 2)))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_is_the_same_for_any_number_of_workers(folder, workers, monkeypatch):
    monkeypatch.setattr("hdit_cli.data.loader._CHUNK", 5)  # several chunks per micro-batch, the last one short
    with loader(folder, accumulate=2, steps=5) as here, loader(folder, accumulate=2, steps=5, workers=workers) as there:
        for alone, shared in zip(here, there, strict=True):
            for a, b in zip(alone, shared, strict=True):
                assert torch.equal(a.pixels, b.pixels)
                assert torch.equal(a.label, b.label)
                assert np.array_equal(a.index, b.index)


def test_a_run_goes_on_where_it_stood(folder):
    with loader(folder, steps=4) as whole, loader(folder, position=24, steps=2) as rest:
        last = [step[0] for step in whole][2:]
        again = [step[0] for step in rest]
    for a, b in zip(last, again, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert np.array_equal(a.index, b.index)


def test_a_small_set_is_decoded_once(folder, monkeypatch):
    decoded = []
    picture = ShardReader.picture
    monkeypatch.setattr(ShardReader, "picture", lambda self, n: decoded.append(n) or picture(self, n))
    with loader(folder, steps=10) as batches:
        first = [numbers_of(batch) for (batch,) in batches]
    assert sorted(decoded) == list(range(25))
    monkeypatch.setattr(decoders, "_CACHE_BYTES", 100)
    decoded.clear()
    with loader(folder, steps=10) as batches:
        again = [numbers_of(batch) for (batch,) in batches]
    assert len(decoded) == 120
    assert np.array_equal(first, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_ends_as_the_users_error(folder, workers):
    damage(folder, 13)
    with (
        pytest.raises(DataError, match=r"picture 000000013 in .*00001\.tar is damaged") as caught,
        loader(folder, workers=workers) as batches,
    ):
        list(batches)
    assert type(caught.value) is DataError
    assert caught.value.exit_code == 3
    assert "hdit prepare" in caught.value.hint


def _workers_of(batches):
    return [worker.process for worker in batches._decoder._workers]


def test_leaving_ends_the_workers_in_the_middle_of_a_run(folder):
    with pytest.raises(KeyboardInterrupt), loader(folder, steps=10_000, workers=2) as batches:
        next(iter(batches))
        processes = _workers_of(batches)
        raise KeyboardInterrupt
    assert processes
    assert not any(process.is_alive() for process in processes)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_workers_leave_signals_to_the_parent_but_not_being_killed(folder):
    with pytest.raises(OutOfMemory, match="killed") as caught, loader(folder, steps=10_000, workers=1) as batches:
        steps = iter(batches)
        next(steps)
        (process,) = _workers_of(batches)
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
        for _ in range(20):
            next(steps)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        for _ in steps:
            pass
    assert "data.workers (now 1" in caught.value.hint


def test_workers_that_cannot_start(folder, monkeypatch):
    monkeypatch.setattr(decoders, "_work", sys.exit)
    with pytest.raises(UsageError, match="cannot start"), loader(folder, workers=1) as batches:
        list(batches)


def test_to_x0_covers_the_range():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x0 = to_x0(pixels)
    assert x0.dtype == torch.float32
    assert x0.min() == -1
    assert x0.max() == 1
    assert torch.equal(((x0 + 1) * 127.5).round().to(torch.uint8), pixels)


def test_flip_turns_half_of_the_images_by_seed_and_index():
    x0 = torch.randn(400, 1, 2, 5, generator=torch.Generator().manual_seed(0))
    index = np.arange(1000, 1400)
    out = flip(x0, index=index, seed=0)
    turned = (out == x0.flip(3)).flatten(1).all(1)
    kept = (out == x0).flatten(1).all(1)
    assert torch.equal(turned, ~kept)
    assert 160 < turned.sum() < 240  # four standard deviations
    assert torch.equal(flip(x0[5:9], index=index[5:9], seed=0), out[5:9])
    assert not torch.equal(flip(x0, index=index, seed=1), out)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_workers_that_start_leave_signals_to_the_parent_too(folder):
    """The first process of a program starts multiprocessing's resource tracker, which unblocks the signals again."""
    resource_tracker._resource_tracker._stop()
    with loader(folder, workers=2) as batches:
        for process in _workers_of(batches):  # they have not reached their first line
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        assert len(list(batches)) == 3


def test_an_interrupted_start_leaves_no_worker(folder, monkeypatch):
    """At exit Python waits for the processes it started."""
    started = []

    class Second(decoders._Worker):
        def __init__(self, reader):
            if started:
                raise KeyboardInterrupt
            super().__init__(reader)
            started.append(self.process)

    monkeypatch.setattr(decoders, "_Worker", Second)
    with pytest.raises(KeyboardInterrupt):
        loader(folder, workers=2)
    assert [process.is_alive() for process in started] == [False]


@pytest.mark.parametrize("error", [MemoryError(), TypeError("an error that does not unpickle")])
def test_an_answer_that_cannot_be_taken_is_told(error):
    class Connection:
        def recv(self):
            raise error

    worker = object.__new__(decoders._Worker)
    worker.connection, worker.results = Connection(), SimpleQueue()
    worker._receive()
    assert worker.results.get(timeout=1) is error


def test_shards_are_read_ahead_while_pictures_are_decoded(folder):
    chunks = np.arange(24).reshape(12, 2)
    worker = decoders.WorkerProcesses(Overlapping(folder), count=1, ahead=4)
    try:
        for chunk, pixels in zip(chunks, worker.decoded(chunks), strict=True):
            assert np.array_equal(pixels, np.stack([pixels_of(n) for n in chunk]).transpose(0, 3, 1, 2))
    finally:
        worker.close()
