"""What the launcher makes of how its processes ended; the whole commands are in tests/cli/test_processes.py."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hdit_cli.engine import launch
from hdit_cli.errors import HditError, Interrupted, OutOfMemory

DIES = "import os, time; time.sleep({}); os.kill(os.getpid(), {})"
ENDS = "import sys, time; time.sleep({}); sys.exit({})"


def ended(*programs, asked=False):
    children = [subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.DEVNULL) for text in programs]
    signals = launch.Asked(children, [time.monotonic()] if asked else [])
    return launch._outcome(children, first=launch._wait(children, asked=signals), asked=signals)


OBEYS = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""
DEAF = OBEYS.replace("lambda *_: sys.exit(75)", "lambda *_: None")


def signalled(*programs, numbers, stop=None):
    """Two processes, of which number `stop` is stopped, under a launcher that gets signals a tenth of a second apart.

    Returns the exit code that comes of it, and the seconds it took from the first signal on.
    """
    children = [subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) for text in programs]
    for child in children:
        assert child.stdout.readline() == b"ready\n"
    if stop is not None:
        children[stop].send_signal(signal.SIGSTOP)

    def send():
        for number in numbers:
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    try:
        with launch.Asked(children) as asked:
            start = time.monotonic()
            thread = threading.Thread(target=send)
            thread.start()
            try:
                first = launch._wait(children, asked=asked)
                return launch._outcome(children, first=first, asked=asked), time.monotonic() - start
            finally:
                thread.join()
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_the_first_signal_is_obeyed_by_a_stopped_process_too(number):
    code, seconds = signalled(OBEYS, OBEYS, numbers=[number], stop=1)
    assert code == 75
    assert seconds < 5


def test_the_first_signal_ends_a_stuck_process_after_a_while(monkeypatch):
    monkeypatch.setattr(launch, "_TO_SAVE", 0.5)
    with pytest.raises(Interrupted, match="1 of 2 processes did not end within") as caught:
        signalled(OBEYS, DEAF, numbers=[signal.SIGTERM])
    assert "same command" in caught.value.hint


@pytest.mark.parametrize("stop", [0, 1])
def test_the_second_signal_ends_everything_at_once(stop, monkeypatch):
    monkeypatch.setattr(launch, "_TO_END", 0.5)
    start = time.monotonic()
    with pytest.raises(Interrupted, match="2 of 2 processes did not end and were killed"):
        signalled(DEAF, DEAF, numbers=[signal.SIGTERM, signal.SIGTERM], stop=stop)
    assert time.monotonic() - start < 5


def test_the_third_signal_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(launch, "_TO_END", 60)
    with pytest.raises(Interrupted):
        signalled(DEAF, DEAF, numbers=[signal.SIGTERM] * 3)


def test_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with launch.Asked([]) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert asked.times == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_was_killed_is_told(killed):
    """The other one ends with 1: it has only lost its partner."""
    programs = [ENDS.format(0.4, 1)] * 2
    programs[killed] = DIES.format(0, signal.SIGKILL)
    with pytest.raises(OutOfMemory, match=f"process {killed} of 2 was ended by SIGKILL") as caught:
        ended(*programs)
    assert caught.value.hint


def test_a_crash_is_told():
    with pytest.raises(HditError, match="process 1 of 2 was ended by SIGSEGV"):
        ended(ENDS.format(0.4, 1), DIES.format(0, signal.SIGSEGV))


def test_a_signal_before_the_processes_could_obey_it_is_an_interruption():
    with pytest.raises(Interrupted):
        ended(*[DIES.format(0, signal.SIGTERM)] * 2, asked=True)


@pytest.mark.parametrize(("codes", "wanted"), [((0, 0), 0), ((1, 74), 74), ((75, 75), 75), ((1, 1), 1)])
def test_the_code_of_the_cause_comes_back(codes, wanted):
    assert ended(*(ENDS.format(0, code) for code in codes)) == wanted
