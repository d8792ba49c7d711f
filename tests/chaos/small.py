"""A checkpoint without a model: what the save, the loader and rotation do not depend on. Milliseconds each."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import torch

from hdit_cli import files
from hdit_cli.engine.run import checkpoint, rotation


def snapshot(step, *, values=48):
    """A snapshot whose every number tells its step."""

    def tensors(offset):
        return {f"layer{n}.weight": torch.arange(values) + step + offset + n / 8 for n in range(2)}

    window = {"loss": [0.5], "grad_norm": 0.5, "skipped": 0, "steps": 1}
    facts = {"step": step, "log_bytes": {}, "data": "", "window": window}
    headers = {"raw": {"step": str(step)}, "ema": {"step": str(step)}}
    return checkpoint.Snapshot(tensors(0.0), tensors(0.25), tensors(0.5), facts, headers=headers)


def save(run, step, *, keep=2, **options):
    """What the saving thread does."""
    checkpoint.save_snapshot(run, snapshot(step, **options))
    rotation.rotate(run, keep=keep)


def right(folder):
    """Whether a folder that was offered for loading holds the numbers of its step."""
    found = checkpoint.load_snapshot(folder)
    wanted = snapshot(found.state["step"], values=found.raw["layer0.weight"].numel())
    return folder.name == checkpoint.step_name(found.state["step"]) and all(
        torch.equal(ours[name], theirs[name])
        for ours, theirs in ((found.raw, wanted.raw), (found.ema, wanted.ema), (found.optimizer, wanted.optimizer))
        for name in theirs
    )


class Recorder:
    """The system calls of `files` as they are made, in the place of its `os` and `open`: what really reached the kernel."""

    def __init__(self, root):
        self.root, self.log, self._paths = Path(root), [], {}

    def note(self, *entry):
        self.log.append(entry)

    def inside(self, path):
        return os.path.relpath(path, self.root)

    def open(self, path, mode="r", **options):
        handle = open(path, mode, **options)  # noqa: SIM115 - the caller closes it
        if mode == "wb":
            self.note("create", self.inside(path))
            self._paths[handle.fileno()] = self.inside(path)
            return _Recorded(handle, self)
        return handle

    def announced(self, operation, path):
        if operation in ("mkdir", "rmtree"):
            self.note(operation, self.inside(path))

    @contextlib.contextmanager
    def recording(self):
        shim = mock.Mock(wraps=os)
        shim.PathLike = os.PathLike
        for name in filter(lambda name: name.startswith("O_"), dir(os)):
            setattr(shim, name, getattr(os, name))  # numbers, which a mock would wrap

        def renamed(source, target):
            os.rename(source, target)
            self.note("rename", self.inside(source), self.inside(target))
            self._paths = {fd: self.inside(target) if p == self.inside(source) else p for fd, p in self._paths.items()}

        shim.replace = shim.rename = renamed

        def opened(path, flags):
            descriptor = os.open(path, flags)
            self._paths[descriptor] = self.inside(path)
            return descriptor

        def synced(descriptor):
            os.fsync(descriptor)
            self.note("fsync", self._paths.get(descriptor, "?"))

        shim.open, shim.fsync = opened, synced
        with (
            mock.patch.object(files, "os", shim),
            mock.patch.object(files, "open", self.open, create=True),
            mock.patch.object(files, "observer", self.announced),
        ):
            yield self


class _Recorded:
    def __init__(self, handle, recorder):
        self._handle, self._recorder = handle, recorder
        self._path = recorder.inside(handle.name)

    def write(self, data):
        self._recorder.note("write", self._path, bytes(data))
        return self._handle.write(data)

    def __getattr__(self, name):
        return getattr(self._handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._handle.close()
