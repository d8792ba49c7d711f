"""What one picture may cost the process that decodes it. The operating system holds the limits, so they hold C code too.

The memory is a function of --max-pixels and not of the machine, so that the same pictures are kept everywhere: the
hungriest formats (colour PFM, WebP and AVIF with alpha) were measured to take up to 27 bytes a pixel while they are
decoded. Where there is less memory than that, four fifths of what there is. Time is counted from the opening of the file.

A picture that does not get its memory is refused as too large; the decoders of WebP and of progressive JPEG do not tell
why they failed, and it is then called damaged.

Linux holds both; macOS holds the time alone; Windows holds neither.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hdit_cli.data.prepare.options import PrepareOptions

_BYTES_PER_PIXEL = 40
_BYTES_BESIDES = 3 << 30  # a member of an archive lies in memory whole, up to 1 GiB, and once more in its decoder
_SHARE_OF_MACHINE = 0.8
_SECONDS_BESIDES = 60.0
_PIXELS_PER_SECOND = 1e6  # a tenth of what the slowest format needs on a slow core

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, in bytes or "max"


@dataclass(frozen=True)
class Limits:
    """Of one picture in a worker: bytes of memory beyond what an idle worker holds, and seconds of wall time."""

    memory: int
    seconds: float


def limits_for(options: PrepareOptions) -> Limits:
    """Limits that let any picture of `max_pixels` through."""
    memory = _BYTES_BESIDES + _BYTES_PER_PIXEL * options.max_pixels
    seconds = _SECONDS_BESIDES + options.max_pixels / _PIXELS_PER_SECOND
    return Limits(memory=min(memory, int(_SHARE_OF_MACHINE * _machine_memory())), seconds=seconds)


def _machine_memory() -> int:
    """Bytes of memory of the machine, or of the container; a large number where it cannot be told."""
    found = [1 << 62]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int(_CGROUP_LIMIT.read_text()))
    return min(number for number in found if number > 0)


def hold_memory(limits: Limits) -> None:
    """Lets this process take `limits.memory` more than it has; beyond, allocation fails, and the picture is refused."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + limits.memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_bytes() -> int:
    """What counts against the limit: private writable memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def make_alarm_deadly() -> None:
    """Undoes what a parent may have set: the alarm of `held_in_time` ends this process, whatever it is doing."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


@contextlib.contextmanager
def held_in_time(limits: Limits) -> Iterator[None]:
    """The process is ended by SIGALRM where the block takes longer than `limits.seconds`."""
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
