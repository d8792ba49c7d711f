"""Faults and mutants, by name: each replaces named functions while the context is open.

A fault is something the world does (a NaN, a file size limit); the suite shows that it does no harm. A mutant is a mistake
somebody could make in the code; the suite shows that it would not go unnoticed.
"""

import contextlib
import os
import shutil
from unittest import mock

from hdit_cli import files, runtime
from hdit_cli.data import loader, order
from hdit_cli.engine.run import checkpoint, rotation, saver, snapshots
from hdit_cli.engine.run import folder as run
from hdit_cli.engine.training import ema, guard, state, step
from hdit_cli.engine.training import loop as train


@contextlib.contextmanager
def planted(*names):
    with contextlib.ExitStack() as stack:
        for name in names:
            for target, attribute, replacement in PLANTS[name]():
                stack.enter_context(mock.patch.object(target, attribute, replacement))
        yield


# Faults


def poisoned(value, where, at=3):
    """A number that is not finite in the images, the loss, a gradient, a weight, the average or a moment of step `at`."""
    original_step, original_draw, original_norm = step.Stepper.step, step.Stepper.draw, step.nn.utils.get_total_norm

    def draw(self, batch, *, first):
        drawn = original_draw(self, batch, first=first)
        if where == "image" and self.state.step + 1 == at:
            drawn.x0[0, 0, 0, 0] = value
        return drawn

    def norm_of(gradients):
        if where == "gradient" and norm_of.step + 1 == at:
            gradients[3].view(-1)[0] = value
        return original_norm(gradients)

    def take(self, batches):
        norm_of.step = self.state.step
        if where == "weight" and self.state.step + 1 == at:
            self.state.parameters[3].data.view(-1)[0] = value
        if where == "loss" and self.state.step + 1 == at:
            kept = self.losses_of
            self.losses_of = lambda drawn: (found := kept(drawn))._replace(loss=found.loss + value)
            original_step(self, batches)
            self.losses_of = kept
        else:
            original_step(self, batches)
        if where == "average" and self.state.step == at:
            next(self.state.ema.network.parameters()).view(-1)[0] = value
        if where == "moment" and self.state.step == at:
            next(iter(self.state.optimizer.state.values()))["exp_avg"].view(-1)[0] = value

    return [(step.Stepper, "draw", draw), (step.Stepper, "step", take), (step.nn.utils, "get_total_norm", norm_of)]


def small_files():
    """No file may grow beyond 20 kB: smaller than the weights."""
    import resource

    original = train.Trainer.save

    def save(self):
        if self.state.step > 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return original(self)

    return [(train.Trainer, "save", save)]


# Mutants


def in_place():
    @contextlib.contextmanager
    def staged_folder(path):
        files.make_folder(path)
        yield path

    return [(files, "staged_folder", staged_folder)]


def manifest_first():
    original = checkpoint.save_snapshot

    def save_snapshot(folder, snapshot, **options):
        target = folder / "checkpoints" / checkpoint.step_name(snapshot.state["step"])
        kept = folder / "kept"
        with (
            mock.patch.object(files, "observer", None),
            mock.patch.object(files, "os", os),
            mock.patch.object(files, "open", open, create=True),
        ):
            original(kept, snapshot, **options)
        source = kept / "checkpoints" / target.name
        files.make_folder(target)
        for name in sorted((p.name for p in source.iterdir()), key=lambda name: name != checkpoint.MANIFEST):
            files.write_bytes(target / name, (source / name).read_bytes())
        files.write_bytes(folder / "ckpt.safetensors", (kept / "ckpt.safetensors").read_bytes())
        shutil.rmtree(kept)
        return target

    return [(checkpoint, "save_snapshot", save_snapshot)]


def rotate_first():
    original = checkpoint.save_snapshot

    def save_snapshot(folder, snapshot, **options):
        for number in checkpoint.list_steps(folder):
            files.remove_folder(folder / "checkpoints" / checkpoint.step_name(number))
        return original(folder, snapshot, **options)

    return [(checkpoint, "save_snapshot", save_snapshot)]


def presence_only(folder):
    return "" if (folder / checkpoint.MANIFEST).is_file() else "no manifest"


def write_without_fsync(handle, data, path):
    files._announce("write", path)
    handle.write(data)


def rename_before_fsync(path, data):
    temporary = files.temporary_name(path)
    with vars(files).get("open", open)(temporary, "wb") as handle:
        handle.write(data)
        handle.flush()
        files.os.replace(temporary, path)
        files.os.fsync(handle.fileno())
    files.sync_folder(path.parent)


def by_time(folder):
    found = {s: (folder / "checkpoints" / checkpoint.step_name(s)).stat().st_mtime for s in _list_steps(folder)}
    return sorted(found, key=found.__getitem__)


