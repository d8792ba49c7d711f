"""A source tree that runs commands in a working folder of its own, and keeps what each has printed."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from equality.cases import Case, Command

DRIVER = Path(__file__).with_name("driver.py")
FALLBACK = ("euler", "euler-ancestral", "heun", "dpm-2", "lms", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m-sde")


class Failed(Exception):
    """A command that must work did not."""


@dataclass
class Tree:
    """`source` holds `hdit_cli/`; `work` is where its commands run; `cpu` is what the last driven one took, in seconds."""

    source: Path
    work: Path
    process: subprocess.Popen | None = field(default=None, repr=False)
    cpu: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(self.source), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, command: Command, printed: Path) -> int:
        """Runs a command; what it prints goes to `printed`.out and `printed`.err. Gives the exit code."""
        printed.parent.mkdir(parents=True, exist_ok=True)
        out, err = printed.with_name(f"{printed.name}.out"), printed.with_name(f"{printed.name}.err")
        if command.alone:
            with open(out, "wb") as stdout, open(err, "wb") as stderr:
                words = [sys.executable, "-m", "hdit_cli", *command.arguments]
                code = subprocess.run(
                    words, cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
                ).returncode
        else:
            code = self._driven(command, out, err)
        if code and not (command.may_refuse and code == 2):
            raise Failed(f"`{command.label}` ended with {code}: {_end(err)}\n    {' '.join(command.arguments)}")
        return code

    def _driven(self, command: Command, out: Path, err: Path) -> int:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(DRIVER)],
                cwd=self.work,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            if self._line() != b"ready\n":
                raise Failed(f"{DRIVER.name} did not start")
        request = {"arguments": command.arguments, "stdout": str(out.resolve()), "stderr": str(err.resolve())}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        self.cpu = answer["cpu"]
        return int(answer["code"])

    def _line(self) -> bytes:
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def samplers(self) -> list[str]:
        """Names in its catalog."""
        code = "import hdit_cli.catalog as c; print(*c.names('sampler'))"
        found = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, cwd=self.work, capture_output=True, text=True
        )
        return found.stdout.split() or list(FALLBACK)

    def check(self) -> None:
        """Raises Failed where the commands would be those of another tree."""
        code = "import hdit_cli; print(hdit_cli.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, cwd=self.work, capture_output=True, text=True
        )
        if Path(found.stdout.strip()).parent.resolve() != (self.source / "hdit_cli").resolve():
            raise Failed(f"{self.source} was to be run, and {found.stdout.strip() or found.stderr[-300:]} would be")


def _end(path: Path) -> str:
    return " / ".join(path.read_text(errors="replace").strip().splitlines()[-4:])[-600:]


def key(source: Path) -> str:
    """What a tree's results are kept under: its sources, Python, torch."""
    if not (source / "hdit_cli").is_dir():
        raise Failed(f"{source} holds no hdit_cli/")
    digest = hashlib.sha256(f"{sys.version} {metadata.version('torch')} {metadata.version('numpy')}".encode())
    for path in sorted((source / "hdit_cli").rglob("*.py")):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def plan_of(case: Case, *more: str) -> str:
    """Changes where anything about a case does."""
    return hashlib.sha256("\0".join((repr(case), *more)).encode()).hexdigest()[:12]


def linked(source: Path, target: Path) -> None:
    """Copies a file or a folder; contents are shared where the disk can, so `target` is for reading alone."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copyfile(a, b)

    removed(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(str(source), str(target))


def removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
