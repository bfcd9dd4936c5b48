"""Guard against work that may kill its process: detect the crash on retry and run the work in a subprocess.

A decoder is C code. A photo that crashes it, or that uses up the memory, kills the worker too. Ray would restart that
worker for ever. A photo on which it never ends would stop the job. This module knows nothing of Ray or of pixels.
"""

import contextlib
import faulthandler
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_TRIES = 3
_LATE_EXIT = 1
"""Exit code with which faulthandler ends a process."""


@dataclass(frozen=True)
class TimeLimit(Generic[Result]):
    """Maximum seconds of one attempt, and the result of an argument whose attempts take longer."""

    seconds: float
    if_late: Result


@contextlib.contextmanager
def crash_marker(name: str) -> Iterator[bool]:
    """Mark an attempt as running. Yield True if an earlier attempt of this `name` on this machine has left its marker.

    Its process has died, or is still running.

    The marker is a file in the temporary folder. `name` becomes part of its file name.
    """
    marker = Path(tempfile.gettempdir()) / f"petseg-{os.getuid()}-{name}"
    died_before = False
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL, 0o600))  # does not follow a symlink that another user created
    except FileExistsError:
        died_before = True
    except OSError:
        pass  # for example a full disk: assume no crash, because most photos are good
    try:
        yield died_before
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()


@contextlib.contextmanager
def die_after(seconds: float) -> Iterator[None]:
    """End this process with exit code 1 if the `with` block takes longer. Only one block at a time in a process.

    C code that hangs cannot be interrupted otherwise, and often holds Python's lock, so that no thread of Python runs.
    The thread of faulthandler is one of C. It also writes where the process hung to stderr, which Ray keeps in a log.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_with_retry(
    work: Callable[[Argument], Result], argument: Argument, if_died: Result, limit: TimeLimit[Result] | None = None
) -> Result:
    """Return `work(argument)`; on `MemoryError`, the result of `map_in_subprocess`, where more memory may be free.

    With `limit`, this process ends if the work takes longer: use it within a `crash_marker`, in a process that is
    started again.
    """
    try:
        return _run(work, argument, limit and limit.seconds)
    except MemoryError:
        return next(map_in_subprocess(work, [argument], if_died, limit))


def map_in_subprocess(
    work: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    if_died: Result,
    limit: TimeLimit[Result] | None = None,
) -> Iterator[Result]:
    """Yield `work(argument)` for each argument, run in a subprocess.

    Yields `if_died` for an argument whose subprocess died or ran out of memory `_TRIES` times. A single failure may
    have another cause. Yields `limit.if_late` for an argument whose work takes longer than the limit. That is not
    tried again, because it would take as long: a limit has to leave room for a slow machine.

    `work`, the arguments and the results must be picklable. Other exceptions of `work` are re-raised here.
    """
    process = None
    try:
        for argument in arguments:
            result = if_died
            for _ in range(_TRIES):
                process = process or _Subprocess(work, limit)
                try:
                    result = process.run(argument)
                    break
                except (_DiedError, MemoryError):
                    late = process.close()
                    process = None
                    if limit and late:
                        result = limit.if_late
                        break
            yield result
    finally:
        if process:
            process.close()


class _DiedError(Exception):
    """The subprocess has died."""


class _Subprocess(Generic[Argument, Result]):
    """Process that calls a function for one argument after another. `limit` applies to each call."""

    def __init__(self, work: Callable[[Argument], Result], limit: TimeLimit[Result] | None) -> None:
        context = get_context("spawn")
        self._seconds = limit and limit.seconds
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end, work, self._seconds), daemon=True)
        self._process.start()
        its_end.close()  # so that its death ends the connection
        self._sent_s = 0.0

    def run(self, argument: Argument) -> Result:
        """Return the result, or raise the exception, of the function. Raises `_DiedError` if the process dies."""
        self._sent_s = time.monotonic()
        try:
            self._connection.send(argument)
            result, error = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _DiedError from error
        if error is not None:
            raise error
        return result

    def close(self) -> bool:
        """End the process. Return True if it had ended itself because the last call took longer than the limit."""
        self._connection.close()
        self._process.join()
        took_s = time.monotonic() - self._sent_s
        return self._seconds is not None and took_s > self._seconds and self._process.exitcode == _LATE_EXIT


def _serve(connection: Connection, work: Callable[[Any], Any], seconds: float | None) -> None:
    """Answer each argument with (result, exception), one of which is None, until the connection ends."""
    with contextlib.suppress(EOFError):
        while True:
            argument = connection.recv()
            try:
                connection.send((_run(work, argument, seconds), None))
            except Exception as error:
                error.add_note(f"in a subprocess:\n{traceback.format_exc()}")  # pickling loses the traceback
                connection.send((None, error))


def _run(work: Callable[[Argument], Result], argument: Argument, seconds: float | None) -> Result:
    with contextlib.nullcontext() if seconds is None else die_after(seconds):
        return work(argument)