def by_text(folder):
    return sorted(_list_steps(folder), key=str)


_list_steps = checkpoint.list_steps


def no_fall_back(folder, *, warn):
    steps = checkpoint.list_steps(folder)
    newest = folder / "checkpoints" / checkpoint.step_name(steps[-1]) if steps else None
    return newest if newest and not checkpoint.verify(newest) else None


@contextlib.contextmanager
def no_lock(path, *, what):
    yield


def restored(change):
    """`TrainState.restore` with something undone afterwards."""
    original = state.TrainState.restore

    def restore(self, snapshot, **options):
        before = {name: tensor.clone() for name, tensor in self.ema.network.state_dict().items()}
        original(self, snapshot, **options)
        change(self, before)

    return [(state.TrainState, "restore", restore)]


def forget_updates(self, before):
    self.averages.updates.zero_()


def restart_widths(self, before):
    for average in self.averages.by_std.values():
        average.network.load_state_dict(before)


def forget_window(self, before):
    self.window = state.Window.empty(device=self.window.loss.device)


def step_off(self, before):
    self.step += 1


def average_of_refused():
    original = ema.EMA.update

    def update(self, parameters, *, decay, keep, **how):
        original(self, [p + 0.01 for p in parameters], decay=decay, keep=keep * 0 + 1, **how)

    return [(ema.EMA, "update", update)]


def judged_late():
    original = guard.FiniteGuard.judge

    def judge(self, norm):
        before = self.stopped.clone()
        original(self, norm)
        return before

    return [(guard.FiniteGuard, "judge", judge)]


def first_epoch_only(index, *, count, seed):
    return order.sample_at(index % count, count=count, seed=seed)


def world_in_the_seed():
    original = runtime.bits

    def bits(seed, stream, index, count=1):
        return original(seed, f"{stream}/{os.environ.get('WORLD_SIZE', '1')}", index, count)

    return [(runtime, "bits", bits)]


def global_noise(seed, stream, index, shape, *, like):
    import torch

    return torch.randn((len(index), *shape), dtype=like.dtype, device=like.device)


def told_too_early():
    from hdit_cli.engine.run.events import Saved

    original = train.Trainer.save

    def save(self):
        return [*original(self), Saved(self.state.step, self.folder.path)]

    return [(train.Trainer, "save", save)]


def swallowed():
    original = saver.Saver.wait

    def wait(self):
        with contextlib.suppress(Exception):
            return original(self)
        return []

    return [(saver.Saver, "wait", wait)]


PLANTS = {
    **{
        f"{value} in {where}": lambda value=value, where=where: poisoned(float(value), where)
        for value in ("nan", "inf", "-inf")
        for where in ("image", "loss", "gradient", "weight", "average", "moment")
    },
    "small files": small_files,
    "in place": in_place,
    "manifest first": manifest_first,
    "rotate first": rotate_first,
    "no hash check": lambda: [(checkpoint, "verify", presence_only)],
    "no file fsync": lambda: [(files, "_write_through", write_without_fsync)],
    "no folder fsync": lambda: [(files, "sync_folder", lambda path: None)],
    "fsync after rename": lambda: [(files, "write_bytes", rename_before_fsync)],
    "newest by time": lambda: [(checkpoint, "list_steps", by_time)],
    "newest by text": lambda: [(checkpoint, "list_steps", by_text)],
    "no fall-back": lambda: [(checkpoint, "newest_verified", no_fall_back)],
    "no lock": lambda: [(files, "lock", no_lock)],
    "average not restored": lambda: restored(lambda self, before: self.ema.network.load_state_dict(before)),
    "widths not restored": lambda: restored(restart_widths),
    "updates not restored": lambda: restored(forget_updates),
    "snapshots not cut": lambda: [(snapshots, "cut", lambda folder, *, after: None)],
    "moments not restored": lambda: [(state.TrainState, "_restore_optimizer", lambda self, tensors: None)],
    "step off by one": lambda: restored(step_off),
    "log window not restored": lambda: restored(forget_window),
    "log not cut": lambda: [(run.RunFolder, "cut_logs", lambda self, sizes: None)],
    "nothing mended": lambda: [(rotation, "mend", lambda folder, newest, *, keep: None)],
    "average of a refused step": average_of_refused,
    "NaN check after the step": judged_late,
    "order ignores the epoch": lambda: [(loader, "sample_at", first_epoch_only)],
    "world size in the seed": world_in_the_seed,
    "noise from the global generator": lambda: [(runtime, "normal", global_noise)],
    "saved told too early": told_too_early,
    "failed save swallowed": swallowed,
}
