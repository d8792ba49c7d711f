"""Runs commands of the tree on PYTHONPATH, each in a child of a process that has imported torch and the like already.

That saves most of the start of each command, and nothing of the tree itself is shared between them. One JSON line on stdin
for each command: arguments, files for stdout and stderr; one line on stdout: exit code and seconds of CPU time.
"""

import contextlib
import importlib
import json
import os
import runpy
import sys

OTHERS = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "numpy",
    "PIL.Image",
    "safetensors.torch",
    "pydantic",
    "typer",
    "einops",
)


def main() -> None:
    sys.path[0] = os.getcwd()  # as `python -m` has it, and not this file's folder
    for name in OTHERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    print("ready", flush=True)
    while line := asked():
        request = json.loads(line)
        child = os.fork()
        if not child:
            return be(request)
        _, status, used = os.wait4(child, 0)
        told = {"code": os.waitstatus_to_exitcode(status), "cpu": round(used.ru_utime + used.ru_stime, 4)}
        print(json.dumps(told), flush=True)
    return None


def asked() -> bytes:
    """One request, or nothing at the end; read without a buffer, which the children would inherit."""
    line = b""
    while not line.endswith(b"\n") and (more := os.read(0, 1 << 16)):
        line += more
    return line


def be(request: dict) -> None:
    """Becomes the command."""
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["hdit_cli", *request["arguments"]]
    runpy.run_module("hdit_cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
