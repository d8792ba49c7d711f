"""Compiled steps: one graph for each picture size, the weights of eager mode, and nothing else of a run changed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_recipe

from hdit_cli import runtime
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.run.folder import differences
from hdit_cli.engine.sampling import compiled as compiled_steps
from hdit_cli.engine.sampling import generate
from hdit_cli.engine.sampling.compiled import Compiled, CompiledDenoiser, told, wants_compiled
from hdit_cli.engine.sampling.generate import stream
from hdit_cli.engine.training import loop as training
from hdit_cli.engine.training.step import compile_step
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import Sampling

# one level compiles in seconds
SMALL = {
    "model__levels": [
        {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3, "dropout": 0.1}
    ]
}


class Graphs:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, _):
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def weights(stepper):
    return torch.cat([parameter.detach().flatten() for parameter in stepper.state.parameters])


def test_a_step_is_one_graph_and_comes_to_the_same_weights():
    """Whatever runs between two steps."""
    recipe = tiny_recipe(**SMALL, train__accumulate=2, optimizer={"lr": 1e-2})
    eager, compiled, graphs = Subject(recipe, data=None), Subject(recipe, data=None), Graphs()
    names = list(compiled.model.network.state_dict())
    before = weights(compiled.stepper)
    compiled.stepper.compile(sizes=1, fall_back=False, backend=graphs)
    for _ in range(3):
        eager.step()
        compiled.step()
        compiled.model.denoiser.eval()  # as validation does, and drawing
        with torch.inference_mode():
            compiled.model.denoiser(torch.zeros(3, 3, 16, 16), torch.ones(3))
        compiled.model.denoiser.train()
    assert graphs.count == 1
    with Peak(compiled.device) as peak:  # sees operations, which a graph hides
        compiled.step()
    eager.step()
    assert peak.bytes > 0 and graphs.count == 1
    found = weights(compiled.stepper)
    torch.testing.assert_close(found, weights(eager.stepper), rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 5e-3
    assert list(compiled.model.network.state_dict()) == names


@pytest.mark.slow
def test_one_graph_for_each_size_of_pictures(monkeypatch):
    """Buckets come in turns; more sizes than torch keeps graphs for by itself."""
    monkeypatch.setattr(compiled_steps, "_OTHERS", 0)
    subject, graphs = Subject(tiny_recipe(**SMALL), data=None), Graphs()
    with torch._dynamo.config.patch(recompile_limit=1):
        subject.stepper.compile(sizes=3, fall_back=False, backend=graphs)
        square = subject.batches
        for _ in range(2):
            for size in ((16, 16), (12, 20), (20, 12)):
                subject.batches = [replace(batch, pixels=batch.pixels.new_zeros(8, 3, *size)) for batch in square]
                subject.step()
    assert graphs.count == 3


# Runs


def run(folder, recipe, data, monkeypatch, *, cut=0):
    """Trains with graphs that are counted; with `cut`, until that step was taken, as a killed process would."""
    graphs = Graphs()

    def compile_step(stepper, *, sizes):
        stepper.compile(sizes=sizes, fall_back=False, backend=graphs)
        return []

    class Cut(Exception):
        pass

    def watch(event):
        if isinstance(event, events.Stepped) and event.step == cut:
            raise Cut

    torch._dynamo.reset()
    monkeypatch.setattr(training, "compile_step", compile_step)
    try:
        training.train(folder, recipe, data=data, watch=watch)
    except Cut:
        assert cut
    return graphs.count


def contents(folder):
    newest = folder / "checkpoints" / checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    found = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "ckpt.safetensors")}
    return found | {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


@pytest.mark.slow
def test_a_compiled_run_that_was_cut_ends_with_the_same_bits(tiny_data, tmp_path, monkeypatch):
    """One graph, though the run draws and saves; layers that are computed again and dropout are in it."""
    recipe = tiny_recipe(model__levels=[{**SMALL["model__levels"][0], "checkpoint": True}], train__steps=6)
    assert run(tmp_path / "whole", recipe, tiny_data, monkeypatch) == 1
    assert run(tmp_path / "cut", recipe, tiny_data, monkeypatch, cut=5) == 1
    assert run(tmp_path / "cut", recipe, tiny_data, monkeypatch) == 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


DIT = {"type": "dit", "size": [16, 16], "patch": 4, "depth": 1, "width": 256, "heads": 4, "classes": "data"}
MODELS = {
    "hdit": {"model__levels": [{"depth": 1, "width": 32, "head_dim": 16, "attention": "neighborhood", "kernel": 3}]},
    "dit": {"model": DIT, "task": {"type": "ddpm", "clip": True}},
}
needs_compiler = pytest.mark.skipif(bool(runtime.why_not_compiled(torch.device("cpu"))), reason="no compiler here")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def compiled_recipe(family, **changes):
    return tiny_recipe(**MODELS[family], train__compile=True, train__deterministic=False, **changes)


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", MODELS)
def test_real_code_of_several_threads_ends_with_the_same_bits(family, tiny_data, tmp_path):
    """Not asked to be deterministic, and cut in the middle."""

    class Cut(Exception):
        pass

    def cut(event):
        if isinstance(event, events.Stepped) and event.step == 5:
            raise Cut

    recipe = compiled_recipe(family, train__steps=6, train__sample_every=0)
    training.train(tmp_path / "whole", recipe, data=tiny_data, watch=lambda event: None)
    torch._dynamo.reset()
    with pytest.raises(Cut):
        training.train(tmp_path / "cut", recipe, data=tiny_data, watch=cut)
    torch._dynamo.reset()
    training.train(tmp_path / "cut", recipe, data=tiny_data, watch=lambda event: None)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_code_of_a_cpu_is_made_deterministic_unasked(device, monkeypatch):
    """On CUDA it costs speed, so there it has to be asked for."""
    monkeypatch.setattr(runtime, "why_not_compiled", lambda device: "")
    stepper = Subject(compiled_recipe("dit"), data=None).stepper
    monkeypatch.setattr(stepper, "compile", lambda **how: None)
    stepper.device = torch.device(device)
    compile_step(stepper, sizes=1)
    assert torch.are_deterministic_algorithms_enabled() == (device == "cpu")


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("two_threads")
def test_real_code_of_several_threads_has_one_gradient():
    """Rows of the table of classes are added up by many images at once; each order of the sum is rounded otherwise."""
    subject = Subject(compiled_recipe("dit", train__batch_size=64), data=None)
    stepper = subject.stepper
    assert compile_step(stepper, sizes=1) == []
    drawn, found = stepper.draw(subject.batches[0], first=0), set()
    with torch.no_grad():
        for parameter in stepper.state.parameters:  # a new network says nothing, and its table learns nothing
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    for _ in range(40):
        stepper.state.optimizer.zero_grad(set_to_none=True)
        stepper.losses_of(drawn).loss.mean().backward()
        found.add(b"".join(p.grad.numpy().tobytes() for p in stepper.state.parameters if p.grad is not None))
    assert len(found) == 1


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tiny_data, tmp_path):
    """Losses of float64 steps to 1e-9, one process in eager mode; one graph in each of the two."""
    level = {**SMALL["model__levels"][0], "checkpoint": True}
    recipe = tiny_recipe(
        model__levels=[level], train__precision="fp64", train__steps=4, train__log_every=1, train__accumulate=2
    )
    training.train(tmp_path / "alone", recipe, data=tiny_data, watch=lambda event: None)
    file = tmp_path / "tiny.toml"
    file.write_text(recipe.to_toml())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    program = Path(__file__).with_name("compiled_process.py")
    words = [sys.executable, str(program), str(file), str(tiny_data), str(tmp_path / "shared")]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(words, env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    said = [child.communicate(timeout=240)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert [int(text.split()[-1]) for text in said] == [1, 1]
    ours, theirs = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("shared", "alone")
    )
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-9)


# When


def test_when_a_step_is_compiled(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(runtime, "why_not_compiled", lambda device: "")
    assert wants_compiled("auto", device=cuda, deterministic=False) == (True, "")
    assert wants_compiled("auto", device=cuda, deterministic=True) == (False, "")
    assert wants_compiled("auto", device=cpu, deterministic=False) == (False, "")
    assert wants_compiled(True, device=cpu, deterministic=True) == (True, "")
    assert wants_compiled(False, device=cuda, deterministic=False) == (False, "")


def test_a_machine_without_compilers(monkeypatch):
    """What is asked for is refused in a sentence; what is automatic goes on in eager mode and says so."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    wanted, note = wants_compiled("auto", device=cuda, deterministic=False)
    assert not wanted and "triton" in note
    with pytest.raises(UsageError, match="compiler") as caught:
        wants_compiled(True, device=cpu, deterministic=False)
    assert "--set train.compile=false" in caught.value.hint


