"""Checks that train: each returns what is wrong, so that a mutant can be shown to fail it."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from harness import after_the_end, after_the_kill, half_checkpoints, killed_and_resumed, leftovers, tiny
from plants import planted

from hdit_cli import runtime
from hdit_cli.data import loader
from hdit_cli.engine.run import checkpoint


def kills(servers, place, unbroken, *, at, plants=()):
    """A run killed at each event of `at` and resumed; stops at the first violation."""
    _, reference, _ = unbroken
    for kill in at:
        wrong, _ = killed_and_resumed(servers, place / str(kill) / "run", [kill], reference=reference, plants=plants)
        if wrong:
            return wrong
    return []


def failing_disk(servers, place, unbroken, *, at, plants=(), code=28):
    """A run whose disk fails at one event: exit 74, checkpoints whole, and the next start ends with the same bytes."""
    run = place / "run"
    went = servers.run({"run": run, "fail": [at, code], "plants": list(plants)})
    wrong = [] if went.code == 74 else [f"exit {went.code}: {went.notes[-3:]}"]
    wrong += after_the_kill(run, went) + [f"left behind: {name}" for name in leftovers(run / "checkpoints")]
    return wrong + after_the_end(run, servers.run({"run": run}), reference=unbroken[1])


def two_runs(servers, place, unbroken, *, plants=()):
    """Two processes in one folder: one trains, the other is refused and names it; killed, its lock is free at once."""
    run, go = place / "run", place / "go"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(servers.run, {"run": run, "pause": str(go), "plants": list(plants)})
        log = place / "run.log"
        deadline = time.monotonic() + 60
        while not (log.exists() and "step 1" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        pid = log.read_text().split()[1]
        os.rename(log, place / "first.log")  # the second writes one of its own
        second = servers.run({"run": run, "plants": list(plants)})
        os.kill(int(pid), 9)
        assert first.exception() is not None or first.result().code == -9
    wrong = [] if second.code == 2 else [f"the second: exit {second.code}"]
    if second.code == 2 and f"pid {pid}" not in second.text("error")[0]:
        wrong.append(f"the first is not named: {second.text('error')}")
    return wrong + after_the_end(run, servers.run({"run": run}), reference=unbroken[1])


def not_finite(servers, place, *, fault, plants=()):
    """A fault at step 3: exit 5, and no checkpoint later than step 2 or with a value that is not finite."""
    run = place / "run"
    went = servers.run({"run": run, "plants": [fault, *plants]})
    wrong = [] if went.code == 5 else [f"exit {went.code}: {went.notes[-3:]}"]
    steps = checkpoint.list_steps(run)
    if steps != [2]:
        wrong.append(f"{steps} were saved")
    for step in steps:
        found = checkpoint.load_snapshot(run / "checkpoints" / checkpoint.step_name(step))
        tensors = [*found.raw.values(), *found.ema.values(), *found.optimizer.values()]
        tensors += [t for part in found.averages.tensors.values() for t in part.values()]
        wrong += [f"step {step} is not finite"] * (not all(torch.isfinite(t).all() for t in tensors))
    return wrong + half_checkpoints(run)


def skipped(servers, place, *, fault, plants=()):
    """With train.nonfinite = "skip", the state after a bad first step is the state before it, and the log counts it."""
    run, clean = place / "run", place / "clean"
    recipe = tiny(train__nonfinite="skip", train__save_every=1, train__steps=3, train__keep=5, train__log_every=1)
    went = servers.run({"run": run, "recipe": recipe, "plants": [fault, *plants]})
    wrong = [] if went.code == 0 else [f"exit {went.code}: {went.notes[-3:]}"]
    if wrong:
        return wrong
    before, after = (
        checkpoint.load_snapshot(run / "checkpoints" / checkpoint.step_name(step)) for step in (2, 3)
    )  # the fault is at step 3
    for part in ("raw", "ema", "optimizer"):
        ours, theirs = getattr(after, part), getattr(before, part)
        wrong += [f"{part} {name} changed" for name in theirs if not torch.equal(ours[name], theirs[name])]
    ours, theirs = after.averages.tensors["ema-0.100.safetensors"], before.averages.tensors["ema-0.100.safetensors"]
    wrong += [f"average 0.100 {name} changed" for name in theirs if not torch.equal(ours[name], theirs[name])]
    if after.averages.updates != before.averages.updates:
        wrong.append("the refused step counts as an update")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    if '"skipped": 1' not in lines[-1] or '"loss": null' not in lines[-1] or '"skipped": 0' not in lines[0]:
        wrong.append(f"not counted: {lines}")
    assert not clean.exists()
    return wrong


def choice_of_the_newest(place, *, plants=()):
    """Steps 9 and 10 with modification times the wrong way round: 10 is taken."""
    from small import save

    for step in (9, 10):
        save(place, step)
    for step, when in ((9, 4102444800), (10, 0)):
        os.utime(place / "checkpoints" / checkpoint.step_name(step), (when, when))
    with planted(*plants):
        found = checkpoint.newest_verified(place, warn=lambda text: None)
    return [] if found.name == checkpoint.step_name(10) else [f"{found.name} is taken"]


def order_of_pictures(*, plants=()):
    """Every epoch is a permutation, and no two are the same."""
    with planted(*plants):
        epochs = [loader.sample_at(np.arange(16) + 16 * epoch, count=16, seed=3) for epoch in range(4)]
    wrong = [f"epoch {n} is no permutation" for n, epoch in enumerate(epochs) if sorted(epoch) != list(range(16))]
    return wrong + ["two epochs are the same"] * (len({tuple(epoch) for epoch in epochs}) < len(epochs))


def noise_of_an_image(*, plants=()):
    """The noise of an image is the same in a world of one, and in one of two."""
    found = []
    with planted(*plants):
        for world in ("1", "2"):
            kept = os.environ.get("WORLD_SIZE")
            os.environ["WORLD_SIZE"] = world
            try:
                found.append(runtime.normal(0, "noise", [5, 6], (4,), like=torch.zeros(())))
            finally:
                os.environ.pop("WORLD_SIZE")
                if kept is not None:
                    os.environ["WORLD_SIZE"] = kept
    return [] if torch.equal(*found) else ["the noise depends on the number of processes"]
