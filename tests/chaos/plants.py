"""Faults and mutants: each replaces one named function while the context is open."""

import contextlib
from unittest import mock


@contextlib.contextmanager
def planted(*names):
    with contextlib.ExitStack() as stack:
        for name in names:
            for target, replacement in PLANTS[name]().items():
                stack.enter_context(mock.patch(target, replacement))
        yield


PLANTS = {}
