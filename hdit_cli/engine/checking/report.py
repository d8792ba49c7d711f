"""The whole check: one after the other, a fault in one of them no end of the others, and a verdict."""

import errno
import gc
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from hdit_cli import files, runtime
from hdit_cli.engine.checking import attention, compiling, measuring, running, steps
from hdit_cli.engine.checking.ground import Found, Ground, scratch
from hdit_cli.errors import HditError, Interrupted, OutOfMemory, StorageError, is_out_of_memory

CHECKS: dict[str, Callable[[Ground], Found]] = {  # what is soon known first; compiling takes longest
    "attention": attention.check,
    "training step": steps.check,
    "resume": running.check_resume,
    "checkpoint": running.check_checkpoint,
    "memory": measuring.check_memory,
    "compiled step": compiling.check_step,
    "CUDA graphs": compiling.check_graphs,
    "speed": measuring.check_speed,
}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Checked:
    """What became of a check.

    Attributes:
        state: passed, failed or skipped.
        text: one sentence: what was found, what is wrong, or why nothing was checked.
        code: what the command exits with if this is the first failure.
    """

    name: str
    state: str
    text: str
    hint: str
    seconds: float
    numbers: dict[str, Any]
    code: int = 0


def check(*, tell: Callable[[str], None], done: Callable[[Checked], None]) -> dict[str, Any]:
    """Checks this process's device. Nothing stays on the disk, and nothing is asked of a network.

    Args:
        tell: hears what is done next.
        done: hears of each check that is over.

    Returns:
        facts for JSON: environment, checks, right (whether none failed).

    Raises:
        StorageError: the folder for temporary files cannot be written to.
    """
    start, checked = time.perf_counter(), []
    device = runtime.device()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        files.make_folder(folder / "code")
        stack.enter_context(runtime.compiled_code_in(folder / "code"))
        ground = Ground(folder, device, tell=tell)
        for name, function in CHECKS.items():
            checked.append(run(name, function, ground))
            done(checked[-1])
            _let_go(device)
    return {
        "environment": runtime.environment(device) | {"threads": str(torch.get_num_threads())},
        "seconds": time.perf_counter() - start,
        "right": not any(each.state == FAILED for each in checked),
        "checks": [vars(each) for each in checked],
    }


def run(name: str, function: Callable[[Ground], Found], ground: Ground) -> Checked:
    """One check. What it stumbles over is its result; a full disk and a wish to stop are not the machine's arithmetic."""
    start = time.perf_counter()
    try:
        found = function(ground)
        code = HditError.exit_code if found.wrong else 0
    except (StorageError, Interrupted):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        found, code = _stumbled(error)
    state = FAILED if found.wrong else SKIPPED if found.skipped else PASSED
    seconds = round(time.perf_counter() - start, 3)
    return Checked(name, state, found.wrong or found.text, found.hint, seconds, _plain(found.numbers), code)


def _plain(value: Any) -> Any:
    """What JSON can hold: a number that is not finite is none."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stumbled(error: Exception) -> tuple[Found, int]:
    """What a check found that could not go on, and its exit code."""
    if isinstance(error, HditError):
        return Found(wrong=error.message, hint=error.hint), error.exit_code
    sentence = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        what, hint = f"out of memory: {sentence}", "close other programs that use this device"
        return Found(wrong=what, hint=hint), OutOfMemory.exit_code
    hint = "check driver, torch and compiler of this machine; report it with what --json prints"
    return Found(wrong=f"{type(error).__name__}: {sentence}", hint=hint), HditError.exit_code


def _let_go(device: torch.device) -> None:
    """Memory of a check that is over is not counted as another's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def failure(facts: dict[str, Any]) -> HditError | None:
    """The error that a command ends with, or None."""
    failed = [each for each in facts["checks"] if each["state"] == FAILED]
    if not failed:
        return None
    first = failed[0]
    others = f" ({len(failed)} of {len(facts['checks'])} checks failed)" if len(failed) > 1 else ""
    error = HditError(f"{first['name']}: {first['text']}{others}", hint=first["hint"])
    error.exit_code = first["code"]
    return error