@pytest.mark.parametrize(("missing", "word"), [("g++", "C++"), ("gcc", "C compiler")])
def test_code_for_a_gpu_needs_two_compilers(missing, word, monkeypatch):
    """One for Triton's launchers, one for what is left to the CPU."""
    there = {"gcc", "cc", "clang", "g++"} - ({"g++"} if missing == "g++" else {"gcc", "cc", "clang"})
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setattr(runtime, "find_spec", lambda name: name)
    cuda = torch.device("cuda")
    wanted, note = wants_compiled("auto", device=cuda, deterministic=False)
    assert not wanted and word in note
    with pytest.raises(UsageError, match=re.escape(word)) as caught:
        wants_compiled(True, device=cuda, deterministic=False)
    assert "install" in caught.value.hint
    there |= {"gcc", "g++"}
    assert wants_compiled(True, device=cuda, deterministic=False) == (True, "")


def broken(graph, _):
    raise RuntimeError("the assembler is missing")


def test_code_that_cannot_be_made():
    switch = "--set train.compile=false"
    with pytest.raises(UsageError, match="assembler") as caught:
        Compiled(torch.sin, graphs=1, switch=switch, backend=broken)(torch.ones(2))
    assert switch in caught.value.hint
    falls = Compiled(lambda x: x + 1, graphs=1, switch=switch, fall_back=True, backend=broken)
    assert falls(torch.ones(2)).tolist() == [2, 2]
    assert "assembler" in falls.note


