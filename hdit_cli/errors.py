"""Errors a user can cause: one sentence, one hint, one exit code. Anything else that escapes is our bug."""


class HditError(Exception):
    """Base of all errors meant for the user.

    Args:
        message: what is wrong, one sentence.
        hint: what to type or change instead.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(HditError):
    """Usage, recipe, unknown class, changed recipe, locked run, existing output."""

    exit_code = 2


class DataError(HditError):
    """Missing, empty, corrupt or too little data; missing Inception weights."""

    exit_code = 3


class CheckpointError(HditError):
    """Not a checkpoint, damaged, or of another kind."""

    exit_code = 4


class NonFiniteError(HditError):
    """NaN or infinity where a number was needed."""

    exit_code = 5


class OutOfMemory(HditError):
    """The device ran out of memory."""

    exit_code = 6


class StorageError(HditError):
    """Disk full, no permission, I/O failure."""

    exit_code = 74


class Interrupted(HditError):
    """Stopped by a signal after saving; the same command goes on."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, torch's for CUDA, and the plain RuntimeErrors of torch for CPU and MPS; without importing torch."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    text = str(error)
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in text for word in words)
