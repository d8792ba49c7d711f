"""A file that kills whoever opens it; in a module of its own, for the processes that unpickle it to import little."""

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class DeadlyPlace:
    """Stands for a decoder's crash, or for the kernel's memory killer."""

    size: int = 0

    @property
    def kind(self):
        os.kill(os.getpid(), signal.SIGKILL)
