"""Guard against work that may kill its process: detect the crash on retry and run the work in a subprocess.

A decoder is C code. A photo that crashes it, or that uses up the memory, kills the worker too. Ray would restart that
worker for ever. This module knows nothing of Ray or of pixels.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_TRIES = 3


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


def run_with_retry(work: Callable[[Argument], Result], argument: Argument, if_died: Result) -> Result:
    """Return `work(argument)`; on `MemoryError`, the result of `map_in_subprocess`, where more memory may be free."""
    try:
        return work(argument)
    except MemoryError:
        return next(map_in_subprocess(work, [argument], if_died))


def map_in_subprocess(
    work: Callable[[Argument], Result], arguments: Iterable[Argument], if_died: Result
) -> Iterator[Result]:
    """Yield `work(argument)` for each argument, run in a subprocess.

    Yields `if_died` for an argument whose subprocess died or ran out of memory `_TRIES` times. A single failure may
    have another cause.

    `work`, the arguments and the results must be picklable. Other exceptions of `work` are re-raised here.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    try:
        for argument in arguments:
            result = if_died
            for _ in range(_TRIES):
                try:
                    result = pool.submit(work, argument).result()
                    break
                except (BrokenProcessPool, MemoryError):
                    pool.shutdown()
                    pool = ProcessPoolExecutor(1, get_context("spawn"))
            yield result
    finally:
        pool.shutdown()
