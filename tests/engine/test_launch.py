"""What the launcher makes of how its processes ended; the whole commands are in tests/cli/test_processes.py."""

import signal
import subprocess
import sys

import pytest

from hdit_cli.engine import launch
from hdit_cli.errors import HditError, Interrupted, OutOfMemory

DIES = "import os, time; time.sleep({}); os.kill(os.getpid(), {})"
ENDS = "import sys, time; time.sleep({}); sys.exit({})"


def ended(*programs, asked=False):
    children = [subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.DEVNULL) for text in programs]
    return launch._outcome(children, first=launch._wait(children), asked=asked)


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
