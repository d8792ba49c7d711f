"""Starts one command line several times on this machine, one process for each device, and waits for all of them.

Signals to the parent are handed on once; the children's exit code comes back. On several machines torchrun does this.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType

from hdit_cli.errors import HditError, Interrupted, OutOfMemory, UsageError

_TOLD = (2, 3, 4, 5, 6, 74, 75)  # codes that come with a message of their own
_GRACE = 60.0  # seconds the others get to end once one process has failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HDIT_PROCESSES": str(processes),
    }


def is_child() -> bool:
    """Whether a launcher (this one, or torchrun) started this process as one of several."""
    return "RANK" in os.environ


def without_processes(argv: list[str], *, drop: tuple[str, ...] = ()) -> list[str]:
    """The command line less `--processes N` and the flags in `drop`."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == "--processes":
            skip = True
        elif not word.startswith("--processes=") and word not in drop:
            kept.append(word)
    return kept


def relaunch(processes: int, *, drop: tuple[str, ...] = ()) -> int | None:
    """Runs this very command line in `processes` processes and returns their exit code; None where this is one of them.

    Args:
        drop: flags that were acted on already and must not be repeated.

    Raises:
        UsageError: fewer than one.
        OutOfMemory: one was killed.
        Interrupted: a signal came before they could obey it.
    """
    if processes < 1:
        raise UsageError(f"--processes must be at least 1, is {processes}")
    if is_child():
        _end_with_launcher()
        return None
    if processes == 1:
        return None
    command = [sys.executable, "-m", "hdit_cli", *without_processes(sys.argv[1:], drop=drop)]
    port = _free_port()
    # a session of their own: Ctrl-C in the terminal reaches the parent alone, which hands it on exactly once
    children = [
        subprocess.Popen(
            command,
            env=_environment(rank, processes, port),
            start_new_session=True,
            stdin=subprocess.PIPE,  # never written to: it ends with this process, however that ends
            stderr=subprocess.PIPE if rank else None,  # one process talks; the others are heard if they fail alone
        )
        for rank in range(processes)
    ]
    asides = [Aside(child) for child in children[1:]]
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        first = _wait(children)
        if not children[0].returncode or children[0].returncode == 1:  # the cause is told by another process
            _tell_aside(asides, first=first)
        return _outcome(children, first=first, asked=bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()


def _end_with_launcher() -> None:
    """Ends this process when the launcher has been killed; torchrun's children are torchrun's."""
    if "HDIT_PROCESSES" not in os.environ:
        return

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Aside:
    """Keeps what a process says on stderr, read as it comes so that the process never waits for a reader."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.text = b""
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.text = (self.text + line)[-65536:]


def _tell_aside(asides: list[Aside], *, first: int | None) -> None:
    """Prints what the first process that failed, other than the main one, had to say."""
    telling = [aside for aside in asides if aside.child.returncode in _TOLD]
    telling += [aside for number, aside in enumerate(asides, start=1) if number == first]
    for aside in telling[:1]:
        aside.thread.join(timeout=5.0)
        sys.stderr.write(aside.text.decode(errors="replace"))


def _wait(children: list[subprocess.Popen[bytes]]) -> int | None:
    """The number of the child that failed first, or None. The others are then told to end, and after a while made to."""
    failed_at, first = 0.0, None
    while True:
        running = [child for child in children if child.poll() is None]
        codes = {number: child.returncode for number, child in enumerate(children) if child.returncode}
        if codes and first is None:
            # of those that ended together the killed one is the cause, and the main one speaks for itself
            failed_at, first = time.monotonic(), min(codes, key=lambda number: (codes[number] > 0, -number))
        if not running:
            return first
        if first is not None and time.monotonic() - failed_at > (_GRACE if 75 in codes.values() else 5.0):
            for child in running:
                child.kill()
        time.sleep(0.05)


def _outcome(children: list[subprocess.Popen[bytes]], *, first: int | None, asked: bool) -> int:
    """The exit code that tells the cause, not what the other processes died of.

    Raises:
        OutOfMemory, HditError: the first that failed was killed, so nobody has told it yet.
        Interrupted: by the signal that was handed on.
    """
    codes = [child.returncode for child in children if child.returncode]
    told = [code for code in codes if code in _TOLD]
    number = -children[first].returncode if first is not None else 0
    if told or number <= 0:
        return (told or codes or [0])[0]
    if asked and number in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted("interrupted", hint="the same command goes on, or starts again")
    what = f"process {first} of {len(children)} was ended by {signal.Signals(number).name}"
    if number == getattr(signal, "SIGKILL", None):
        hint = "fewer --processes, or a smaller batch; the same command goes on, or starts again"
        raise OutOfMemory(f"{what}, most likely because memory ran out", hint=hint)
    raise HditError(what, hint="the same command goes on, or starts again; a driver or a library may be broken")
