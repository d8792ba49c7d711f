"""A function run by several processes at once, which exchange over gloo; forked, so that none has to import torch."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

from accelerate.state import AcceleratorState, PartialState

from hdit_cli.engine.launch import _free_port


def together(function: Callable[[], Any], *, processes: int = 2, timeout: float = 300.0) -> list[Any]:
    """What each process returns, in the order of ranks; what one raises is shown and fails the test."""
    context = multiprocessing.get_context("fork")
    port = _free_port()
    pairs = [context.Pipe(duplex=False) for _ in range(processes)]
    children = [
        context.Process(target=_one, args=(function, rank, processes, port, pairs[rank][1]))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    try:
        found = [pipe.recv() if pipe.poll(timeout) else ("", "no answer in time") for pipe, _ in pairs]
    finally:
        for child in children:
            child.kill()
            child.join()
    told = [text for _, text in found if text]
    assert not told, told[0]
    return [value for value, _ in found]


def _one(function: Callable[[], Any], rank: int, processes: int, port: int, pipe: Any) -> None:
    AcceleratorState._reset_state()  # of the tests before
    PartialState._reset_state()
    here = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in here.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop("HDIT_PROCESSES", None)
    try:
        pipe.send((function(), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    os._exit(0)
