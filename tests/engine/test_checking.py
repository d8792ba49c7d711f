"""The check of a machine: right here, and each of its parts finds the fault that is planted for it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from torch.nn import functional as F

from hdit_cli import catalog, cli
from hdit_cli.engine.checking import attention, compiling, measuring, report, running, steps
from hdit_cli.engine.checking import ground as ground_module
from hdit_cli.engine.checking.ground import Found, Ground
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.events import Stepped
from hdit_cli.engine.training.clock import Clock
from hdit_cli.engine.training.state import TrainState
from hdit_cli.errors import CheckpointError, Interrupted, StorageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("ground"), CPU)


@pytest.fixture
def few(monkeypatch):
    """One width, one map, one network: enough to plant a fault in."""
    chosen = next(each for each in steps.variants() if each[0] == "dit, denoise")
    monkeypatch.setattr(attention, "WIDTHS", (16,))
    monkeypatch.setattr(attention, "MAPS", ((9, 12, 5),))
    for module in (steps, compiling):
        monkeypatch.setattr(module, "variants", lambda: [chosen])
    monkeypatch.setattr(compiling, "usual", lambda: chosen)


# Attention


def test_attention_is_right(ground, few):
    found = attention.check(ground)
    assert not found.wrong and not found.skipped
    rows = found.numbers["cases"]
    assert {(row["backend"], row["precision"]) for row in rows} >= {
        ("tiled", p) for p in ("fp64", "fp32", "bf16", "fp16")
    }
    assert "reference" not in {row["backend"] for row in rows}


def off_by_scale(attend):
    return lambda q, k, v, *, kernel: attend(q * 1.001 if q.dtype == torch.float32 else q, k, v, kernel=kernel)


def wrong_corner(attend):
    def planted(q, k, v, *, kernel):
        out = attend(q, k, v, kernel=kernel)
        if q.dtype != torch.bfloat16:
            return out
        corner = torch.zeros_like(out)
        corner[:, -1, -1] = 1
        return out + corner * 0.2

    return planted


def forgets_a_gradient(attend):
    return lambda q, k, v, *, kernel: attend(q, k.detach() + 0 * k, v, kernel=kernel)


def wrong_when_sampling(attend):
    def planted(q, k, v, *, kernel):
        out = attend(q, k, v, kernel=kernel)
        return out if torch.is_grad_enabled() else out.flip(1)

    return planted


def not_finite(attend):
    def planted(q, k, v, *, kernel):
        out = attend(q, k, v, kernel=kernel)
        return out / (q.dtype != torch.float16)

    return planted


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (off_by_scale, "in fp32"),
        (wrong_corner, "in bf16 differs from the reference: output"),
        (forgets_a_gradient, "dk"),
        (wrong_when_sampling, "output without gradients"),
        (not_finite, "in fp16"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("backend", ["tiled", "strips"])
def test_a_backend_with_wrong_numbers(ground, few, monkeypatch, fault, words, backend):
    module = catalog.get("attention", backend)
    if words.endswith(("bf16 differs from the reference: output", "fp16")) and backend == "strips":
        words = ""  # it takes no such precision
    monkeypatch.setattr(module, "attend", fault(module.attend))
    found = attention.check(ground)
    assert bool(found.wrong) == bool(words)
    if words:
        assert found.wrong.startswith(backend) and words in found.wrong and found.hint


def test_every_backend_of_the_device_is_asked(monkeypatch, few, ground):
    """One that is added to the catalog is checked without a word here."""
    monkeypatch.setitem(catalog.CATALOG["attention"], "another", "hdit_cli.models.attention.tiled")
    assert "another" in {row["backend"] for row in attention.check(ground).numbers["cases"]}


# Training steps


def test_every_network_with_every_task_that_it_learns():
    names = {"hdit, denoise", "dit, denoise", "dit, ddpm", "paella, tokens", "kl-vae, autoencode"}
    assert {name for name, _ in steps.variants()} == names
    assert {name.split(",")[0] for name, _ in steps.variants()} - {"kl-vae"} == set(catalog.names("model"))
    assert {name.split(", ")[1] for name, _ in steps.variants()} == set(catalog.names("task"))


def test_steps_are_right(ground):
    found = steps.check(ground)
    assert not found.wrong
    for row in found.numbers["steps"]:
        assert 0 < row["errors"]["gradient"] < row["allowed"]["gradient"]  # bf16 is another precision, and near


def test_a_gradient_reaches_every_weight_that_is_compared():
    for name, recipe in steps.variants():
        step = steps.Step(recipe, precision="fp32", device=None)
        taken = step.take(step.draw())
        assert taken.gradients and all(gradient.any() for gradient in taken.gradients.values()), name


def attention_wrong_in_bf16(monkeypatch):
    right = F.scaled_dot_product_attention
    planted = lambda q, *args, **options: right(q, *args, **options) * (1.5 if q.dtype == torch.bfloat16 else 1)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", planted)


def optimizer_steps_twice(monkeypatch):
    right = torch.optim.AdamW.step

    def planted(self):
        right(self)
        right(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", planted)


def loss_not_finite(monkeypatch):
    right = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, **options: right(x, **options) / (x.dtype != torch.bfloat16))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (attention_wrong_in_bf16, "gradient of blocks"),
        (optimizer_steps_twice, "its update"),
        (loss_not_finite, "its loss"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_step_that_is_wrong(ground, few, monkeypatch, fault, words):
    fault(monkeypatch)
    checked = report.run("training step", steps.check, ground)
    assert checked.state == "failed" and words in checked.text and "bf16" in checked.text and checked.code == 1


# Compiled code


def planted_compiler(monkeypatch, change):
    """Stands for `torch.compile`; what it makes is off by `change`."""
    monkeypatch.setattr(
        torch, "compile", lambda plain, **options: lambda *args, **kwargs: change(plain(*args, **kwargs))
    )
    monkeypatch.setattr(compiling.runtime, "why_not_compiled", lambda device: "")


@pytest.mark.parametrize(("factor", "words"), [(1.0, ""), (1.01, "a compiled step of dit, denoise is wrong")])
def test_a_compiled_step_that_is_wrong(ground, few, monkeypatch, factor, words):
    planted_compiler(monkeypatch, lambda value: value * factor)
    assert compiling.check_step(ground).wrong.startswith(words)


def test_a_compiler_that_makes_wrong_code(ground, few, monkeypatch):
    planted_compiler(monkeypatch, lambda value: value * 1.01 if value.dim() == 0 else value)
    assert "a few layers" in compiling.check_step(ground).wrong


def test_no_compiler_is_no_fault(ground, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = compiling.check_step(ground)
    assert found.skipped and "no-such-compiler" in found.text and not found.wrong


def test_a_replay_that_is_stale(ground, few, monkeypatch):
    planted_compiler(monkeypatch, lambda value: value)
    assert not compiling.replayed(ground).wrong
    first = []

    def stale(value):
        first.append(value)
        return first[0]

    planted_compiler(monkeypatch, stale)
    assert "a replayed network gives something else" in compiling.replayed(ground).wrong


def test_cuda_graphs_are_told_to_be_of_cuda(ground):
    found = compiling.check_graphs(ground)
    assert found.skipped and "CUDA" in found.text


# A run


def test_resume_and_checkpoint_are_right(ground):
    found = running.check_resume(ground)
    assert not found.wrong and found.numbers["went_on_from"] == [2]
    assert not running.check_checkpoint(ground).wrong


def test_a_wrong_resume(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainState, "_restore_optimizer", lambda self, tensors: None)
    again = Ground(tmp_path, CPU)
    again.data, again.unbroken = ground.data, ground.unbroken  # type: ignore[misc]
    found = running.check_resume(again)
    assert "another than an unbroken one" in found.wrong and found.numbers["different"]


def lost_bit(monkeypatch):
    right = running.load

    def planted(*args, **options):
        model = right(*args, **options)
        next(model.network.parameters()).data.view(-1)[0] += 1e-3
        return model

    monkeypatch.setattr(running, "load", planted)


def blind(monkeypatch):
    monkeypatch.setattr(checkpoint, "verify", lambda folder: "")


def damaged(monkeypatch):
    right = running.verify_run
    monkeypatch.setattr(
        running, "verify_run", lambda run: [type(each)(each.name, each.bytes, "is damaged") for each in right(run)]
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lost_bit, "reads back differently"),
        (blind, "flipped bit passes"),
        (damaged, "does not verify: step-00000002 is"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_checkpoint_that_is_wrong(ground, tmp_path, monkeypatch, fault, words):
    again = Ground(tmp_path, CPU)
    again.unbroken = ground.unbroken  # type: ignore[misc]
    fault(monkeypatch)
    assert words in running.check_checkpoint(again).wrong


# Memory and speed


@pytest.fixture(scope="module")
def subject(ground):
    return measuring.subject_of(ground, images=8)


@pytest.mark.parametrize(("factor", "words"), [(1.0, ""), (0.5, "memory is told wrong"), (2.0, "memory is told wrong")])
def test_memory(ground, subject, monkeypatch, factor, words):
    monkeypatch.setattr(measuring, "subject_of", lambda ground, *, images: subject)
    right = measuring.estimate

    def planted(*args, **options):
        return {name: size * factor for name, size in right(*args, **options).items()}

    monkeypatch.setattr(measuring, "estimate", planted)
    found = measuring.check_memory(ground)
    assert found.wrong.startswith(words) and bool(found.wrong) == bool(words)


NUMBERS = {
    "recipe": "x", "precision": "fp32", "batch_size": 4, "steps": 3, "compiled": False, "images_per_second": 100.0,
    "images_per_second_of_the_run": 100.0, "tflops": 0.5, "product_tflops": 1.0, "mfu": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"mfu": 1.6}, "the clock cannot be right"),
        ({"mfu": float("nan")}, "the clock cannot be right"),
        ({"images_per_second_of_the_run": 200.0}, "a run would tell 200 images/s"),
    ],
)
def test_a_speed_that_cannot_be(change, words):
    assert measuring._judged({**NUMBERS, **change}).wrong.startswith(words)


def test_speed_by_a_clock_that_does_not_wait(ground, subject, monkeypatch):
    monkeypatch.setattr(measuring, "subject_of", lambda ground, *, images: subject)
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "CLOCKS", 1.0)  # other work on this machine
    found = measuring.check_speed(ground)
    assert not found.wrong and found.numbers["images_per_second"] > 0
    monkeypatch.setattr(Clock, "rate", property(lambda self: 1e6))
    assert "a run would tell 1e+06 images/s" in measuring.check_speed(ground).wrong


# The whole, and the command


def found_right(ground):
    (ground.folder / "left").write_bytes(b"x")
    return Found("right", {"n": 1})


def raises(error):
    def check(ground):
        (ground.folder / "left").write_bytes(b"x")
        raise error

    return check


def run(monkeypatch, capsys, tmp_path, checks, *options):
    """Exit code, stdout and stderr of the command with other checks, and what it left among the temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(report, "CHECKS", checks)
    monkeypatch.setattr(report, "_let_go", lambda device: None)  # a whole test session holds many objects
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--check", *options])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err, list(tmp_path.iterdir())


