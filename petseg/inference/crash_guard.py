"""Work that may kill its process: noticed when it is tried again, and then done in a process apart. No Ray, no pixels.

A decoder is C code, and a photo that crashes it, or eats the memory, takes the worker with it. Ray would start that
worker again for ever.
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
def attempt(name: str) -> Iterator[bool]:
    """Whether a process of this machine has died within an earlier attempt of that name, of whatever cause.

    A file in the folder for temporary ones, which `name` becomes a part of, is there as long as the attempt goes on.
    """
    marker = Path(tempfile.gettempdir()) / f"petseg-{os.getuid()}-{name}"
    died_before = False
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL, 0o600))  # follows no link that somebody has laid there
    except FileExistsError:
        died_before = True
    except OSError:
        pass  # a full disk, say: then it is not known, and the photo is most likely good
    try:
        yield died_before
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()


def each(work: Callable[[Argument], Result], arguments: Iterable[Argument], if_died: Result) -> Iterator[Result]:
    """`work` of each argument, in another process, and `if_died` where that one has died of it `_TRIES` times: once may
    be anything's doing.

    All must be picklable. What `work` raises is raised here.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    try:
        for argument in arguments:
            result = if_died
            for _ in range(_TRIES):
                try:
                    result = pool.submit(work, argument).result()
                    break
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = ProcessPoolExecutor(1, get_context("spawn"))
            yield result
    finally:
        pool.shutdown()
