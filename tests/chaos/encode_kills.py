"""Kills encodings by SIGKILL at changes of the disk, forked from a process that has imported all; prints what came of each.

A script: DATA CODEC FOLDER KILLS. The first encoding is not disturbed, and counts the changes; each of KILLS others, spread over
them, is killed once on its way and once more half-way through what then remains, and let finish. Each is compared with the first.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from hdit_cli import files
from hdit_cli.engine.encoding.encode import Asked, encode


class Events:
    """Counts the announcements of `files`, and strikes at the wanted one."""

    def __init__(self, kill):
        self.kill, self.count = kill, 0

    def __call__(self, operation, path):
        self.count += 1
        if self.count == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)


def ended(asked, *, kill=0):
    """How an encoding in a process of its own ended, and the changes that it made."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        files.observer = Events(kill)
        try:
            encode(asked)
            os.write(write, str(files.observer.count).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        count = int(told.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(data, codec, folder, kills):
    torch.set_num_threads(1)
    data, codec, folder = Path(data), Path(codec), Path(folder)
    code, events = ended(Asked(data, codec, folder / "whole"))
    assert code == 0 and events
    whole, struck = digests(folder / "whole"), 0
    for number in range(int(kills)):
        asked = Asked(data, codec, folder / f"cut{number}")
        first = 1 + number * (events - 1) // max(1, int(kills) - 1)
        codes = [ended(asked, kill=kill)[0] for kill in (first, 1 + (events - first) // 2)]
        struck += codes.count(-signal.SIGKILL)
        code, _ = ended(asked)
        found = digests(asked.out) if asked.out.is_dir() else {}
        wrong = [name for name in sorted({*whole, *found}) if whole.get(name) != found.get(name)]
        if code or wrong:
            print(json.dumps({"kill": first, "codes": [*codes, code], "wrong": wrong}))
    print(json.dumps({"events": events, "struck": struck}))


if __name__ == "__main__":
    main(*sys.argv[1:])
