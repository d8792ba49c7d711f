"""What models make once and use in every later call, and how they behave where tensors have shapes and no values.

A training step or a sampling can be followed on tensors that hold nothing, to learn what it will need. What is made meanwhile holds
nothing either, so it must not outlive it; and whoever would look at a value is told that there is none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_apart: ContextVar[dict[Any, Any] | None] = ContextVar("made for tensors without values", default=None)


@contextmanager
def without_values() -> Iterator[None]:
    """Inside, tensors have no values, and what is kept is kept to the end of the block alone."""
    token = _apart.set({})
    try:
        yield
    finally:
        _apart.reset(token)


def have_values() -> bool:
    """Whether tensors can be looked at: `.item()` and the like. A compiled graph runs on tensors that can."""
    return torch.compiler.is_dynamo_compiling() or _apart.get() is None


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps what `make` made of its last 64 kinds of arguments."""
    for_good = lru_cache(maxsize=64)(make)

    @wraps(make)
    def found(*args: P.args, **kwargs: P.kwargs) -> T:
        apart = _apart.get()
        if apart is None:
            return for_good(*args, **kwargs)
        key = (make, args, tuple(kwargs.items()))
        if key not in apart:
            apart[key] = make(*args, **kwargs)
        return apart[key]

    return found
