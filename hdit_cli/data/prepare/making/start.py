"""How the processes that decode pictures are started.

On Linux from a server: a clean process with one thread, which imports once what they need, and forks. Nothing of the
parent is copied, neither threads nor locks, and a process is there at once. Elsewhere each is started anew.
"""

import multiprocessing
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

_NEEDED = ["hdit_cli.data.prepare.making.workers", "hdit_cli.data.prepare.pictures.process"]


def context() -> "ForkServerContext | SpawnContext":
    """What starts the processes."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_NEEDED)
    return server


def start_early() -> None:
    """Starts the server where there is one, and does not wait for it: it imports while the caller lists the source."""
    if context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()
