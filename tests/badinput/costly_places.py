"""Files that cost the process that opens them; in a module of its own, for the processes that unpickle it to import little."""

import os
import signal
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class CostlyPlace:
    """Stands for what a decoder may do.

    Args:
        how: stuck (in C code, for ever), asleep (waits for a file that never comes), hungry, or the name of a signal.
    """

    how: str
    size: int = 0

    @property
    def kind(self):
        if self.how == "stuck":
            sum(range(1 << 60))  # never returns to the interpreter: no handler of a signal would run
        elif self.how == "asleep":
            os.read(os.pipe()[0], 1)
        elif self.how == "hungry":
            bytearray(1 << 33)
        elif self.how == "late":
            time.sleep(0.01)
        else:
            os.kill(os.getpid(), getattr(signal, self.how))
            time.sleep(1)
        return "file"
