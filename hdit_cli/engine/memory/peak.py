"""The most memory that tensors held at once while a piece of code ran, on any device."""

import weakref
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Peak:
    """Measures a block of code: `with Peak(device) as peak: ...`, then `peak.bytes`.

    On CUDA the allocator's own counter, everything included. Elsewhere the storages of all tensors that operations make,
    from their making to their end, without the scratch space inside an operation; what was there before does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._mode = None if device.type == "cuda" else _Storages()

    def __enter__(self) -> "Peak":
        if self._mode is None:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mode is None:
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self._mode.__exit__(kind, error, trace)
            self.bytes = self._mode.peak


class _Storages(TorchDispatchMode):
    """Adds up the storages of what each operation returns, and takes them off again when nothing holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = _storages((args, kwargs))  # held, so that no new storage takes the place of one of them
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage not in self.known and all(storage is not other for other in before):
                self._follow(storage)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_iter(values) if isinstance(value, torch.Tensor)]
