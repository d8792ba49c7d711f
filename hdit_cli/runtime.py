"""The machine: device, dtype, ranks, and every random number as a pure function of (seed, stream, index).

No generator is carried along a run, so there is no random state to save, and none that a worker or a process could share.
"""

import contextlib
import ctypes
import hashlib
import multiprocessing.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdit_cli import __version__, launchers
from hdit_cli.errors import UsageError
from hdit_cli.launchers import Ranks, ranks, told


def device(name: str | None = None) -> torch.device:
    """The device to compute on: `name`, else CUDA (this process's own card), else Apple's MPS, else the CPU.

    Args:
        name: cpu, mps, cuda (this process's own card), or cuda:N, a card for a lone process.

    Raises:
        UsageError: the named device is not there, or is one card for several processes.
    """
    if name is None:
        if torch.cuda.is_available():
            return _own_card()
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(name)
        if chosen.type not in _DEVICES:
            raise RuntimeError(f"no pictures on {chosen.type}")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        hint = f"one of {', '.join(_DEVICES)}, or cuda:1 for a certain card; `hdit doctor` says what there is"
        raise UsageError(f"no device {name[:100]!r} on this machine", hint=hint) from error
    if chosen.type != "cuda":
        return chosen
    if chosen.index is not None and ranks().world > 1:
        raise UsageError(
            f"{name} is one card for {ranks().world} processes",
            hint="cuda: each takes its own; CUDA_VISIBLE_DEVICES=0,1 names which",
        )
    return chosen if chosen.index is not None else _own_card()


_DEVICES = ("cpu", "cuda", "mps")


def _own_card() -> torch.device:
    return torch.device("cuda", (told("LOCAL_RANK") or 0) % torch.cuda.device_count())


def places() -> tuple[int, str]:
    """How many processes find a device of their own here, and what they are called: "GPU", or "core" where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.device_count(), "GPU"
    return launchers.cores(), "core"


def set_deterministic(on: bool) -> None:
    """Same bits from the same inputs on the same machine, thread count and batch; slower on CUDA."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on


