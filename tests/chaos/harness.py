"""What the crash tests share: fork servers, the tiny run, and the rules that hold after any accident."""

import hashlib
import json
import os
import queue
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hdit_cli.engine.run import checkpoint
from hdit_cli.recipe import Recipe

HERE = Path(__file__).parent
SEED = int(os.environ.get("HDIT_CHAOS_SEED", "0"))
SAVE_EVERY, STEPS, KEEP = 2, 4, 1


def trials(few, many):
    """The number of a random test's trials: few at every run, many with `-m long`."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=[pytest.mark.slow, pytest.mark.long])])


def chance(name):
    """Random numbers of one test: the same at every run, others with another HDIT_CHAOS_SEED."""
    return random.Random(f"{SEED}/{name}")


def tiny(**changes):
    """A recipe, as a dict, that uses every part in 4 steps of a few milliseconds."""
    base = {
        "name": "chaos",
        "data": {"workers": 0},
        "model": {
            "size": [16, 16],
            "patch": 4,
            "levels": [
                {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3, "dropout": 0.1}
            ],
            "mapping_width": 16,
            "mapping_depth": 1,
            "classes": "data",
        },
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "precision": "fp32",
            "deterministic": True,
            "save_every": SAVE_EVERY,
            "sample_every": 4,
            "log_every": 3,
            "keep": KEEP,
        },
        "optimizer": {"lr": 2e-3, "warmup": 3},
        "ema": {"stds": [0.1], "snapshot_every": 3},
        "sample": {"n": 2, "steps": 1, "batch_size": 2},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        base[section] = {**base[section], name: value}
    return Recipe.from_dict(base).to_dict()


class Servers:
    """Fork servers: `run` sends a job to one, `map` shares jobs between two, of which the second starts when it is needed."""

    def __init__(self, data):
        self.data = data
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.processes, self.free, self.pool, self.guard = [], queue.Queue(), ThreadPoolExecutor(2), threading.Lock()
        self.start()

    def start(self):
        warm = json.dumps({"recipe": tiny(), "data": str(self.data)})
        command = [sys.executable, str(HERE / "fork_server.py"), warm]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env)
        self.processes.append(process)
        self.free.put(process)

    def run(self, job):
        """Trains as a job says; returns how it went."""
        folder = Path(job["run"])
        log = Path(job.get("log", folder.parent / f"{folder.name[:80]}.log"))
        log.parent.mkdir(parents=True, exist_ok=True)
        before = len(log.read_text().splitlines()) if log.exists() else 0
        job = {"data": str(self.data), "recipe": tiny(), **job, "run": str(folder), "log": str(log)}
        with self.guard:
            if self.free.empty() and len(self.processes) == 1:
                self.start()
        process = self.free.get()
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
        finally:
            self.free.put(process)
        return Went(code, [line.split(" ", 1) for line in log.read_text().splitlines()[before:]])

    def map(self, function, *arguments):
        return list(self.pool.map(function, *arguments))

    def close(self):
        self.pool.shutdown(cancel_futures=True)
        for process in self.processes:
            process.stdin.close()
            process.wait(timeout=30)


@dataclass
class Went:
    """One training process: exit code (minus the signal that killed it), and its notes in order."""

    code: int
    notes: list

    def last(self, name, default=0):
        found = [int(rest) for word, rest in self.notes if word == name]
        return found[-1] if found else default

    def text(self, name):
        return [rest for word, rest in self.notes if word == name]


def digests(run):
    """SHA-256 of every file of a run but the lock and the clock; .bad folders and temporaries would show up here."""
    files = (p for p in sorted(Path(run).rglob("*")) if p.is_file() and p.name not in (".lock", "timing.jsonl"))
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def leftovers(run):
    return [str(p.relative_to(run)) for p in Path(run).rglob(".tmp-*")]


def half_checkpoints(run):
    """Folders under a final name that do not verify: there must be none, ever."""
    folders = [Path(run) / "checkpoints" / checkpoint.step_name(step) for step in checkpoint.list_steps(Path(run))]
    return [f"{folder.name}: {reason}" for folder in folders if (reason := checkpoint.verify(folder))]


def after_the_kill(run, went):
    """What a killed run leaves: whole checkpoints, the newest of them not older than what was acknowledged."""
    wrong = half_checkpoints(run)
    steps = checkpoint.list_steps(Path(run))
    if (steps[-1] if steps else 0) < went.last("saved"):
        wrong.append(f"saved {went.last('saved')} was told, {steps} are there")
    return wrong


def after_the_end(run, went, *, reference):
    """What a run that was let finish leaves: the very bytes of the unbroken one."""
    if went.code:
        return [f"exit {went.code}: {went.notes[-4:]}"]
    found = digests(run)
    wrong = [f"{name} differs" for name in sorted({*found, *reference}) if found.get(name) != reference.get(name)]
    return wrong + [f"left behind: {name}" for name in leftovers(run)]


def killed_and_resumed(servers, run, kills, *, reference, plants=()):
    """One run killed at each of `kills` events in turn, then let finish.

    Returns:
        violations, and the steps that had to be computed again, one number for each kill that struck.
    """
    wrong, redone, stepped, acknowledged, struck = [], [], 0, 0, False
    for kill in [*kills, None]:
        went = servers.run({"run": run, "kill": kill, "plants": list(plants)})
        start = went.last("start", default=-1)
        if start >= 0:
            if struck:
                redone.append(max(0, stepped - start))
            if start < acknowledged:
                wrong.append(f"saved {acknowledged} was told, {start} is where it goes on")
        stepped = went.last("step", default=stepped if start < 0 else start)
        struck = went.code == -9
        acknowledged = max(acknowledged, went.last("saved"))
        if struck:
            wrong += after_the_kill(run, went)
        else:
            wrong += after_the_end(run, went, reference=reference)
            break
    return wrong, redone
