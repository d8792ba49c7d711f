"""The shell: help without torch, one sentence and the right exit code for every error, quiet where nobody listens."""

import errno
import os
import re
import subprocess
import sys

import pytest
import typer

from hdit_cli import __version__, cli, errors


def run(capsys, *arguments):
    """Exit code, stdout and stderr of `hdit ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def run_apart(*arguments, **options):
    command = [sys.executable, "-m", "hdit_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["recipe"], ["--version"]])
def test_starts_without_torch(arguments):
    program = (
        "import sys\nfrom hdit_cli.cli import main\n"
        f"try:\n    main({arguments})\n"
        "finally:\n    print('LOADED', sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == "LOADED []\n"


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert re.findall(r"^  ([a-z-]+)  ", out.partition("Commands:")[2], re.MULTILINE) == list(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and f"Usage: hdit {command}" in out


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"hdit {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["doctor", "--jsno"], "--json"),
        (["recipe", "a", "b"], "unexpected extra argument"),
        (["info"], "Missing argument"),
        (["recipe", "flowers255"], "did you mean 'flowers256'?"),
        (["info", "no-such-thing"], "no recipe 'no-such-thing'"),
        (["train", "no-such-recipe"], "no recipe 'no-such-recipe'"),
    ],
)
def test_usage_errors(arguments, words, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and words in err and not out and "Traceback" not in err


# Errors to exit codes, by a command that raises what a test gives it


@pytest.fixture
def raising(monkeypatch):
    def install(error):
        planted = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
        planted.callback()(lambda: None)

        @planted.command("train")
        def fail() -> None:
            raise error

        monkeypatch.setattr(cli, "app", planted)

    return install


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


RAISED = [
    (errors.UsageError("m", hint="h"), 2, "error: m\n  hint: h\n"),
    (errors.DataError("m"), 3, "error: m\n"),
    (errors.CheckpointError("m"), 4, "error: m\n"),
    (errors.NonFiniteError("m"), 5, "error: m\n"),
    (errors.OutOfMemory("m"), 6, "error: m\n"),
    (errors.StorageError("m"), 74, "error: m\n"),
    (errors.Interrupted("m", hint="h"), 75, "interrupted: m\n  hint: h\n"),
    (MemoryError(), 6, "train.accumulate=4"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 6, "train.batch_size=8"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 6, "train.precision=bf16"),
    (RuntimeError("MPS backend out of memory"), 6, "out of memory"),
    (KeyboardInterrupt(), 75, "interrupted\n  hint: the same command"),
    (OSError(errno.ENOSPC, "No space left on device", "x.tar"), 74, "No space left on device (x.tar)"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 74, "Permission denied (x)"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 74, ""),
    (
        ValueError("two\n  lines"),
        1,
        "error: unexpected ValueError: two lines\n  hint: this is a bug; run again with --debug",
    ),
    (FileNotFoundError(errno.ENOENT, "no", "x"), 74, "No such file or directory (x)"),
    (OSError("of nobody knows what"), 1, "unexpected OSError"),
    (AssertionError(), 1, "error: unexpected AssertionError\n"),
]


@pytest.mark.parametrize(
    ("error", "code", "words"), RAISED, ids=[f"{n}-{type(e[0]).__name__}" for n, e in enumerate(RAISED)]
)
def test_exit_codes(error, code, words, raising, capsys):
    raising(error)
    found, out, err = run(capsys, "train")
    assert found == code and words in err and not out and "Traceback" not in err
    assert words or not err
    assert code != 75 or "error" not in err


@pytest.mark.parametrize(
    ("command", "hint"), [("train", "goes on"), ("sample", "starts again"), ("export", "starts again")]
)
def test_what_ctrl_c_means_to_a_command(command, hint, capsys, monkeypatch):
    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    assert run(capsys, command) == (75, "", f"interrupted\n  hint: the same command {hint}\n")


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_the_traceback_and_keeps_the_code(arguments, raising, capsys):
    raising(errors.DataError("m", hint="h"))
    code, _, err = run(capsys, *arguments)
    assert code == 3 and "Traceback" in err and err.endswith("error: m\n  hint: h\n")


def test_debug_after_a_double_dash_is_a_name(capsys):
    code, _, err = run(capsys, "recipe", "--", "--debug")
    assert code == 2 and "no recipe '--debug'" in err


def test_switches_that_help_exist(capsys):
    for command, text in cli._SMALLER.items():
        out = run(capsys, command, "--help")[1]
        assert all(switch in out for switch in re.findall(r"--[a-z-]+", text))


def test_closed_stdout_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        command = [sys.executable, "-m", "hdit_cli", "recipe", "flowers256"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (74, "")


def test_hostile_environment():
    bare = {"PATH": os.environ["PATH"], "LC_ALL": "C", "COLUMNS": "20"}
    done = run_apart("--help", env=bare, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and not done.stderr
    done = run_apart("recipe", "blumen-\u00fc", env=bare, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and done.stderr.startswith("error: no recipe")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("train flow", ["flowers256", "flowers64-cpu"]), ("recipe smoke/t", ["smoke/tiny"]), ("train mi", ["mine.toml"])],
)
def test_the_shell_completes_recipes(typed, offered, tmp_path):
    (tmp_path / "mine.toml").write_text("")
    words = {"_HDIT_COMPLETE": "complete_bash", "COMP_WORDS": f"hdit {typed}", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from hdit_cli.cli import app; app(prog_name='hdit')"],
        capture_output=True,
        text=True,
        env={**os.environ, **words},
        cwd=tmp_path,
    )
    assert set(offered) <= set(done.stdout.split()), done.stderr
