"""Starts one command line several times on this machine, one process for each device, and waits for all of them.

The first signal to the parent is handed on, and what has not ended after a while is ended; the second ends everything at
once. The children's exit code comes back. On several machines torchrun does this.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType, TracebackType

from hdit_cli import launchers
from hdit_cli.errors import HditError, Interrupted, OutOfMemory, UsageError
from hdit_cli.launchers import is_child

_TOLD = (2, 3, 4, 5, 6, 74, 75)  # codes that come with a message of their own
_GRACE = 60.0  # seconds the others get to end once one process has failed
_TO_SAVE = 120.0  # seconds that all get after the first signal: to end the step, and to write a checkpoint
_TO_END = 2.0  # seconds that all get after the second signal: to clear away what they were writing
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": launchers.compile_threads(processes),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HDIT_PROCESSES": str(processes),
    }


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


def check_count(processes: int, *, oversubscribe: bool) -> None:
    """Raises UsageError for more processes than this machine has GPUs, or cores without one; unless `oversubscribe`."""
    if oversubscribe or processes == 1:
        return
    from hdit_cli import runtime

    places, what = runtime.places()
    if processes > places:
        raise UsageError(
            f"--processes {processes} are more than the {places} {what}{'' if places == 1 else 's'} of this machine",
            hint=f"--processes {places}; --oversubscribe starts more of them all the same, and they share what there is",
        )


def relaunch(processes: int, *, oversubscribe: bool = False, drop: tuple[str, ...] = ()) -> int | None:
    """Runs this very command line in `processes` processes and returns their exit code; None where this is one of them.

    Args:
        oversubscribe: also where there are fewer devices.
        drop: flags that were acted on already and must not be repeated.

    Raises:
        UsageError: more than there are devices, or another number than the launcher that started this process has.
        OutOfMemory: one was killed.
        Interrupted: a signal came before they could obey it, or they did not obey it in time.
    """
    if is_child():
        if processes != 1:
            raise UsageError(
                "a launcher, torchrun or srun, has started this process as one of several, and --processes starts more",
                hint="leave --processes out; or, if no launcher did, `unset RANK SLURM_PROCID`",
            )
        _end_with_launcher()
        return None
    if oversubscribe and processes == 1:
        raise UsageError(
            "--oversubscribe is about --processes, and there is one", hint="add --processes N, or leave it out"
        )
    check_count(processes, oversubscribe=oversubscribe)
    if processes == 1:
        return None
    command = [sys.executable, "-m", "hdit_cli", *without_processes(sys.argv[1:], drop=("--oversubscribe", *drop))]
    port = _free_port()
    children: list[subprocess.Popen[bytes]] = []
    with Asked(children) as asked:
        try:
            for rank in range(processes):
                children.append(_start(command, _environment(rank, processes, port), quiet=rank > 0))
            asides = [Aside(child) for child in children[1:]]
            first = _wait(children, asked=asked)
            if not children[0].returncode or children[0].returncode == 1:  # the cause is told by another process
                _tell_aside(asides, first=first)
            return _outcome(children, first=first, asked=asked)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()


def _start(command: list[str], environment: dict[str, str], *, quiet: bool) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which hands it on exactly once
        stdin=subprocess.PIPE,  # never written to: it ends with this process, however that ends
        stderr=subprocess.PIPE if quiet else None,  # one process talks; the others are heard if they fail alone
    )


@dataclass
class Asked:
    """The signals that came to the launcher. Use it as a context, in which each is handed on to the children.

    Attributes:
        times: when they came, by the monotonic clock.
        ended: how many children had to be killed because they did not obey.
    """

    children: "list[subprocess.Popen[bytes]]"
    times: list[float] = field(default_factory=list)
    ended: int = 0

    def __enter__(self) -> "Asked":
        ignored = getattr(signal, "SIGHUP", None), signal.SIG_IGN  # as `nohup` wants it
        wanted = [number for number in _SIGNALS if (number, signal.getsignal(number)) != ignored]
        self._before = {number: signal.signal(number, self._on_signal) for number in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.times.append(time.monotonic())
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)
                if hasattr(signal, "SIGCONT"):  # one that was stopped hears nothing before it goes on
                    child.send_signal(signal.SIGCONT)

    @property
    def overdue(self) -> bool:
        """Whether who still runs has had its time."""
        if not self.times:
            return False
        since, patience = (self.times[0], _TO_SAVE) if len(self.times) == 1 else (self.times[1], _TO_END)
        return len(self.times) > 2 or time.monotonic() - since > patience


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


def _wait(children: list[subprocess.Popen[bytes]], *, asked: Asked) -> int | None:
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
        if asked.overdue:
            asked.ended = max(asked.ended, len(running))
            for child in running:
                child.kill()
        time.sleep(0.05)


def _outcome(children: list[subprocess.Popen[bytes]], *, first: int | None, asked: Asked) -> int:
    """The exit code that tells the cause, not what the other processes died of.

    Raises:
        OutOfMemory, HditError: the first that failed was killed, so nobody has told it yet.
        Interrupted: by the signal that was handed on, or because it was not obeyed in time.
    """
    codes = [child.returncode for child in children if child.returncode]
    told = [code for code in codes if code in _TOLD]
    number = -children[first].returncode if first is not None else 0
    if asked.ended and not set(told) - {Interrupted.exit_code}:
        waited = f" within {_TO_SAVE:.0f} s" if len(asked.times) == 1 else ""
        text = f"interrupted; {asked.ended} of {len(children)} processes did not end{waited} and were killed"
        raise Interrupted(text, hint="the same command goes on from what was saved before, or starts again")
    if told or number <= 0:
        return (told or codes or [0])[0]
    if asked.times and number in (*_SIGNALS, getattr(signal, "SIGKILL", None)):
        raise Interrupted("interrupted", hint="the same command goes on, or starts again")
    what = f"process {first} of {len(children)} was ended by {signal.Signals(number).name}"
    if number == getattr(signal, "SIGKILL", None):
        hint = "fewer --processes, or a smaller batch; the same command goes on, or starts again"
        raise OutOfMemory(f"{what}, most likely because memory ran out", hint=hint)
    raise HditError(what, hint="the same command goes on, or starts again; a driver or a library may be broken")
