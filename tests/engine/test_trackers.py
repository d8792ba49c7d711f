"""Trackers get the numbers of the logs, go on with a run, and never stop one."""

import json
import sys

import pytest
from tiny_run import tiny_recipe

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.engine.run import events
from hdit_cli.engine.training import trackers
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import UsageError


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("split") / "data"
    prepare(tiny_data, out=out, options=PrepareOptions(size=(16, 16), format="png", hold_out=0.3), workers=1)
    return out


def recipe(*names, **changes):
    return tiny_recipe(log={"trackers": list(names)}, validation={"every": 4, "images": 4, "levels": 2}, **changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder):
    """{tag: {step: value}} of what TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, found


def agree(folder):
    """Everything in the logs is in TensorBoard, once."""
    shown, found = scalars(folder)
    logged = lines(folder / "metrics.jsonl")
    for name in ("loss", "lr", "grad_norm", "images"):
        assert [step for step, _ in shown[f"train/{name}"]] == [line["step"] for line in logged]
        assert [value for _, value in shown[f"train/{name}"]] == pytest.approx([line[name] for line in logged])
    sigma, loss = logged[0]["loss_by_sigma"][0]
    assert shown[f"train-by-sigma/{sigma:.3g}"][0] == (logged[0]["step"], pytest.approx(loss))
    validated = [
        line for line in lines(folder / "validation.jsonl") if (line["weights"], line["split"]) == ("ema", "held-out")
    ]
    assert shown["validation/held-out-ema"] == [(line["step"], pytest.approx(line["mean"])) for line in validated]
    for tag in ("samples/raw", "samples/ema"):
        assert [image.step for image in found.Images(tag)] == [0, 4, 8]
    assert "speed/images_per_second" in shown


def test_tensorboard_shows_the_logs(data, tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", recipe("tensorboard"), data=data, watch=lambda event: None)
    agree(tmp_path / "run")


@pytest.mark.slow
def test_tensorboard_goes_on_in_the_same_curves(data, tmp_path):
    """Cut after a log line that the checkpoint does not know; it is shown once, and the run's own files are the same."""
    pytest.importorskip("tensorboard")

    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Logged) and event.step == 6:
            raise Cut

    with pytest.raises(Cut):
        train(tmp_path / "run", recipe("tensorboard"), data=data, watch=stop)
    train(tmp_path / "run", recipe("tensorboard"), data=data, watch=lambda event: None)
    agree(tmp_path / "run")
    train(tmp_path / "plain", recipe(), data=data, watch=lambda event: None)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_wandb_offline(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    warned = []

    def watch(event):
        if isinstance(event, events.Warned):
            warned.append(event.text)

    train(tmp_path / "run", recipe("wandb", train__steps=4), data=data, watch=watch)
    identity = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    train(tmp_path / "run", recipe("wandb"), data=data, watch=watch)
    assert warned == []
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] == identity
    found = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(found) == 2 and all(path.stat().st_size for path in found)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_before_anything_is_written(data, tmp_path, monkeypatch, name):
    monkeypatch.setitem(trackers._INSTALLED, name, lambda: False)
    with pytest.raises(UsageError, match=f"{name}, which is not installed") as caught:
        train(tmp_path / "run", recipe(name), data=data, watch=lambda event: None)
    assert f"pip install 'hdit-cli[{name}]'" in caught.value.hint
    assert not (tmp_path / "run").exists()


class Fake:
    """A tracker that fails at its n-th call."""

    def __init__(self, fails_at):
        self.calls, self.fails_at, self.finished = 0, fails_at, False

    def log(self, values, step=None, **options):
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError("no network")

    log_images = log

    def finish(self):
        self.finished = True


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", [1, 3, 1000])
def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(data, tmp_path, monkeypatch, fails_at):
    fake = Fake(fails_at)
    monkeypatch.setitem(trackers._INSTALLED, "tensorboard", lambda: True)
    monkeypatch.setattr(trackers.Trackers, "_tensorboard", lambda self: fake)
    seen = []
    finished = train(tmp_path / "run", recipe("tensorboard"), data=data, watch=seen.append)
    assert finished.step == 8
    warned = [event.text for event in seen if isinstance(event, events.Warned)]
    if fails_at == 1000:
        assert warned == [] and fake.finished and fake.calls > 8
    else:
        assert len(warned) == 1 and "OSError: no network" in warned[0]
        assert fake.calls == fails_at


def test_a_tracker_that_cannot_start_stops_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setitem(trackers._INSTALLED, "wandb", lambda: True)

    def refuse(self):
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr(trackers.Trackers, "_wandb", refuse)
    seen = []
    with pytest.raises(UsageError, match="wandb cannot start: RuntimeError: api_key not configured") as caught:
        train(tmp_path / "run", recipe("wandb"), data=data, watch=seen.append)
    assert "WANDB_MODE=offline" in caught.value.hint
    assert [type(event) for event in seen] == [events.Started]


def test_nothing_is_imported_for_a_run_without_trackers(data, tmp_path):
    before = {name for name in sys.modules if name.partition(".")[0] in ("tensorboard", "wandb")}
    train(tmp_path / "run", recipe(train__steps=3), data=data, watch=lambda event: None)
    assert {name for name in sys.modules if name.partition(".")[0] in ("tensorboard", "wandb")} == before
    assert not (tmp_path / "run" / "tensorboard").exists()
