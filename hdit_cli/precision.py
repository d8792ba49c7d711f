"""To how many bits numbers are computed: the words for it, what a device takes by itself, and the switches, set around a call.

"fp32" is IEEE float32. "tf32" has NVIDIA's tensor cores multiply float32 matrices, their factors rounded to 11 significant
bits; sums stay float32. "bf16" is autocast: layers that multiply run in bfloat16, the weights and the rest in float32 (or TF32,
where there is one). Weights that are stored in another dtype are computed with in that one, and its word is theirs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from hdit_cli.errors import UsageError

AUTO = "auto"  # what the device takes by itself
OF_DTYPE = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WORDS = (AUTO, "tf32", *OF_DTYPE.values())

# torch keeps the switches for a process and not for a thread, while pictures of one batch are scored in a thread as the next
# are made. What is launched keeps what was set when it was, so only launches must not meet.
_switches = threading.RLock()
_lent = threading.local()


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies in TF32: NVIDIA's since Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def resolved(wanted: str, *, dtype: torch.dtype, device: torch.device) -> str:
    """The precision that weights of a dtype are computed in on a device.

    Args:
        wanted: "fp32", "tf32", "bf16", the word of `dtype`, or "auto": TF32 where weights are float32 and the device has it.

    Raises:
        UsageError: the device has none such, or the weights are of a dtype of their own.
    """
    own = OF_DTYPE.get(dtype, "fp32")
    if wanted == AUTO:
        return "tf32" if own == "fp32" and has_tf32(device) else own
    if wanted == own:
        return own
    if wanted not in ("tf32", "bf16") and own == "fp32":
        raise UsageError(f"no precision {wanted!r}", hint="fp32, tf32 or bf16")
    if own != "fp32":
        raise UsageError(
            f"the weights are stored in {own}, and are computed with in {own}, not {wanted}",
            hint="leave --precision out; a file of fp32 weights can be computed with in fp32, tf32 and bf16",
        )
    if wanted == "tf32" and not has_tf32(device):
        raise UsageError(
            f"tf32 is a way of multiplying of NVIDIA GPUs since Ampere, and this is {_named(device)}",
            hint="--precision fp32, which is the usual one here, or bf16",
        )
    return wanted


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the device {device.type}"


def of_codec(precision: str) -> str:
    """What a codec runs in beside a network in `precision`: never in bfloat16, whose 8 bits would show in pixels of 8 bits."""
    return "tf32" if precision in ("tf32", "bf16") else "fp32"


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, what is launched on a device has a precision, and what other threads launch has theirs before or after it.

    Args:
        precision: as `resolved` gives it.
    """
    with ExitStack() as stack:
        stack.enter_context(_switched(tf32=precision in ("tf32", "bf16") and has_tf32(device)))
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        elif torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def within(precision: str, device: torch.device, call: Callable[..., Any]) -> Callable[..., Any]:
    """A call that is made in a precision."""

    def precise(*args: Any, **kwargs: Any) -> Any:
        with computing(precision, device):
            return call(*args, **kwargs)

    return precise


@contextmanager
def lent() -> Iterator[None]:
    """Inside, this thread works for one that is inside `computing` and waits for it: it does not wait for that one in turn."""
    before = getattr(_lent, "on", False)
    _lent.on = True
    try:
        yield
    finally:
        _lent.on = before


@contextmanager
def _switched(*, tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 in TF32 inside, or not; then as before."""
    with nullcontext() if getattr(_lent, "on", False) else _switches:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