def not_finite_numbers(ground):
    return Found(wrong="it is not finite", hint="x", numbers={"worst": float("inf"), "rows": [{"loss": float("nan")}]})


def test_json_has_no_nan(monkeypatch, capsys, tmp_path):
    code, out, _, _ = run(monkeypatch, capsys, tmp_path, {"one": not_finite_numbers}, "--json")
    facts = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert code == 1 and facts["checks"][0]["numbers"] == {"worst": None, "rows": [{"loss": None}]}


def skipped(ground):
    return Found("nothing of that kind", skipped=True)


def test_what_is_printed(monkeypatch, capsys, tmp_path):
    checks = {"one": found_right, "two": skipped}
    code, out, _, left = run(monkeypatch, capsys, tmp_path, checks)
    assert (code, left) == (0, [])
    lines = out.splitlines()
    assert lines[0].startswith("machine") and "1 passed, 1 skipped" in lines[-1] and len(lines) == 4
    assert "skipped nothing of that kind" in out
    code, out, *_ = run(monkeypatch, capsys, tmp_path, checks, "--json")
    facts = json.loads(out)
    assert facts["right"] and [each["state"] for each in facts["checks"]] == ["passed", "skipped"]
    assert facts["checks"][0]["numbers"] == {"n": 1} and facts["environment"]["torch"]


