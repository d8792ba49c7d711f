"""How a sampling uses the machine, where nobody says: how many images at once, whether their network is compiled, its precision.

None changes the noise. Pixels agree to 1/255 between two batch sizes and between compiled and eager; they are the same bit
for bit at the same of all three, so all are written into the record of a sampling.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from hdit_cli import precision, runtime
from hdit_cli.engine.memory.out_of_memory import ROOM
from hdit_cli.engine.memory.trace import ByImages, follow, lower_precision
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.generate import check
from hdit_cli.errors import UsageError, is_out_of_memory
from hdit_cli.tasks.sampling import Sampling

PACE = ("batch_size", "compile")  # fields of a sampling that the machine decides where nobody does
FULL = 2**22  # pixels of a batch that keep a GPU busy: 64 images of 256x256
MANY = 1_000  # images of one process from which compiling, a minute or more, is taken to pay on CUDA


def paced(model: Model, sampling: Sampling, *, images: int, batch_size: int | None, compile: bool | None) -> Sampling:
    """The sampling with the batch size, the choice to compile and the precision that this machine is given; every process gets
    the same.

    Args:
        sampling: its batch size is the most on a CPU; on CUDA batches of small images grow beyond it.
        images: of all processes.
        batch_size, compile: what was asked for; None where nothing was.

    Raises:
        UsageError: the model cannot be sampled so, or cannot be compiled although that is asked for.
    """
    check(model, sampling)
    found = runtime.gather(precision.resolved(sampling.precision, dtype=model.dtype, device=model.device))
    sampling = replace(sampling, precision=found[0] if len(set(found)) == 1 else "fp32")  # cards of several kinds
    share = -(-images // runtime.ranks().world)
    if batch_size is None:
        batch_size = min(runtime.gather(found_batch(model, sampling, images=share)))
    if compile is None:
        compile = model.device.type == "cuda" and share >= MANY and not runtime.why_not_compiled(model.device)
    elif compile and (reason := runtime.why_not_compiled(model.device)):
        raise UsageError(f"cannot compile: {reason}", hint="leave --compile out: slower, the same images within 1/255")
    return replace(sampling, batch_size=batch_size, compile=all(runtime.gather(compile)))


def as_recorded(model: Model, sampling: Sampling) -> tuple[Sampling, str]:
    """A recorded sampling as this machine can run it, and one sentence where that is not quite as recorded."""
    notes, recorded = [], sampling.precision
    own = precision.OF_DTYPE.get(model.dtype, "fp32")
    if recorded == "fp32":  # what a record of weights of any dtype says that is older than the choice
        sampling = replace(sampling, precision=own)
    try:
        precision.resolved(sampling.precision, dtype=model.dtype, device=model.device)
    except UsageError as error:
        sampling = replace(sampling, precision=own)
        notes.append(f"computed in {own} and not in {recorded} as recorded, so pixels differ a little: {error.message}")
    if sampling.compile and (reason := runtime.why_not_compiled(model.device)):
        sampling = replace(sampling, compile=False)
        notes.append(f"not compiled, so pixels agree with the record to 1/255: {reason}")
    return sampling, "; ".join(notes)


def found_batch(model: Model, sampling: Sampling, *, images: int) -> int:
    """The batch size for `images` images: by what it is taken to need, and on CUDA by a trial, halved until it fits."""
    device, here = model.device, runtime.ranks()
    room = runtime.free_memory(device) * ROOM / (1 if device.type == "cuda" else here.world)
    height, width = sampling.size or model.image_size
    most = FULL // (height * width) if device.type == "cuda" else 0
    needs = needed(model, sampling)
    batch = fitting(needs, room=room, start=sampling.batch_size, most=min(images, most))
    return halved(lambda batch: _try(model, sampling, batch=batch), batch) if device.type == "cuda" else batch


def fitting(needs: Callable[[int], float], *, room: float, start: int, most: int) -> int:
    """`start`, doubled while that is at most `most` and fits, or halved until it fits; at least 1."""
    batch = start
    while batch * 2 <= most and needs(batch * 2) <= room:
        batch *= 2
    while batch > 1 and needs(batch) > room:
        batch //= 2
    return batch


def halved(attempt: Callable[[int], None], batch: int) -> int:
    """The first of batch, batch / 2, ..., 1 that is not refused for lack of memory; 1 if all are."""
    while batch > 1:
        try:
            attempt(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            break
        batch //= 2
    return batch


def needed(model: Model, sampling: Sampling) -> Callable[[int], int]:
    """Bytes that a step of the sampler takes beyond the weights, guidance included, by the number of pictures at once."""
    device, pictures = model.device.type, model.task.kept(model.shape(sampling.size)) * 4
    each = _at_once(model, sampling)

    def run(images: int, called: nn.Module) -> None:
        with lower_precision(sampling.precision == "bf16" and model.dtype == torch.float32):
            _call(model, sampling, images, called)

    call = ByImages(lambda images: follow(model.task.called, partial(run, images), device=device))
    return lambda batch: call(each * batch).peak + batch * pictures


def _at_once(model: Model, sampling: Sampling) -> int:
    """Images that are in the network at once for each that is made: two under guidance, unless it asks one after the other."""
    return 2 if sampling.guides and not sampling.of_tokens else 1


def _call(model: Model, sampling: Sampling, images: int, called: nn.Module) -> None:
    """One call of the denoiser, or of a network of tokens, as the fullest step makes it."""
    with torch.no_grad():
        like = torch.empty(0, device=model.device, dtype=model.dtype)
        called(*model.task.example(images, model.shape(sampling.size), like=like))


def _try(model: Model, sampling: Sampling, *, batch: int) -> None:
    """The fullest call, made."""
    try:
        with precision.computing(sampling.precision, model.device):
            _call(model, sampling, batch * _at_once(model, sampling), model.task.called)
    finally:
        if model.device.type == "cuda":
            runtime.wait_for_device(model.device)
            torch.cuda.empty_cache()
