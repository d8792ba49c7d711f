"""What a piece of code would hold of memory on any device, followed on tensors that have shapes and no values.

The code is the real one: a training step, a call of a denoiser. Its tensors are outlines: torch carries out each operation on
its "meta" device, which computes shapes and strides alone, while the code is told the device that is asked about, here or not, and
so takes the way that it would take there. Every storage is followed from its making to its end, as `Peak` follows real ones.

What this does not see: scratch space inside an operation, the rest that an allocator keeps, and what a compiler would save. Which
operations run in lower precision is read from the CPU's list; CUDA's differs in norms and sums.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from hdit_cli.models.kept import without_values

M = TypeVar("M", bound=nn.Module)

_META, _CPU = torch.device("meta"), torch.device("cpu")


@dataclass(frozen=True)
class History:
    """Storages in the order of their making, and what became of them.

    Attributes:
        sizes: bytes of each.
        events: i where the storage i was made, ~i where it went.
        gradients: those that hold gradients of parameters in the end.
    """

    sizes: tuple[int, ...]
    events: tuple[int, ...]
    gradients: frozenset[int]

    def fullest(self, *, accumulating: bool = False) -> tuple[int, int]:
        """(bytes of gradients, bytes of all else) at the moment that holds most.

        Args:
            accumulating: the gradients of an earlier pass are there from the start, and each new one goes when it is added.
        """
        there = sum(self.sizes[number] for number in self.gradients) if accumulating else 0
        live, gradients, found = 0, there, (0, 0)
        for event in self.events:
            number, sign = (event, 1) if event >= 0 else (~event, -1)
            change = sign * self.sizes[number]
            passing = 0
            if number not in self.gradients:
                live += change
            elif accumulating:
                passing = max(change, 0)
            else:
                gradients += change
            if live + passing + gradients > sum(found):
                found = (gradients, live + passing)
        return found

    def without_gradients(self) -> "History":
        """The same where gradients of parameters take no memory."""
        sizes = tuple(0 if number in self.gradients else size for number, size in enumerate(self.sizes))
        return replace(self, sizes=sizes)

    @property
    def peak(self) -> int:
        """Bytes at the moment that holds most."""
        return sum(self.fullest())


def follow(module: M, run: Callable[[M], object], *, device: str) -> History:
    """What `run` makes when it is called with a module whose weights are there before.

    Args:
        module: real or on the meta device; what is followed is an outline of it.
        run: makes its inputs on `device`, calls the module, and where it trains goes backward. Where it does not, under
            `torch.no_grad`: tensors of `torch.inference_mode` cannot be followed, and hold the same.
        device: "cpu", "cuda", "mps"; it need not be there.
    """
    with without_values():
        outlines = _Outlines(torch.device(device) if device == "cpu" else torch.device(device, 0))
        outline = outlines.of(module)
        with _numbers_first(), outlines:
            run(outline)
            grads = [parameter.grad for parameter in outline.parameters() if parameter.grad is not None]
            gradients = {outlines.known[_storage(grad)] for grad in grads}
        return History(tuple(outlines.sizes), tuple(_settled(outlines.events)), frozenset(gradients))


class ByImages:
    """Histories of the same code for any number of images.

    The first two are followed; where they went the same way, each storage has a part for each image and a part for all, and
    the next follow from that. One image may go another way, as its tensors lie in memory more densely than they need to.

    Args:
        followed: the history for so many images.
    """

    def __init__(self, followed: Callable[[int], History]) -> None:
        self.followed = followed
        self.known: dict[int, History] = {}

    def __call__(self, images: int) -> History:
        if images not in self.known:
            self.known[images] = self._between(images) or self.followed(images)
        return self.known[images]

    def _between(self, images: int) -> History | None:
        several = [count for count in self.known if count > 1][:2]
        if images == 1 or len(several) < 2:
            return None
        (n, one), (m, other) = ((count, self.known[count]) for count in several)
        if (one.events, one.gradients) != (other.events, other.gradients):
            return None
        share = Fraction(images - n, m - n)
        sizes = (int(a + (b - a) * share) for a, b in zip(one.sizes, other.sizes, strict=True))
        return replace(one, sizes=tuple(sizes))


@contextmanager
def lower_precision(on: bool) -> Iterator[None]:
    """Autocast to bfloat16 for what is followed, whichever the device."""
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        yield


class _Outline(Tensor):
    """Shape, strides, dtype and the device that code is told; `meta` is the tensor that torch computes with."""

    meta: Tensor
    named: torch.device

    @staticmethod
    def __new__(cls: type[Any], meta: Tensor, named: torch.device) -> "_Outline":
        outline = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=_CPU,
        )
        outline.meta, outline.named = meta, named
        return outline

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.named

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor without values, which is followed no more")


class _Outlines(TorchDispatchMode):
    """Carries out operations on outlines and notes the storages that they make on one device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # or torch would look for the device that code names
        self.named = device
        self.sizes: list[int] = []
        self.events: list[int] = []
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.outer: WeakIdKeyDictionary = WeakIdKeyDictionary()  # real tensors that the code brings along

    def of(self, module: M) -> M:
        """An outline of a module, whose storages count as there before."""
        memo: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            outline: Tensor = _Outline(self._meta(tensor.detach(), []), self.named)
            self.known[_storage(outline)] = -1
            if isinstance(tensor, nn.Parameter):
                with self:
                    outline = nn.Parameter(outline, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = outline
        return copy.deepcopy(module, memo)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: list[_Outline] = []
        inner = [self._meta(value, given) for value in args]
        options = {name: self._meta(value, given) for name, value in (kwargs or {}).items()}
        if "device" in options or _makes(func):
            options["device"] = _META
        out = _computed(func, inner, options)
        if isinstance(out, Tensor):
            return self._outline(out, given)
        return tree_map_only(Tensor, lambda tensor: self._outline(tensor, given), out)

    def _meta(self, value: Any, given: list[_Outline]) -> Any:
        """The tensors behind outlines, which are noted in `given`."""
        if isinstance(value, _Outline):
            given.append(value)
            return value.meta
        if isinstance(value, list | tuple):
            return [self._meta(each, given) for each in value]
        if not isinstance(value, Tensor):
            return value
        if value.device.type == "meta":
            return value
        if value not in self.outer:
            self.outer[value] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
        return self.outer[value]

    def _outline(self, meta: Tensor, given: list[_Outline]) -> Tensor:
        for outline in given:
            if outline.meta is meta:  # changed in place
                return outline
        storage = meta.untyped_storage()
        if storage not in self.known:
            number = len(self.sizes)
            self.known[storage] = number
            self.sizes.append(storage.nbytes())
            self.events.append(number)
            weakref.finalize(storage, self.events.append, ~number)
        return _Outline(meta, self.named)


@contextmanager
def _numbers_first() -> Iterator[None]:
    """`torch.tensor` makes numbers on the CPU and then moves them, which can be followed."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


_fresh: dict[
    Any, tuple[Any, ...]
] = {}  # of an operation that makes one new tensor, by kinds of arguments: shape, strides, dtype
_MOST = 2**14


def _computed(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs) on the meta device; layers repeat, and shapes that were computed once are remembered."""
    if _is_view(func):
        return func(*args, **kwargs)
    key = (func, _kind(args), _kind([*kwargs.values()]), *kwargs)
    if key in _fresh:
        shape, strides, dtype = _fresh[key]
        return torch.empty_strided(shape, strides, dtype=dtype, device=_META)
    before = [each.untyped_storage() for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    out = func(*args, **kwargs)
    if isinstance(out, Tensor) and all(out.untyped_storage() is not storage for storage in before):
        if len(_fresh) >= _MOST:
            _fresh.clear()
        again = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=_META)
        if again.untyped_storage().nbytes() == out.untyped_storage().nbytes():
            _fresh[key] = (out.shape, out.stride(), out.dtype)
    return out


def _kind(value: Any) -> Any:
    """What an operation's shapes can depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_kind, value)) if isinstance(value, list) else (type(value), value)


@cache
def _is_view(func: Any) -> bool:
    """Whether an operation returns what it was given, or a part of it."""
    return any(each.alias_info is not None for each in func._schema.returns)


@cache
def _makes(func: Any) -> bool:
    """Whether an operation makes a tensor out of numbers alone."""
    arguments = func._schema.arguments
    return any(each.name == "device" for each in arguments) and not any(
        "Tensor" in str(each.type) for each in arguments
    )


def _settled(events: Sequence[int]) -> Iterator[int]:
    """The events, with those that went one after the other in the order of their numbers: chance decides who goes first."""
    for _, run in groupby(events, key=lambda event: event < 0):
        yield from sorted(run, key=abs)


def _storage(outline: Tensor) -> torch.UntypedStorage:
    assert isinstance(outline, _Outline)
    return outline.meta.untyped_storage()