def test_ten_lines():
    assert len(report.CHECKS) == 8  # and the machine, and the verdict


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            RuntimeError("CUDA error: no kernel image\nis available"),
            1,
            "RuntimeError: CUDA error: no kernel image is available",
        ),
        (RuntimeError("CUDA out of memory. Tried to"), 6, "out of memory"),
        (CheckpointError("is damaged", hint="another"), 4, "is damaged"),
    ],
    ids=["broken", "memory", "kind"],
)
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["people", "programs"])
def test_a_failure(monkeypatch, capsys, tmp_path, error, code, words, options):
    checks = {"one": found_right, "two": raises(error), "three": found_right}
    ended, out, err, left = run(monkeypatch, capsys, tmp_path, checks, *options)
    assert (ended, left) == (code, [])
    message = err[err.index("error: ") :]
    assert (
        message.startswith("error: two: ") and words in message and "\n  hint: " in message and "Traceback" not in err
    )
    if options:
        facts = json.loads(out)
        assert not facts["right"] and [each["state"] for each in facts["checks"]] == ["passed", "failed", "passed"]
    else:
        assert "do not train here" in out.splitlines()[-1] and "three" in out  # the others are checked too


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 75), (StorageError("disk full", hint="x"), 74)])
def test_what_ends_it_leaves_nothing(monkeypatch, capsys, tmp_path, error, code):
    ended, _, err, left = run(monkeypatch, capsys, tmp_path, {"one": raises(error), "two": found_right})
    assert (ended, left) == (code, []) and "Traceback" not in err