def fast_matmul() -> None:
    """TF32 for float32 matrix products on CUDA, as HDiT was trained with; no effect elsewhere."""
    torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> None:
    """Freed memory of tensors on a CPU stays with the process; glibc hands much of it back, and each page comes back cleared.

    No effect without glibc, or where the environment sets it up (MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES and the like).
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(_M_MMAP_THRESHOLD, _KEPT):
            mallopt(_M_MMAP_THRESHOLD, _KEPT_BEFORE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT, _KEPT_BEFORE = 2**31 - 1, 32 << 20  # bytes; the second is the most that glibc before 2.35 takes


def why_not_compiled(device: torch.device) -> str:
    """Why `torch.compile` cannot make code for a device here, one sentence, or ""."""
    if device.type not in ("cpu", "cuda"):
        return f"code for {device.type} is not compiled here"
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package `triton`, which makes code for GPUs, is not installed"
    on_cuda = device.type == "cuda"  # a C compiler for Triton's launchers, one for C++ for what stays on the CPU
    wanted: list[tuple[str, str, tuple[str, ...]]] = [("C", "CC", ("gcc", "clang", "cc"))] if on_cuda else []
    wanted.append(("C++", "CXX", ("clang++",) if sys.platform == "darwin" else ("g++",)))
    for language, variable, usual in wanted:
        names = (os.environ[variable],) if os.environ.get(variable) else usual
        if not any(shutil.which(name) for name in names):
            return f"no {language} compiler is installed ({' or '.join(names)})"
    return ""


@contextlib.contextmanager
def compiled_code_in(folder: Path) -> Iterator[None]:
    """Inside, compilers keep what they make in a folder of its own: nothing from before is found there, and nothing stays."""
    own = {name: str(folder / name.lower()) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    own["TMPDIR"] = str(folder)  # where torch keeps headers, whatever the first says
    multiprocessing.util.get_temp_dir()  # made now, where it was: the name of a socket below a long path is too long
    before, place = {name: os.environ.get(name) for name in own}, tempfile.tempdir
    os.environ.update(own)
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = place
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def runs_behind(device: torch.device) -> bool:
    """Whether a device is told its work and does it later, as GPUs do."""
    return device.type != "cpu"


def wait_for_device(device: torch.device) -> None:
    """Returns when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def allow_graphs(count: int) -> None:
    """Lets one compiled function keep so many graphs, one for each shape that it meets."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, count)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, count)


def whole_graphs() -> None:
    """Keeps DistributedDataParallel from cutting compiled graphs into pieces, which it cannot where layers are computed again."""
    from torch._dynamo import config

    config.optimize_ddp = False


# Random numbers


def key(seed: int, stream: str) -> int:
    """A 64-bit key for a stream of random numbers, from the user's seed and the stream's name."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(x: np.ndarray) -> np.ndarray:  # uint64 => uint64, the finaliser of SplitMix64 (Steele et al. 2014)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def bits(seed: int, stream: str, index: Sequence[int] | np.ndarray, count: int = 1) -> np.ndarray:
    """Random 64-bit words, a function of (seed, stream, index, column) alone.

    Returns:
        uint64 (N, count) for N indices.
    """
    rows = np.asarray(index, dtype=np.uint64).reshape(-1, 1)
    columns = np.arange(1, count + 1, dtype=np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        per_row = _mix(rows * golden + np.uint64(key(seed, stream)))
        return _mix(per_row + columns * golden)


def uniform(seed: int, stream: str, index: Sequence[int] | np.ndarray, count: int = 1) -> Tensor:
    """Uniforms in the open interval (0, 1), a function of (seed, stream, index, column) alone.

    Returns:
        float64 (N, count), on the CPU.
    """
    words = bits(seed, stream, index, count) >> np.uint64(11)  # 53 bits
    return torch.from_numpy((words.astype(np.float64) + 0.5) * 2.0**-53)


def normal(seed: int, stream: str, index: Sequence[int] | np.ndarray, shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Standard normal noise, one independent draw for each index; the same on any machine of the same device kind.

    Args:
        index: N indices.
        shape: shape of one draw.
        like: gives dtype and device; the draw itself is float32.

    Returns:
        (N, *shape).
    """
    out = torch.empty((len(index), *shape), dtype=torch.float32, device=like.device)
    generator = torch.Generator(like.device)
    for row, word in zip(out, bits(seed, stream, index)[:, 0], strict=True):
        generator.manual_seed(int(word >> np.uint64(1)))
        row.normal_(generator=generator)
    return out.to(like.dtype)


# Facts about the machine


@contextlib.contextmanager
def only_tensors() -> Iterator[None]:
    """Inside the block, and in other threads meanwhile, `torch.load` reads tensors and plain values alone, whoever calls it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    others = {each: os.environ.pop(each, None) for each in (name, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")}
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({each: value for each, value in others.items() if value is not None})


def version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment(on: torch.device | None = None) -> dict[str, str]:
    """Versions and hardware that a number was made with, on a device; None is the one that is chosen by itself."""
    chosen = on or device()
    if chosen.type == "cuda":
        hardware = torch.cuda.get_device_name(chosen)
    else:
        hardware = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "hdit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": chosen.type,
        "hardware": hardware,
    }


def total_memory(device: torch.device) -> int:
    """Bytes of memory that a device has: a GPU's own, else the machine's, or less where a control group allows less."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits()])


def free_memory(device: torch.device) -> int:
    """Bytes of a device's memory that nothing uses yet."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts = Path("/proc/meminfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([total_memory(device), *free])


def _group_limits() -> list[int]:
    """What Linux control groups, and so containers, allow this process."""
    places = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = [Path(place).read_text().strip() for place in places if Path(place).is_file()]
    return [int(text) for text in found if text.isdecimal()]


def readable(size: float) -> str:
    """A number of bytes for people: 1.25 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} GiB" if size < 1000 else f"{size:,.0f} GiB"


def cache_folder() -> Path:
    """Where downloaded weights and computed reference statistics are kept: $HDIT_CACHE, else ~/.cache/hdit."""
    named = os.environ.get("HDIT_CACHE")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "hdit"
    except RuntimeError:  # no such user, or no home
        what = f"HDIT_CACHE is {named!r}, and there is no such home folder" if named else "this user has no home folder"
        raise UsageError(what, hint="set HDIT_CACHE to the path of a folder for downloaded weights") from None


def interactive() -> bool:
    """True where progress may be drawn over itself."""
    return sys.stderr.isatty()


# Processes


def join_processes(on: torch.device | None = None) -> Ranks:
    """Connects this process to the others its launcher started; a lone process does nothing.

    Args:
        on: the device that all compute on; None is the one that is chosen by itself.

    Raises:
        UsageError: fewer or more processes came up than were asked for.
    """
    launchers.adopt()
    here = ranks()
    wanted = told("HDIT_PROCESSES") or here.world
    if here.world > 1:
        launchers.check_meeting()
        launchers.share_cores()
        from accelerate import PartialState

        meeting = {} if torch.distributed.is_initialized() else _meet(here)
        state = PartialState(cpu=(on or device()).type != "cuda", **meeting)
        here = Ranks(rank=state.process_index, world=state.num_processes)
    if here.world != wanted:
        raise UsageError(
            f"{wanted} processes were asked for, {here.world} came up", hint="use `--processes N`, or torchrun"
        )
    return here


_COMING_UP = timedelta(minutes=10)  # that processes wait for each other at the start
# That they wait for each other later, which must be longer than anything the main process does while the others have nothing to
# do. The longest is a checkpoint: the next save waits for the one before, which is written, flushed, and read back. Of 557 million
# weights it is 11 GB; over a network at 10 MB/s three passes take 55 minutes, with two more averages 75. A process that died is
# noticed by the launcher, which ends the others at once: only one that hangs is waited for.
_WORKING = timedelta(hours=3)


def _meet(here: Ranks) -> dict[str, Any]:
    """Where the processes of a run find each other, for `init_process_group`, once all have come.

    Raises:
        UsageError: they have not come in time.
    """
    from torch.distributed import DistError, PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://", timeout=_COMING_UP))
    except (DistError, TimeoutError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UsageError(
            f"{here.world} processes were to meet at {place} within {_COMING_UP.total_seconds() / 60:g} minutes, and did not",
            hint="see that all were started, and that MASTER_ADDR names the machine of rank 0 as the others reach it",
        ) from error
    store.set_timeout(_WORKING)  # a process that comes late to its first exchange is waited for as long as later
    return {"store": PrefixStore("default_pg", store), "rank": rank, "world_size": world, "timeout": _WORKING}


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


class _Summed(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        found = tensor.clone()
        torch.distributed.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].clone()
        torch.distributed.all_reduce(found)
        return found


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, which all must ask for at once; gradients go through."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    found: Tensor = _Summed.apply(tensor)  # type: ignore[assignment]
    return found


def gather(value: Any) -> list[Any]:
    """One picklable value of each process, in the order of ranks, on every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found
