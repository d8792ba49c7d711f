"""A run's clock on a device that is told its work and does it later: a pretended one, whose time passes only by what it does."""

import json

import pytest
import torch
from tiny_run import tiny_recipe

from hdit_cli import runtime
from hdit_cli.engine.run import events
from hdit_cli.engine.training import clock as clocks
from hdit_cli.engine.training.clock import Clock
from hdit_cli.engine.training.loop import Trainer, train
from hdit_cli.engine.training.step import Stepper

LAUNCH, STEP = 0.01, 1.0  # seconds of the host to tell a step, and of the device to do it


class Device:
    """A queue: the host goes on as soon as it has told, and a wait is as long as what is left."""

    def __init__(self):
        self.now = self.free = 100.0
        self.waits = 0

    def tell(self, seconds, *, host=LAUNCH):
        self.now += host
        self.free = max(self.free, self.now) + seconds

    def wait(self, device):
        self.waits += 1
        self.now = max(self.now, self.free)

    def perf_counter(self):
        return self.now

    time = perf_counter


@pytest.fixture
def device(monkeypatch):
    pretended = Device()
    monkeypatch.setattr(runtime, "runs_behind", lambda device: True)
    monkeypatch.setattr(runtime, "wait_for_device", pretended.wait)
    monkeypatch.setattr(clocks, "time", pretended)
    return pretended


def clock_of(images=8):
    return Clock(images=images, device=torch.device("cpu"))


def steps(clock, device, count, *, seconds=STEP):
    for _ in range(count):
        with clock:
            device.tell(seconds)


def test_the_device_is_measured_and_not_the_launches(device):
    clock = clock_of()
    steps(clock, device, 1, seconds=60.0)  # compiled
    assert clock.rate == pytest.approx(8 / 60, rel=0.01)  # told at once: a first number
    steps(clock, device, 5)
    clock.settle()
    assert clock.rate == pytest.approx(8, rel=0.02)  # compiling is in it no longer
    steps(clock, device, 45)
    clock.settle()
    assert clock.rate == pytest.approx(8, rel=0.02)
    assert clock.trained == pytest.approx(60 + 50, rel=0.02)


def test_between_two_waits_the_rate_is_the_last_known_and_nobody_waits(device):
    clock = clock_of()
    steps(clock, device, 1)
    before = device.waits
    steps(clock, device, 20, seconds=2.0)
    assert clock.rate == pytest.approx(8, rel=0.02)
    assert device.waits == before + 1  # as the second step began, for what was told before it
    clock.settle()
    assert clock.rate == pytest.approx(8 * 20 / 40, rel=0.02)  # without the first step
    clock.settle()  # nothing since
    assert clock.trained == pytest.approx(41, rel=0.02)


def test_a_rate_never_grows_old(device):
    """Launches are as slow as steps here: after PATIENCE seconds of them the clock waits."""
    clock = clock_of()
    steps(clock, device, 1)
    before = device.waits
    for _ in range(25):
        with clock:
            device.tell(0.5, host=1.0)
    assert 2 <= device.waits - before <= 6


def test_what_is_not_training_stays_out(device):
    clock = clock_of()
    for _ in range(3):
        steps(clock, device, 10)
        clock.settle()
        device.tell(500.0, host=500.0)  # pictures, still being drawn when the next step is told
    steps(clock, device, 10)
    clock.settle()
    assert clock.trained == pytest.approx(40, rel=0.02)
    assert clock.rate == pytest.approx(8, rel=0.02)


def test_a_step_that_fails_is_not_waited_for(device):
    clock, before = clock_of(), device.waits
    with pytest.raises(MemoryError), clock:
        raise MemoryError
    assert device.waits == before + 1 and not clock.recent


def test_on_a_cpu_each_step_counts_by_itself(monkeypatch):
    host = Device()
    monkeypatch.setattr(clocks, "time", host)
    clock = clock_of()
    for number in range(60):
        with clock:
            host.now += 10.0 if number < 10 else 1.0
        host.now += 77.0
    assert clock.rate == pytest.approx(8)  # the last 50
    assert clock.trained == pytest.approx(150)


def test_a_run_tells_what_the_device_does(device, tiny_data, tmp_path, monkeypatch):
    """Log lines, the bar's number and the seconds of training, with grids and checkpoints between."""
    real, drawn = Stepper.step, Trainer.draw

    def step(self, batches):
        real(self, batches)
        device.tell(STEP)

    def draw(self, stop):
        device.tell(300.0)
        yield from drawn(self, stop)

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr(Trainer, "draw", draw)
    recipe = tiny_recipe(train__steps=12, train__log_every=5, train__sample_every=4, train__save_every=3)
    rates, logged = [], []

    def watch(event):
        if isinstance(event, events.Stepped):
            rates.append(event.images_per_second)
        if isinstance(event, events.Logged):
            logged.append(rates[-1])

    train(tmp_path / "run", recipe, data=tiny_data, watch=watch)
    lines = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["trained_seconds"] for line in lines] == pytest.approx([5, 10, 12], rel=0.05)
    assert [line["images_per_second"] for line in lines] == pytest.approx([8] * 3, rel=0.05)
    assert rates == pytest.approx([8] * 12, rel=0.05)  # 800 and more, by the launches
    assert [round(rate, 3) for rate in logged] == [line["images_per_second"] for line in lines]
