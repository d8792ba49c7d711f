"""Checks of the disk that need no training: each returns what is wrong, so that a mutant can be shown to fail it."""

import errno
import os
import random
import shutil
from unittest import mock

from power import Disk, frozen, lay_out
from small import Recorder, right, save

from hdit_cli import files
from hdit_cli.engine.run import checkpoint
from hdit_cli.errors import CheckpointError


def power_loss(place, *, saves=6, keep=2):
    """Every state after a power cut during `saves` saves with rotation.

    Returns:
        violations, and the number of different states.
    """
    run, scratch = place / "disk" / "run", place / "state"
    run.mkdir(parents=True)
    disk, recorder, acknowledged = Disk(), Recorder(run), 0
    disk.apply(("mkdir", "checkpoints"))  # the run folder is made before the first save
    disk.kept[0] = dict(disk.entries[0])
    (run / "checkpoints").mkdir()
    wrong, seen = [], set()
    for step in range(1, saves + 1):
        start = len(recorder.log)
        with recorder.recording():
            save(run, step, keep=keep)
        for entry in recorder.log[start:]:
            disk.apply(entry)
            for tree in disk.states():
                if (key := hash(frozen(tree))) not in seen:
                    seen.add(key)
                    lay_out(tree, scratch)
                    wrong += [f"{entry[:2]}: {what}" for what in _after_power_loss(scratch, acknowledged)]
        acknowledged = step
    if [*checkpoint.list_steps(run)] != [*range(saves - keep + 1, saves + 1)]:
        wrong.append(f"{checkpoint.list_steps(run)} are kept")
    return wrong, len(seen)


def _after_power_loss(run, acknowledged):
    wrong = []
    public = run / "ckpt.safetensors"
    if public.is_file():
        try:
            checkpoint.read_tensors(public)
        except CheckpointError:
            wrong.append("ckpt.safetensors is not whole")
    half = [
        step
        for step in checkpoint.list_steps(run)
        if checkpoint.verify(run / "checkpoints" / checkpoint.step_name(step))
    ]
    try:
        newest = checkpoint.newest_verified(run, warn=lambda text: None)
    except CheckpointError:
        newest = None
    if newest is None:
        return [*wrong, f"nothing to load after {acknowledged}"] if acknowledged else wrong
    if not right(newest):
        wrong.append(f"{newest.name} is loaded with wrong bytes")
    if int(newest.name[5:]) < acknowledged:
        wrong.append(f"{newest.name} is loaded, {acknowledged} was told to be saved")
    return wrong + [f"step {step} appeared before it was whole" for step in half]


ERRNOS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE]


def disk_errors(place, *, count=75, chance=None):
    """A fault at a random event of a save: an errno, or a write cut short by a full disk.

    Returns:
        violations, and the number of faults that struck.
    """
    chance = chance or random.Random(0)
    run, wrong, struck = place / "run", [], 0
    for step in (1, 2, 3):
        save(run, step)
    events = []
    with mock.patch.object(files, "observer", lambda operation, path: events.append(operation)):
        save(run, 4)
    while struck < count:
        newest = checkpoint.list_steps(run)[-1]
        before = (run / "checkpoints" / checkpoint.step_name(newest) / checkpoint.MANIFEST).read_bytes()
        at, code = chance.randint(1, len(events)), chance.choice([*ERRNOS, "short write"])
        told = _save_with_fault(run, newest + 1, at=at, code=code)
        if told == "untouched":
            continue
        struck += 1
        what = f"{code} at {events[at - 1]} ({at})"
        if told != "StorageError":
            wrong.append(f"{what}: {told}")
        after = run / "checkpoints" / checkpoint.step_name(newest)
        published = checkpoint.list_steps(run)[-1] > newest  # the fault came in ckpt.safetensors or rotation
        if not published and (
            not after.is_dir() or checkpoint.verify(after) or before != (after / "manifest.json").read_bytes()
        ):
            wrong.append(f"{what}: the newest checkpoint was touched")
        if published and not right(after.with_name(checkpoint.step_name(newest + 1))):
            wrong.append(f"{what}: a wrong checkpoint was published")
        left = [p.name for p in run.rglob(".tmp-*") if "rmtree" not in events[at - 1]]
        if left:
            wrong.append(f"{what}: {left} left behind")
        files.reap(run / "checkpoints")
        save(run, newest + 2)
        if not right(checkpoint.newest_verified(run, warn=wrong.append)):
            wrong.append(f"{what}: the next save is wrong")
    return wrong, struck