def test_a_backward_pass_that_cannot_be_compiled():
    """It is compiled when it first runs, outside the call."""

    with pytest.raises(UsageError, match="no registers left"), told("--set train.compile=false"):
        raise torch._dynamo.exc.InternalTorchDynamoError("no registers left")
    with pytest.raises(ZeroDivisionError), told(""):
        1 / 0  # noqa: B018


def test_errors_of_what_is_compiled_stay_what_they_are():
    def full(x):
        raise MemoryError

    compiled = Compiled(torch.sin, graphs=1, switch="", fall_back=True)
    compiled.run = full
    with pytest.raises(MemoryError):
        compiled(torch.ones(2))
    assert not compiled.note


def test_the_key_may_change_under_a_run():
    assert differences(tiny_recipe().to_dict(), tiny_recipe(train__compile=True)) == []
    with pytest.raises(UsageError, match='true, false or "auto"'):
        tiny_recipe(train__compile="yes")


# Sampling


@pytest.mark.slow
def test_compiled_samples(monkeypatch):
    """One graph for the batch and one for its double, none for the last batch; pixels to 1/255."""
    recipe, graphs = tiny_recipe(**SMALL), Graphs()
    torch.manual_seed(0)
    network = build_network(recipe, classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = Model(build_task(network, recipe).eval().requires_grad_(False), recipe.to_dict(), ["a", "b", "c"])

    def counted(denoiser, **kwargs):
        return CompiledDenoiser(denoiser, **kwargs, backend=graphs)

    monkeypatch.setattr(generate, "CompiledDenoiser", counted)
    common = {"steps": 5, "batch_size": 4, "cfg": 2.0, "cfg_interval": (0.1, 3.0)}
    labels = torch.arange(9) % 3
    made = [
        torch.cat([images for _, images in stream(model, indices=range(9), labels=labels, sampling=sampling)])
        for sampling in (Sampling(**common), Sampling(**common, compile=True), Sampling(**common, compile=True))
    ]
    assert graphs.count == 2
    assert (made[0].int() - made[1].int()).abs().max() <= 1
    assert torch.equal(made[1], made[2])
    assert made[0].float().std() > 5
