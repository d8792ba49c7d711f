"""Alternating runs of several ways to do one thing: what else the machine does meets all of them alike."""

import contextlib
import ctypes
import datetime
import json
import os
import platform
import statistics
import sys
from importlib import metadata

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """On Linux, processes that outlive the command that started them become children of this one."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ended():
    """Waits for all children, and yields what each used, the processes below it included."""
    with contextlib.suppress(ChildProcessError):
        while True:
            yield os.wait3(0)[2]


def alternate(ways, *, rounds):
    """Calls each of `ways` (name => function that returns what it measured) in turn; the first round is not counted."""
    rates = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            rate = way()
            if turn:
                rates[name].append(rate)
    return rates


def spread(values, *, digits=1):
    return {
        "median": round(statistics.median(values), digits),
        "range": [round(min(values), digits), round(max(values), digits)],
    }


def ratios(above, below):
    """Of the runs that stood beside each other."""
    return spread([a / b for a, b in zip(above, below, strict=True)], digits=2)


def machine(*packages):
    """Where and when: processor, cores, load, versions."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def show(facts):
    """Prints facts, one line for each that is no table of its own."""
    for name, value in facts.items():
        print(f"{name}:" if isinstance(value, dict) else f"{name}: {value}")
        for inner, told in value.items() if isinstance(value, dict) else ():
            print(f"  {inner}: {json.dumps(told)}")
