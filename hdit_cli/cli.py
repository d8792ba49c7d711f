"""The command `hdit`: names the commands, and turns every error into one sentence and an exit code."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from hdit_cli import __version__
from hdit_cli.commands import (
    bench,
    convert,
    doctor,
    ema,
    encode,
    eval_fid,
    export,
    info,
    prepare,
    recipe,
    report,
    sample,
    train,
    verify,
)
from hdit_cli.commands.layout import Command
from hdit_cli.commands.say import say
from hdit_cli.errors import HditError, Interrupted, OutOfMemory, StorageError, UsageError, is_out_of_memory

COMMANDS = {
    "prepare": (prepare.prepare, "Turn pictures into a checked, resized, sharded data set."),
    "encode": (encode.encode, "Store what a codec makes of each picture beside it."),
    "train": (train.train, "Train a recipe; the same command goes on after a stop."),
    "sample": (sample.sample, "Make images with a checkpoint."),
    "eval-fid": (eval_fid.eval_fid, "Score a checkpoint or a folder of pictures."),
    "export": (export.export, "Write a file that other software loads."),
    "convert": (convert.convert, "Turn another project's checkpoint into one of ours."),
    "ema": (ema.ema, "Make averages of any width from a run's snapshots."),
    "verify": (verify.verify, "Check that checkpoints or shards are what was written."),
    "report": (report.report, "Make one HTML page about runs: curves, grids, scores."),
    "bench": (bench.bench, "Measure how fast a recipe is here, and where the time goes."),
    "info": (info.info, "Say what a recipe, data set, run or checkpoint is."),
    "doctor": (doctor.doctor, "Say what this machine has, and what is missing."),
    "recipe": (recipe.recipe, "Print a shipped recipe, to be edited."),
}

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG}
_NAME_ERRORS = {errno.ENAMETOOLONG, errno.ELOOP}
_SHOWN = 80  # characters of a name that is too long
_CLICK_INTERRUPTED = 130  # what typer exits with after Ctrl-C

_GO_ON = ("prepare", "encode", "train", "eval-fid")  # commands that find what they had done

# what helps against a full memory, by command: three switches with values that usually do
_SMALLER = {
    "train": "--set train.accumulate=4 (the same batch in four pieces), --set train.precision=bf16, "
    "or --set train.batch_size=8",
    "sample": "--batch-size 1, a smaller --size, or --cfg 1 (guidance doubles the batch)",
    "eval-fid": "--batch-size 1, --metrics swd (no Inception net), or --cfg 1 (guidance doubles the batch)",
    "prepare": "--workers 1, a smaller --max-pixels, or a smaller --size",
    "encode": "--batch-size 1, --processes 1, or OMP_NUM_THREADS=1 (fewer batches at once on a CPU)",
    "export": "--dtype bf16, --to safetensors, or closing other programs",
}
_SMALLER_ELSEWHERE = "closing other programs, a smaller model, or a machine with more memory"

app = typer.Typer(
    name="hdit",
    help="Whole image-diffusion experiments from one command line: prepare, train, sample, measure, export.",
    epilog="Start with `hdit prepare PICTURES`, then `hdit train RECIPE --data DIR`; `hdit recipe` lists the recipes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"hdit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
) -> None:
    """Options before the command. `main` takes `--debug` out before; here it is named for the help."""


for _name, (_function, _summary) in COMMANDS.items():
    app.command(_name, cls=Command, short_help=_summary)(_function)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code.

    Args:
        arguments: as typed after `hdit`; None takes those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, given = _without_debug(given)
    if threading.current_thread() is threading.main_thread():
        _interrupt_on("SIGTERM")  # a scheduler's notice is Ctrl-C; `train` does more
        _interrupt_on("SIGHUP")  # and so is a closed terminal
    code = _run(given, debug=debug)
    sys.exit(_flushed(code))


def _interrupt_on(name: str) -> None:
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` wants it
        signal.signal(number, signal.default_int_handler)


def _flushed(code: int) -> int:
    """The exit code, after what is still on its way to stdout."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keeps Python from complaining at exit
        if code or isinstance(error, BrokenPipeError):  # told already; or the reader is gone (`| head`)
            return code or StorageError.exit_code
        return _tell(StorageError(f"cannot write to stdout: {error.strerror}", hint="nothing else was lost"))


def _without_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """`--debug` may stand anywhere before a `--`: people add it to the end of the line that failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return len(kept) < end, kept + arguments[end:]


def _run(arguments: list[str], *, debug: bool) -> int:
    """Exit code of one command; errors are told on stderr."""
    try:
        code = app(args=arguments, prog_name="hdit", standalone_mode=False)
        if code == _CLICK_INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return StorageError.exit_code
        return stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:
        return StorageError.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if hasattr(error, "format_message"):  # of typer: an option or argument that it cannot take
            return _tell_usage(error)
        if debug:
            say(*"".join(traceback.format_exception(error)).splitlines(), err=True)
        return _tell(_as_told(error, arguments))


def _as_told(error: BaseException, arguments: list[str]) -> HditError:
    """The error for the user that an exception stands for."""
    if isinstance(error, HditError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(arguments)
    if is_out_of_memory(error):
        command = next((argument for argument in arguments if argument in COMMANDS), "")
        return OutOfMemory("out of memory", hint=f"what helps: {_SMALLER.get(command, _SMALLER_ELSEWHERE)}")
    if "RANK" in os.environ and _is_lost_connection(error):
        return HditError("another process of this run ended", hint="its own message says why")
    if isinstance(error, OSError) and error.errno in _NAME_ERRORS:
        told = f"no file can be there: {os.strerror(error.errno or 0).lower()} ({str(error.filename)[:_SHOWN]}…)"
        return UsageError(told, hint="check the path that you gave")
    if isinstance(error, OSError) and (error.errno in _DISK_ERRORS or (error.errno and error.filename)):
        where = f" ({error.filename})" if error.filename else ""
        return StorageError(f"{os.strerror(error.errno or 0)}{where}", hint="check the disk, the path, its permissions")
    sentence = " ".join(str(error).split())[:300]
    told = f"unexpected {type(error).__name__}{': ' if sentence else ''}{sentence}"
    return HditError(told, hint="this is a bug; run again with --debug for the traceback")


def _interrupted(arguments: list[str]) -> Interrupted:
    """What Ctrl-C means where a command says nothing of its own."""
    goes_on = any(argument in _GO_ON for argument in arguments[:1])
    return Interrupted("interrupted", hint=f"the same command {'goes on' if goes_on else 'starts again'}")


def _is_lost_connection(error: BaseException) -> bool:
    """What torch raises in a process whose partner is gone; without importing torch."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"DistError", "DistBackendError"}) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def _tell_usage(error: Any) -> int:
    """What typer says of a command line; it may repeat the name of a file that a shell's `*` put there."""
    text = io.StringIO()
    error.show(text)
    with contextlib.suppress(OSError, ValueError):
        say(*text.getvalue().removesuffix("\n").split("\n"), err=True)
    return error.exit_code


def _tell(error: HditError) -> int:
    """Says on stderr what happened. What the user broke off is no error."""
    message, *more = re.split(r"\n(?= )", error.message)  # lists are indented; other line breaks are of a name in it
    kind = "interrupted" if isinstance(error, Interrupted) else "error"
    said = message if message.startswith(kind) else f"{kind}: {message}"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed, or None
        say(said, *more, *([f"  hint: {error.hint}"] if error.hint else []), err=True)
    return error.exit_code
