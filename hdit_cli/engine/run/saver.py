"""Saving while training goes on: one thread writes a copy; what it wrote, or why it could not, is told at the next step."""

import threading
from collections.abc import Callable
from types import TracebackType

from hdit_cli.engine.run.events import Event

Proceed = Callable[[], None]


class _GivenUp(Exception):
    """Ends a save that nobody waits for any more."""


class Saver:
    """At most one save at a time. Use it as a context: leaving it waits for the save under way, except after Ctrl-C.

    An error of the thread is raised by the next call of `finished` or `wait`, or on leaving; it is never lost.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        # waited for instead of the thread: a join that Ctrl-C interrupts takes a thread for ended that is not
        self._ended = threading.Event()
        self._saved: Event | None = None
        self._error: BaseException | None = None
        self._give_up = threading.Event()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._give_up.set()  # ends before its next file, and leaves no trace
        self.wait()

    def start(self, write: Callable[[Proceed], Event]) -> None:
        """Runs `write(proceed)` in a thread; `wait` must have been called before.

        Args:
            write: returns when all is on the disk; calls `proceed` wherever it may be ended without harm.
        """
        assert self._thread is None
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, args=(write,), name="save", daemon=True)
        self._thread.start()

    def finished(self) -> list[Event]:
        """The save that has ended since the last call; does not wait.

        Raises:
            StorageError, NonFiniteError: it failed.
        """
        return self.wait() if self._ended.is_set() else []

    def wait(self) -> list[Event]:
        """As `finished`, after the save under way has ended."""
        if self._thread is None:
            return []
        while not self._ended.wait(timeout=1.0):
            if self._thread.ident is None:  # Ctrl-C came before it was started
                break
        else:
            self._thread.join()  # it still has tensors to free, which must not meet the end of the interpreter
        self._thread = None
        saved, error = self._saved, self._error
        self._saved = self._error = None
        if error is not None:
            raise error
        return [] if saved is None else [saved]

    def _run(self, write: Callable[[Proceed], Event]) -> None:
        try:
            self._saved = write(self._proceed)
        except _GivenUp:
            pass
        except BaseException as error:  # told to the training loop, whatever it is
            self._error = error
        finally:
            self._ended.set()

    def _proceed(self) -> None:
        if self._give_up.is_set():
            raise _GivenUp