def test_a_signal_while_the_small_run_trains_is_no_fault_of_the_machine(monkeypatch, ground):
    train = ground_module.train

    def interrupted(run, recipe, *, data, watch):
        def told(event):
            watch(event)
            if isinstance(event, Stepped):
                os.kill(os.getpid(), signal.SIGINT)

        return train(run, recipe, data=data, watch=told)

    monkeypatch.setattr(ground_module, "train", interrupted)
    with pytest.raises(Interrupted):
        report.run("resume", lambda ground: Found(str(ground.train("interrupted"))), ground)


@pytest.mark.parametrize("command", [["doctor", "--check"], ["bench", "smoke/tiny"]])
@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"},
    ],
    ids=["torchrun", "srun"],
)
def test_several_processes_are_refused(command, told, monkeypatch, capsys, tmp_path):
    fresh = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    for name, value in {**dict.fromkeys(fresh, ""), **told}.items():  # all of them are put back afterwards
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(report, "CHECKS", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert "one process, and a launcher started 2" in err and "hint: " in err


def test_no_room_for_temporary_files(monkeypatch, capsys, tmp_path):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    code, _, err, _ = run(monkeypatch, capsys, tmp_path, {})
    assert code == 74 and "TMPDIR" in err


@pytest.mark.slow
def test_the_whole_check_in_time_and_without_a_trace(tmp_path):
    """As a user runs it; a machine that does other work meanwhile is given more time, and the processor's time is held."""
    ended = subprocess.run(
        [sys.executable, "-m", "hdit_cli", "doctor", "--check", "--json"],
        env={**os.environ, "TMPDIR": str(tmp_path), "HDIT_CACHE": str(tmp_path / "none")},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout)
    states = {each["name"]: each["state"] for each in facts["checks"]}
    assert list(states) == list(report.CHECKS) and "failed" not in states.values()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # torch makes a folder as it is imported
    assert "resume" in ended.stderr and len(ended.stderr.splitlines()) > 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broken_off_by_a_signal(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "hdit_cli", "doctor", "--check"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background job ignores SIGINT, and so would this
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if line.startswith("attention"):
            break
    time.sleep(0.5)
    assert list(tmp_path.iterdir())
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "interrupted" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