def _save_with_fault(run, step, *, at, code):
    """Saves with one fault; the name of the error that was told, "nothing", or "untouched" where it did not strike."""
    count, hit = 0, []

    def observer(operation, path):
        nonlocal count
        count += 1
        if count == at and code != "short write":
            hit.append(path)
            raise OSError(code, os.strerror(code), path)

    class Short:
        def __init__(self, handle):
            self.handle = handle

        def write(self, data):
            if count >= at and not hit:
                hit.append(data)
                self.handle.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.handle.write(data)

        def __getattr__(self, name):
            return getattr(self.handle, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.handle.close()

    def opened(path, mode="r", **options):
        handle = open(path, mode, **options)  # noqa: SIM115 - the caller closes it
        return Short(handle) if mode == "wb" and code == "short write" else handle

    with mock.patch.object(files, "observer", observer), mock.patch.object(files, "open", opened, create=True):
        try:
            save(run, step)
        except Exception as error:
            return type(error).__name__
    return "nothing" if hit else "untouched"


DAMAGES = [
    "flip", "truncate", "zero page", "swap", "other step", "delete", "extra", "empty manifest", "manifest of other step",
]  # fmt: skip


def damage(newest, older, kind, chance):
    """Damages the checkpoint folder `newest`; `older` is another of the run. False where the bytes came out the same."""
    parts = sorted(p for p in newest.iterdir() if p.is_file())
    path = chance.choice(parts)
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "zero page":
        start = chance.randrange(len(data)) // 4096 * 4096
        page = bytes(len(data[start : start + 4096]))
        if data[start : start + 4096] == page:
            return False
        data[start : start + 4096] = page
        path.write_bytes(data)
    elif kind == "swap":
        other = chance.choice([p for p in parts if p != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "other step":
        path.write_bytes((older / path.name).read_bytes())
    elif kind == "delete":
        path.unlink()
    elif kind == "extra":
        (newest / "stray.safetensors").write_bytes(b"x")
    elif kind == "empty manifest":
        (newest / "manifest.json").write_bytes(b"")
    else:
        (newest / "manifest.json").write_bytes((older / "manifest.json").read_bytes())
    return True


def corruptions(source, place, *, count=600, chance=None):
    """Damages the newest checkpoint of a copy of `source`, a run of at least two, again and again.

    Returns:
        violations, and the number of damages by kind.
    """
    chance = chance or random.Random(0)
    run = place / "run"
    shutil.copytree(source, run)
    steps = checkpoint.list_steps(run)
    newest, older = (run / "checkpoints" / checkpoint.step_name(step) for step in (steps[-1], steps[-2]))
    original = place / "original"
    shutil.copytree(newest, original)
    wrong, done = [], dict.fromkeys(DAMAGES, 0)
    while sum(done.values()) < count:
        kind = DAMAGES[sum(done.values()) % len(DAMAGES)]
        if not damage(newest, older, kind, chance):
            continue
        done[kind] += 1
        told = []
        found = checkpoint.newest_verified(run, warn=told.append)
        bad = newest.with_name(f"{newest.name}.bad")
        if found != older:
            wrong.append(f"{kind}: {found} is loaded")
        elif len(told) != 1 or newest.name not in told[0] or not bad.is_dir():
            wrong.append(f"{kind}: not named and set aside: {told}")
        shutil.rmtree(bad, ignore_errors=True)
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(original, newest)
    return wrong, done
