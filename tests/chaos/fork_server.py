"""Imports torch and trains once, then forks for each job that a line of JSON on stdin describes; answers with how it ended.

Run as a script, with a recipe and data to warm up with: the first steps of a process cost seconds, the next ones none. A job
trains for real, in a process of its own that may be killed at any event of its disk writes.

Job:
    run, data, log: paths; the child appends to `log` what it came to: "start 4", "step 5", "saved 4", "code 74", ...
    recipe: dict. plants: names from plants.py. umask: octal number.
    kill: SIGKILL at the kill-th event. fail: [event, errno]. signals: [[event, number], ...]
    pause: a path; after the first step the child waits until it exists.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path


class Events:
    """Counts the announcements of `files`, from all threads, and strikes at the wanted ones."""

    def __init__(self, job):
        self.job, self.count, self.guard = job, 0, threading.Lock()

    def __call__(self, operation, path):
        with self.guard:
            self.count += 1
            count = self.count
        if count == self.job.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        for at, number in self.job.get("signals", ()):
            if count == at:
                os.kill(os.getpid(), number)
        at, code = self.job.get("fail", (0, 0))
        if count == at:
            raise OSError(code, os.strerror(code), path)


def train_job(job):
    """Trains in this process; returns the exit code that the command would have."""
    import torch
    from plants import planted

    from hdit_cli import files
    from hdit_cli.engine.run import events
    from hdit_cli.engine.training.loop import train
    from hdit_cli.errors import HditError
    from hdit_cli.recipe import Recipe

    torch.set_num_threads(1)
    os.umask(job.get("umask", 0o022))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*words):
        os.write(log, (" ".join(map(str, words)) + "\n").encode())

    def watch(event):
        match event:
            case events.Started(step=step):
                note("start", step)
            case events.Stepped(step=step):
                note("step", step)
                while "pause" in job and not Path(job["pause"]).exists():
                    time.sleep(0.01)
            case events.Saved(step=step):
                note("saved", step)
            case events.Warned(text=text):
                note("warned", text)

    note("pid", os.getpid())
    files.observer = seen = Events(job)
    code = 0
    try:
        with planted(*job.get("plants", ())):
            finished = train(Path(job["run"]), Recipe.from_dict(job["recipe"]), data=Path(job["data"]), watch=watch)
        code = 75 if finished.stopped_by.startswith("SIG") else 0
    except HditError as error:
        note("error", type(error).__name__, error.message.replace("\n", " "))
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        note("unexpected", traceback.format_exc().replace("\n", " | "))
        code = 1
    note("events", seen.count)
    note("code", code)
    return code


def main():
    import torch

    from hdit_cli.engine.training.loop import train
    from hdit_cli.recipe import Recipe

    torch.set_num_threads(1)
    warm = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), Recipe.from_dict(warm["recipe"]), data=Path(warm["data"]), watch=lambda event: None)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    code = train_job(json.loads(line))
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
