# ruff: noqa: F811 - fixtures of another module
"""An evaluation that is broken off goes on where it was, and gives what an unbroken one gives."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_evaluate import FEW, METRICS, model_of, own_cache, place, scored, silent  # noqa: F401 - two are fixtures

from hdit_cli import files, runtime
from hdit_cli.engine.sampling import pace
from hdit_cli.engine.scoring.evaluate import evaluate
from hdit_cli.engine.scoring.one_pass import Breaks, Fed, collect
from hdit_cli.engine.scoring.picture_sets import Generated
from hdit_cli.engine.scoring.request import Request
from hdit_cli.engine.scoring.unfinished import Unfinished
from hdit_cli.errors import Interrupted, StorageError, UsageError
from hdit_cli.metrics.inception import Inception

HOW = {"metrics": ("fid", "kid", "swd"), "allow_small": True, "n": 11, "sampling": {"batch_size": 2}}


def kept(cache):
    return [path for path in cache.glob("unfinished/*/*") if path.name != ".lock"]


def signal_at(what, number):
    """SIGTERM once so many pictures of a set are done."""
    sent = []

    def on_progress(name, done, total):
        if what in name and done >= number and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


def facts(evaluation):
    return [(score.metric, score.value, score.n, score.details) for score in evaluation.scores]


@pytest.mark.parametrize("what", ["generated", pytest.param("set", marks=pytest.mark.slow)])
def test_the_same_request_goes_on_bit_for_bit(place, own_cache, tmp_path, monkeypatch, what):
    monkeypatch.setattr("hdit_cli.engine.scoring.picture_sets._READ", 4)
    request = Request(place / "model.safetensors", **HOW, **net(place))
    expected = facts(scored(request))
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "other"))
    with pytest.raises(Interrupted, match=r"SIGTERM after [468] of 1[01] .* saved") as caught:
        evaluate(request, on_progress=signal_at(what, 4))
    assert caught.value.exit_code == 75
    assert len(kept(tmp_path / "other")) == 1
    seen = []
    again = evaluate(request, on_progress=lambda what, done, total: seen.append((what, done)))
    assert again is not None and facts(again) == expected
    assert min(done for name, done in seen if what in name) > 4  # what was done was not done again
    assert not kept(tmp_path / "other") and not list((tmp_path / "other" / "unfinished").iterdir())


def net(place):
    return {"features": f"inception:{place / 'net.pt'}"}


def test_it_goes_on_where_the_free_memory_gives_batches_of_another_size(place, own_cache, monkeypatch):
    request = Request(place / "model.safetensors", **{**HOW, "metrics": ("swd",), "sampling": {}})
    expected = facts(scored(request))
    monkeypatch.setattr(pace, "found_batch", lambda *_, **__: 2)
    with pytest.raises(Interrupted):
        evaluate(request, on_progress=signal_at("generated", 4))
    monkeypatch.setattr(pace, "found_batch", lambda *_, **__: 3)
    seen = []
    again = evaluate(request, on_progress=lambda what, done, total: seen.append((what, done)))
    assert again is not None and again.facts["sampling"]["batch_size"] == 3
    done = [done for what, done in seen if what == "generated"]  # told within batches too, from what was kept on
    assert done == sorted(done) and {7, 10, 11} <= set(done) and done[0] > 4
    assert facts(again)[0][1] == pytest.approx(expected[0][1], rel=1e-2)  # pictures differ by a step in 255
    assert not kept(own_cache)


@pytest.mark.slow
def test_what_was_made_with_other_options_is_not_used(place, own_cache):
    base = Request(place / "model.safetensors", **HOW, **net(place))
    with pytest.raises(Interrupted):
        evaluate(base, on_progress=signal_at("generated", 4))
    (file,) = kept(own_cache)
    for changed in (
        {"sampling": {"batch_size": 2, "seed": 1}},
        {"sampling": {"batch_size": 2, "steps": 3}},
        {"sampling": {"batch_size": 2, "precision": "bf16"}},
        {"sampling": {"batch_size": 3}},
        {"n": 10},
        {"label": "all"},
        {"metrics": ("fid", "swd")},
        {"save": own_cache / "pictures"},
    ):
        seen = []
        request = Request(**{**base.__dict__, **changed})
        assert evaluate(request, on_progress=lambda what, done, total, seen=seen: seen.append((what, done)))
        first = changed.get("sampling", base.sampling)["batch_size"]
        assert min(done for what, done in seen if what == "generated") <= first, changed
    assert kept(own_cache) == [file]
    model = model_of(place)
    next(model.network.parameters()).add_(1e-3)
    from hdit_cli.engine.run.checkpoint import save_inference

    save_inference(own_cache / "other.safetensors", model)
    seen = []
    request = Request(**{**base.__dict__, "source": own_cache / "other.safetensors"})
    evaluate(request, on_progress=lambda what, done, total: seen.append((what, done)))
    assert min(done for what, done in seen if what == "generated") <= 2


@pytest.mark.slow
def test_pictures_that_are_saved_go_on_too(place, own_cache, tmp_path):
    request = Request(place / "model.safetensors", **{**HOW, "metrics": ("swd",)}, save=tmp_path / "out")
    with pytest.raises(Interrupted):
        evaluate(request, on_progress=signal_at("generated", 4))
    assert len(list((tmp_path / "out").iterdir())) == 4
    scored(request)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i:06d}.png" for i in range(11)]
    with pytest.raises(UsageError, match="not an empty folder"):
        scored(request)


def shares(place, monkeypatch, world, until, unfinished):
    """What each process of `world` does of eleven pictures, stopped after `until` of its batches."""
    found = []
    for rank in range(world):
        monkeypatch.setattr(runtime, "ranks", lambda rank=rank: runtime.Ranks(rank, world))
        seen = []
        pictures = Generated(
            model_of(place), 11, None, FEW, keep=lambda numbers, batch, seen=seen: seen.extend(numbers)
        )
        breaks = Breaks(_After(until[rank], seen), unfinished)
        try:
            fed = [Fed(METRICS, Inception(place / "net.pt"))]
            found.append((seen, collect(pictures, fed, on_progress=silent, breaks=breaks)[0]))
        except Interrupted:
            found.append((seen, None))
    return found


class _After:
    def __init__(self, number, seen):
        self.number, self.seen = number, seen

    @property
    def asked(self):
        return "SIGTERM" if len(self.seen) >= self.number else ""


@pytest.mark.parametrize(("before", "until"), [(2, (4, 4)), (3, (2, 4, 2)), (1, (8,))])
def test_another_number_of_processes_goes_on(place, own_cache, monkeypatch, before, until):
    """Each picture is still counted once."""
    fed = [Fed(METRICS, Inception(place / "net.pt"))]
    (alone,) = collect(Generated(model_of(place), 11, None, FEW), fed, on_progress=silent)
    unfinished = Unfinished("told")
    files.make_folder(unfinished.folder)
    first = shares(place, monkeypatch, before, until, unfinished)
    done = [number for seen, _ in first for number in seen]
    assert all(states is None for _, states in first) and len(set(done)) == len(done)
    ((left, states),) = shares(place, monkeypatch, 1, (99,), unfinished)
    assert sorted(done + left) == list(range(11))
    assert states is not None
    for kind in METRICS:
        assert states[kind.name].count == 11
        ours, theirs = states[kind.name].arrays(), alone[kind.name].arrays()
        order = np.argsort(ours["index"]) if "index" in ours else slice(None)
        for name, array in ours.items():
            rows = order if name not in ("count", "mean", "scatter", "size") else slice(None)
            np.testing.assert_allclose(array[rows], theirs[name], rtol=1e-9, atol=1e-6)


@pytest.mark.slow
def test_a_damaged_state_is_made_again(place, own_cache):
    request = Request(place / "model.safetensors", **HOW, **net(place))
    expected = facts(scored(request))
    with pytest.raises(Interrupted):
        evaluate(request, on_progress=signal_at("generated", 4))
    (file,) = kept(own_cache)
    file.write_bytes(file.read_bytes()[:-9])
    assert facts(scored(request)) == expected


def test_the_state_is_saved_once_in_a_while(place, own_cache, monkeypatch):
    """A kill loses what was done since the last save."""
    monkeypatch.setattr("hdit_cli.engine.scoring.unfinished.EVERY", 0.0)
    saved = []
    original = Unfinished.save

    def save(self, part, progress):
        original(self, part, progress)
        saved.append(len(progress.done))
        self._took = 0.0

    monkeypatch.setattr(Unfinished, "save", save)
    scored(Request(place / "model.safetensors", **{**HOW, "metrics": ("swd",)}))
    assert saved[-6:] == [2, 4, 6, 8, 10, 11]


def test_a_large_state_is_saved_less_often(own_cache):
    unfinished = Unfinished(1)
    unfinished._took = 10.0  # seconds: twenty times as long must pass
    unfinished._saved_at = time.monotonic() - 190
    assert not unfinished.due()
    unfinished._saved_at -= 20
    assert unfinished.due()


def test_two_of_the_same_do_not_run_at_once(own_cache):
    with Unfinished("same"), pytest.raises(UsageError, match="this very evaluation is in use"):
        Unfinished("same").__enter__()
    with Unfinished("same"), Unfinished("another"):
        pass
    assert not list((own_cache / "unfinished").iterdir())


def test_what_nobody_went_on_with_is_removed(own_cache):
    old = own_cache / "unfinished" / "old"
    old.mkdir(parents=True)
    (old / "x").write_text("")
    young = own_cache / "unfinished" / "young"
    young.mkdir()
    os.utime(old, (time.time() - 40 * 86400,) * 2)
    with Unfinished(1):
        assert not old.exists() and young.exists()


def test_where_nothing_can_be_kept_the_score_is_made_all_the_same(place, own_cache, monkeypatch):
    def full(path):
        raise StorageError(f"cannot write {path}: no space")

    with monkeypatch.context() as patch:
        patch.setattr("hdit_cli.engine.scoring.unfinished.files.make_folder", full)
        patch.setattr("hdit_cli.engine.scoring.references._LARGEST", 0)
        evaluation = scored(Request(place / "model.safetensors", **{**HOW, "metrics": ("swd",)}))
    assert any("break" in note for note in evaluation.notes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_command_obeys_a_signal_and_goes_on(place, tmp_path, processes):
    words = [
        sys.executable, "-m", "hdit_cli", "eval-fid", str(place / "model.safetensors"), "-n", "120", "--metrics", "swd",
        "--batch-size", "2", "--steps", "20", "--json", "--processes", processes,
    ]  # fmt: skip
    environment = {**os.environ, "HDIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    reference = tmp_path / "cache" / "reference"
    while not reference.is_dir() or not list(reference.iterdir()):
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 75, out + err
    assert "saved" in err and "goes on" in err and not out
    assert len(kept(tmp_path / "cache")) == int(processes)
    again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    whole = subprocess.run(
        words, env={**environment, "HDIT_CACHE": str(tmp_path / "whole")}, capture_output=True, text=True
    )
    (ours,), (theirs,) = (json.loads(run.stdout)["scores"] for run in (again, whole))
    assert ours == theirs
    assert not kept(tmp_path / "cache")
