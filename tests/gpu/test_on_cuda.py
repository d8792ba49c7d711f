"""What must hold on a CUDA device. Skipped where there is none."""

import time
from dataclasses import replace

import parts_right  # beside this file
import pytest
import torch

from hdit_cli import catalog
from hdit_cli.engine.checking import attention, compiling, measuring, running, steps
from hdit_cli.engine.checking.ground import Ground, small_recipes
from hdit_cli.engine.training.clock import Clock
from hdit_cli.models.attention.request import Request
from hdit_cli.runtime import wait_for_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BACKENDS = [name for name in catalog.names("attention") if name not in ("reference", "strips", "flex")]


@pytest.fixture(scope="module")
def device():
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def ground(tmp_path_factory, device):
    return Ground(tmp_path_factory.mktemp("ground"), device)


def served(name, precision, width, kernel):
    """Skips where the card or the backend has no such thing."""
    if precision not in attention.precisions(torch.device("cuda", 0)):
        pytest.skip(f"no {precision} here")
    request = Request("cuda", attention.PRECISIONS[precision][0], width, kernel)
    if reason := catalog.get("attention", name).refuse(request):
        pytest.skip(reason)


@pytest.mark.parametrize(("precision", "width", "case"), parts_right.cases([*attention.PRECISIONS]), ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_equals_the_reference(name, precision, width, case, device):
    served(name, precision, width, case[2])
    row = attention.measure(name, precision, (width, case), device=device)
    assert row["right"], row


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_flex_equals_the_reference(width, precision, device):
    case = attention.MAPS[0]
    served("flex", precision, width, case[2])
    row = attention.measure("flex", precision, (width, case), device=device)
    assert row["right"], row


def test_flex_never_takes_its_dense_branch(device):
    """All scores of a map of 128x128 tokens would be a gigabyte; after eight shapes a compiled function gives up by itself."""
    served("flex", "bf16", 64, 7)
    for height, width in parts_right.FLEX_SHAPES:
        q, k, v, gradient = (
            torch.randn(1, height, width, 2, 64, device=device, dtype=torch.bfloat16) * 0.5 for _ in range(4)
        )
        attention.forward_and_backward([q, k, v, gradient], kernel=7, backend="flex")
        wait_for_device(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        attention.forward_and_backward([q, k, v, gradient], kernel=7, backend="flex")
        wait_for_device(device)
        tokens = height * width
        most = max(
            2 * tokens**2, 64 * q.nbytes
        )  # half of all scores of both heads; maps so small hold no more than the rest
        assert torch.cuda.max_memory_allocated(device) - before < most, (height, width)


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("name", [name for name, _ in steps.variants()])
def test_a_step_equals_the_one_on_the_cpu(name, precision, device):
    """Loss, gradient of every tensor, and what AdamW makes of it; the first loss of a run is the first of these."""
    recipe = dict(steps.variants())[name]
    judge = steps.Step(recipe, precision="fp32", device=None)
    drawn = judge.draw()
    found = steps.Step(recipe, precision=precision, device=device).take(drawn)
    row = steps.compared(found, judge.take(drawn), precision)
    assert not row["wrong"], row


def test_a_step_asks_the_device_for_nothing(device):
    """Once everything is made that is kept, a step is launched without a wait."""
    step = steps.Step(small_recipes()["hdit"], precision="bf16", device=device)
    batch = steps._batch(step.recipe)
    batch = replace(batch, pixels=batch.pixels.pin_memory(), label=batch.label.pin_memory())
    batches = [replace(batch, index=batch.index + n * len(batch.index)) for n in range(4)]
    for each in batches[:3]:
        step.stepper.step([each])
    wait_for_device(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.stepper.step([batches[3]])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_clock_of_a_run_tells_what_the_device_takes(ground, device):
    subject = measuring.subject_of(ground, images=16)
    for _ in range(5):
        subject.step()
    told, waited = measuring._rates(subject, device, steps=40)
    assert told == pytest.approx(waited, rel=measuring.CLOCKS)


def test_a_clock_tells_of_work_that_is_only_launched(device):
    """A launch returns at once; a long product must be counted all the same."""
    a = torch.randn(8192, 8192, device=device)
    for _ in range(2):
        a @ a
    wait_for_device(device)
    start, clock = time.perf_counter(), Clock(images=1, device=device)
    for _ in range(20):
        with clock:
            a @ a
    clock.settle()
    assert clock.rate == pytest.approx(20 / (time.perf_counter() - start), rel=0.3)


@pytest.mark.parametrize(
    "check", [compiling.check_graphs, running.check_resume, running.check_checkpoint, measuring.check_memory]
)
def test_the_check_of_a_machine(check, ground):
    found = check(ground)
    assert not found.wrong and not found.skipped, found
