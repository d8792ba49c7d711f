"""Memory of tensors that is freed and asked for again: pages that the system has to clear are what it costs."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from hdit_cli import runtime

if sys.argv[1] == "kept":
    runtime.keep_freed_memory()

def work():
    for _ in range(4):
        torch.ones(12_000_000)
        torch.ones(3_000_000)

for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_what_is_freed_is_used_again():
    before = faults("as it is")
    assert faults("kept") < before / 3
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072") > before / 2  # the user's own choice stands
