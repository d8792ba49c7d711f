"""Imports what prepare needs once, then forks for each job that a line of JSON on stdin describes; answers with how it ended.

A script. The processes of a pool are forked too: to start one anew takes half a second, and a kill test needs hundreds.

Job:
    source, out: paths. options: of PrepareOptions. workers: number.
    share: "I/N". kill: SIGKILL at the kill-th change of the disk. pause: a path; wait at the first picture until it exists.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from hdit_cli import files
from hdit_cli.data.prepare import Pending, PrepareOptions, Share, prepare, prepare_share
from hdit_cli.errors import HditError

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_context = multiprocessing.get_context


class Events:
    """Counts the announcements of `files`, and strikes at the wanted one."""

    def __init__(self, kill):
        self.kill, self.count = kill, 0

    def __call__(self, operation, path):
        self.count += 1
        if self.count == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)


def done(job):
    """Prepares in this process; what it came to, for the log."""
    seen = files.observer = Events(job.get("kill", 0))

    def progress(_):
        while "pause" in job and not Path(job["pause"]).exists():
            time.sleep(0.01)

    job["options"]["size"] = tuple(job["options"]["size"])
    how = {"out": Path(job["out"]), "options": PrepareOptions(**job["options"]), "workers": job["workers"]}
    how["progress"] = progress
    try:
        if "share" in job:
            made = prepare_share(Path(job["source"]), share=Share.parse(job["share"]), **how)
        else:
            made = prepare(Path(job["source"]), **how)
    except HditError as error:
        return {"error": f"{type(error).__name__}: {error.message}", "code": error.exit_code}
    told = {"missing": made.missing, "others": made.others} if isinstance(made, Pending) else {"kept": made.kept}
    return {"code": 0, "events": seen.count, **told}


def end_of_workers(group):
    """Waits for the workers of a job that was killed: being forked, they hold its locks as long as they live."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def main():
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process
    os.fsync = lambda descriptor: None  # what is killed here are processes, not the machine
    multiprocessing.get_context = lambda method=None: _context("fork" if method in ("spawn", "forkserver") else method)
    running = {}
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            child = running.pop(job["wait"])
            _, status = os.waitpid(child, 0)
            end_of_workers(child)
            code = os.waitstatus_to_exitcode(status)
            log = Path(job["wait"])
            print(json.dumps({"code": code} if code else json.loads(log.read_text())), flush=True)
            continue
        child = os.fork()
        if child:
            running[job["log"]] = child
            continue
        os.setpgid(0, 0)
        try:
            Path(job["log"]).write_text(json.dumps(done(job)))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(99)


if __name__ == "__main__":
    main()
