"""Compiled calls: one graph for each shape, made by `torch.compile` when the shape first comes.

A graph computes what eager mode does but for rounding: other kernels add in another order. Names and places of parameters stay
as they are, so checkpoints know nothing of it; what is not called through a `Compiled` runs as before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hdit_cli import runtime
from hdit_cli.errors import UsageError, is_out_of_memory

_OTHERS = 8  # graphs of one function beyond those that are counted on


class Compiled:
    """A function as one graph for each shape of its arguments, with no part left to Python.

    Args:
        plain: what is compiled.
        graphs: shapes that will come.
        switch: what turns compiling off, for the message where it fails.
        fall_back: where it fails, call `plain` from then on and say so in `note`; else UsageError.
        options: of `torch.compile`.
    """

    def __init__(
        self, plain: Callable[..., Any], *, graphs: int, switch: str, fall_back: bool = False, **options: Any
    ) -> None:
        runtime.allow_graphs(graphs + _OTHERS)
        self.plain, self.switch, self.fall_back = plain, switch, fall_back
        self.run = torch.compile(plain, fullgraph=True, dynamic=False, **options)
        self.note = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _get_current_dispatch_mode() is not None:  # it asks to see every operation, so there must be operations
            return self.plain(*args, **kwargs)
        try:
            return self.run(*args, **kwargs)
        except Exception as error:
            if not is_compiler_error(error):
                raise
            if not self.fall_back:
                raise failed(error, switch=self.switch) from error
            self.run, self.note = self.plain, f"not compiled, eager mode goes on: {_first_line(error)}"
            return self.plain(*args, **kwargs)


@contextmanager
def told(switch: str) -> Iterator[None]:
    """Turns what a compiler refuses inside the block, such as a backward pass, into one sentence."""
    try:
        yield
    except Exception as error:
        if not is_compiler_error(error):
            raise
        raise failed(error, switch=switch) from error


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch.compile could not do its work, in contrast to an error of what was compiled."""
    module = type(error).__module__
    return module.startswith(("torch._dynamo", "torch._inductor", "triton")) and not is_out_of_memory(error)


def failed(error: BaseException, *, switch: str) -> UsageError:
    """For code that could not be compiled."""
    return UsageError(
        f"torch.compile failed: {_first_line(error)}", hint=f"{switch} runs without it; --debug shows all"
    )


def _first_line(error: BaseException) -> str:
    inner = getattr(error, "inner_exception", error)  # of the backend, where dynamo passes it on
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0][:200]}" if lines else type(inner).__name__


# Training


def wants_compiled(setting: bool | str, *, device: torch.device, deterministic: bool) -> tuple[bool, str]:
    """Whether the training step is to be compiled, and one sentence where it cannot be although it would pay.

    Args:
        setting: `train.compile`; "auto" is on where it pays: on CUDA, unless the run is to be deterministic.

    Raises:
        UsageError: it is asked for and cannot be.
    """
    if not setting or (setting == "auto" and (device.type != "cuda" or deterministic)):
        return False, ""
    reason = runtime.why_not_compiled(device)
    if reason and setting != "auto":
        raise UsageError(
            f"train.compile is true, and {reason}",
            hint="install it, or --set train.compile=false: slower, the same maths",
        )
    return not reason, f"the training step is not compiled: {reason}" if reason else ""


# Sampling


class CompiledDenoiser:
    """A denoiser, or a network of timesteps, whose whole batches run as one graph, on CUDA a CUDA graph too.

    Smaller batches, such as the last, run as they are.

    Args:
        denoiser: in eval mode.
        images: of a whole batch; guidance doubles it.
        device: of its weights.
        options: of `torch.compile`, in place of the usual ones.
    """

    def __init__(self, denoiser: nn.Module, *, images: int, device: torch.device, **options: Any) -> None:
        self.denoiser, self.images, self.replays = denoiser, images, device.type == "cuda"
        usual: dict[str, Any] = {"mode": "reduce-overhead"} if self.replays else {}
        self.graph = Compiled(denoiser.forward, graphs=2, switch="--no-compile", **(options or usual))

    def __call__(self, x: Tensor, level: Tensor, **conditions: Tensor) -> Tensor:
        if len(x) not in (self.images, 2 * self.images):
            return self.denoiser(x, level, **conditions)
        if not self.replays:
            return self.graph(x, level, **conditions)
        torch.compiler.cudagraph_mark_step_begin()
        return self.graph(x, level, **conditions).clone()  # the next replay writes over its result
