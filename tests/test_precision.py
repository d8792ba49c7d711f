"""In what the network multiplies: by itself, as asked for, as recorded; and the nets of scores in IEEE float32 whatever that is."""

import json
import sys
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from hdit_cli import precision
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.generate import generate, stream
from hdit_cli.engine.sampling.pace import as_recorded, paced
from hdit_cli.engine.scoring.job import _keyed
from hdit_cli.errors import UsageError
from hdit_cli.metrics.feature_net import rows
from hdit_cli.models.codecs.pixels import Pixels
from hdit_cli.precision import computing, resolved
from hdit_cli.tasks.sampling import Sampling

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SAMPLING = Sampling(steps=2, batch_size=2)


def switches():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")


IEEE, TF32, USUAL = ("highest", False, False), ("high", True, False), ("highest", True, False)


@pytest.fixture(autouse=True)
def as_before():
    """No test leaves a switch elsewhere, and each begins with torch's own."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    assert switches() == USUAL
    yield
    assert switches() == USUAL
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def ampere(monkeypatch):
    """Every device is taken for one that has TF32: only the switches are looked at."""
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)


@pytest.fixture
def model():
    sys.path.insert(0, __file__.rpartition("/")[0] + "/tasks")
    from test_task_laws import made

    task, recipe = made(("hdit", "denoise"), dtype=torch.float32)
    sys.path.pop(0)
    return Model(task.eval().requires_grad_(False), recipe.to_dict(), ["a", "b"])


def seen_in(module):
    found = []
    module.register_forward_pre_hook(lambda *_: found.append(switches()))
    return found


@pytest.mark.parametrize(
    ("wanted", "dtype", "capability", "found"),
    [
        ("auto", torch.float32, 8, "tf32"),
        ("auto", torch.float32, 7, "fp32"),
        ("auto", torch.float64, 9, "fp64"),
        ("auto", torch.bfloat16, 9, "bf16"),
        ("fp32", torch.float32, 9, "fp32"),
        ("bf16", torch.float32, 9, "bf16"),
        ("bf16", torch.bfloat16, 9, "bf16"),
        ("tf32", torch.float32, 7, "since Ampere"),
        ("fp32", torch.float64, 9, "stored in fp64"),
        ("tf32", torch.bfloat16, 9, "stored in bf16"),
        ("half", torch.float32, 9, "no precision"),
    ],
)
def test_what_a_card_computes_in(wanted, dtype, capability, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    if " " not in found:
        assert resolved(wanted, dtype=dtype, device=CUDA) == found
    else:
        with pytest.raises(UsageError, match=found):
            resolved(wanted, dtype=dtype, device=CUDA)


def test_a_cpu_has_no_tf32():
    assert resolved("auto", dtype=torch.float32, device=CPU) == "fp32"
    with pytest.raises(UsageError, match="NVIDIA") as caught:
        resolved("tf32", dtype=torch.float32, device=CPU)
    assert "--precision fp32" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("word", "inside"),
    [("auto", TF32), ("tf32", TF32), ("fp32", IEEE), ("bf16", ("high", True, True))],
)
def test_the_network_runs_as_asked_and_nothing_stays_switched(model, ampere, word, inside):
    found = seen_in(model.network)
    for _ in stream(model, indices=range(3), labels=torch.zeros(3).long(), sampling=replace(SAMPLING, precision=word)):
        assert switches() == USUAL
    assert set(found) == {inside} and len(found) == 4  # two batches of two steps


class Codec(Pixels):
    """Pixels, and what was switched when they were decoded and encoded."""

    def __init__(self):
        super().__init__(3)
        self.seen = []

    def encode(self, x):
        self.seen.append(switches())
        return super().encode(x)

    def decode(self, x0):
        self.seen.append(switches())
        return super().decode(x0)


@pytest.mark.parametrize(("word", "inside"), [("auto", TF32), ("fp32", IEEE), ("bf16", TF32)])
def test_a_codec_is_as_exact_as_asked_and_never_in_bfloat16(model, ampere, word, inside):
    model.latents = codec = Codec()
    sampling = replace(SAMPLING, precision=word, strength=0.5)
    for _ in stream(model, indices=[0], labels=torch.zeros(1).long(), sampling=sampling, x0=torch.zeros(1, 3, 16, 16)):
        pass
    assert codec.seen == [inside, inside]


def test_on_a_cpu_nothing_is_switched_on(model):
    found = seen_in(model.network)
    plain = generate(model, n=2, steps=2)
    assert set(found) == {IEEE}
    assert torch.equal(plain, generate(model, n=2, steps=2, precision="fp32"))
    lower = generate(model, n=2, steps=2, precision="bf16")
    assert 0 < (lower.int() - plain.int()).abs().max() < 40
    with pytest.raises(UsageError, match="tf32"):
        generate(model, n=2, steps=2, precision="tf32")


def test_a_sampling_that_fails_leaves_no_switch(model, ampere):
    model.network.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, n=1, steps=2)


def test_the_nets_of_scores_are_in_ieee_float32_whatever_is_around(ampere):
    net = nn.Flatten()
    found = seen_in(net)
    with computing("bf16", CPU):
        features = rows(np.ones((3, 3, 2, 2), dtype=np.float32), net, device=CPU, batch=2)
        assert switches() == ("high", True, True)
    assert features.dtype == np.float32 and set(found) == {IEEE}


def test_two_threads_do_not_switch_for_each_other(ampere):
    found, inside, done = [], threading.Event(), threading.Event()

    def score():
        inside.wait()
        with computing("fp32", CPU):
            found.append(switches())
        done.set()

    thread = threading.Thread(target=score)
    thread.start()
    with computing("tf32", CPU):
        inside.set()
        assert not done.wait(0.05)  # it waits for its turn
        assert switches() == TF32
    thread.join()
    assert found == [IEEE]


# What is written down


def paced_on(model, word, **how):
    return paced(model, replace(SAMPLING, precision=word), images=2, batch_size=2, compile=False, **how)


def test_what_was_taken_is_written_down_and_taken_again(model, ampere):
    for word, kept in (("auto", "tf32"), ("fp32", "fp32"), ("bf16", "bf16")):
        found = paced_on(model, word)
        assert found.precision == kept
        assert as_recorded(model, found) == (found, "")


def test_a_record_of_a_card_on_a_cpu_is_told(model):
    found, note = as_recorded(model, replace(SAMPLING, precision="tf32"))
    assert found.precision == "fp32" and "tf32" in note and "pixels" in note


def test_records_that_say_none_were_made_in_float32(tmp_path, ampere, model):
    from hdit_cli.engine.sampling.recorded import read_order

    told = {name: value for name, value in asdict(SAMPLING).items() if name != "precision"}
    record = {
        "format": "hdit-samples/1",
        "checkpoint": "x",
        "checkpoint_sha256": "",
        "weights": "ema",
        "n": 2,
        "label": None,
    }
    (tmp_path / "samples.json").write_text(json.dumps({**record, "sampling": told}))
    order = read_order(tmp_path / "samples.json").order
    assert as_recorded(model, order.sampling)[0].precision == "fp32"
    (tmp_path / "samples.json").write_text(json.dumps({**record, "sampling": {**told, "precision": "fp8"}}))
    with pytest.raises(UsageError, match="fp8"):
        read_order(tmp_path / "samples.json")


def test_evaluations_of_two_precisions_never_meet_and_old_ones_go_on():
    told = {word: json.dumps(_keyed(replace(SAMPLING, precision=word))) for word in ("fp32", "tf32", "bf16")}
    assert len(set(told.values())) == 3
    assert "precision" not in told["fp32"]  # as before there was a choice
