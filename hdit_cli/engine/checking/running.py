"""A small run that is broken off and gone on with, beside an unbroken one; and its checkpoints, verified and read."""

from contextlib import suppress
from pathlib import Path

import torch

from hdit_cli import files
from hdit_cli.engine.checking.ground import SAVED, STEPS, Found, Ground
from hdit_cli.engine.load import load
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.events import Event, Stepped
from hdit_cli.engine.run.verify import verify_run

_REPORT = "report it with what --json prints; until it is mended, do not stop a run here that you want to go on with"


class _Broken(Exception):
    """Stands for a power cut, after a step whose checkpoint was not written."""


def check_resume(ground: Ground) -> Found:
    """A run that ends in the middle of things and goes on must end with the bits of one that did not."""
    ground.tell("resume: a run in one go")
    unbroken = ground.unbroken
    ground.tell("resume: a run that is broken off and goes on")

    def breaks(event: Event) -> None:
        if isinstance(event, Stepped) and event.step > SAVED:
            raise _Broken

    with suppress(_Broken):
        ground.train("broken", watch=breaks)
    begun = checkpoint.list_steps(ground.folder / "broken")
    resumed = ground.train("broken")
    different = differences(unbroken, resumed, step=STEPS)
    numbers = {"steps": STEPS, "went_on_from": begun, "different": different}
    if begun != [SAVED]:
        wrong = f"a run that ended after step {SAVED + 1} left checkpoints of steps {begun}, and not of step {SAVED}"
        return Found(numbers=numbers, wrong=wrong, hint=_REPORT)
    if different:
        wrong = f"a run that goes on is another than an unbroken one: {different[0]} differs"
        return Found(numbers=numbers, wrong=wrong, hint=_REPORT)
    return Found(f"{STEPS} steps, broken off after {SAVED + 1}, end with the bits of an unbroken run", numbers)


def differences(one: Path, other: Path, *, step: int) -> list[str]:
    """What is not the same in two runs: tensors of a step's checkpoint, and the log."""
    name = Path("checkpoints") / checkpoint.step_name(step)
    snapshots = [checkpoint.load_snapshot(run / name) for run in (one, other)]
    found = []
    for kind in ("raw", "ema", "optimizer"):
        tensors = [getattr(snapshot, kind) for snapshot in snapshots]
        found += [f"{kind} {key}" for key in sorted(tensors[0].keys() ^ tensors[1].keys())]
        both = sorted(tensors[0].keys() & tensors[1].keys())
        found += [f"{kind} {key}" for key in both if not torch.equal(tensors[0][key], tensors[1][key])]
    logs = [(run / "metrics.jsonl").read_bytes() for run in (one, other)]
    return found if logs[0] == logs[1] else [*found, "metrics.jsonl"]


def check_checkpoint(ground: Ground) -> Found:
    """A checkpoint is verified and read back; one with a flipped bit must be noticed."""
    run = ground.unbroken
    ground.tell("checkpoint")
    problems = [f"{each.name} {each.problem}" for each in verify_run(run) if each.problem]
    newest = run / "checkpoints" / checkpoint.step_name(STEPS)
    written = checkpoint.load_snapshot(newest).ema
    model = load(run / "ckpt.safetensors", device=ground.device)
    read = {name: tensor.cpu() for name, tensor in model.network.state_dict().items()}
    other = [name for name, tensor in written.items() if not torch.equal(read.get(name, torch.empty(0)), tensor)]
    damaged = ground.folder / "damaged" / newest.name
    files.make_folder(damaged)
    for path in newest.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= path.name == "model.safetensors"
        files.write_bytes(damaged / path.name, data)
    seen = bool(checkpoint.verify(damaged))
    numbers = {"tensors": len(written), "problems": problems, "read_back_differently": other, "damage_noticed": seen}
    wrong = (
        f"a checkpoint that was just written does not verify: {problems[0]}"
        if problems
        else f"a checkpoint reads back differently: {other[0]}"
        if other
        else "a checkpoint with a flipped bit passes for whole"
        if not seen
        else ""
    )
    if wrong:
        return Found(
            numbers=numbers, wrong=wrong, hint="check disk and memory of this machine; copy what matters elsewhere"
        )
    return Found(f"{len(written)} tensors written, verified, read back equal; a flipped bit is noticed", numbers)
