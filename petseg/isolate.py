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


@contextlib.contextmanager
def attempt(name: str) -> Iterator[bool]:
    """Whether a process of this machine has died within an earlier attempt of that name, of whatever cause.

    A file in the folder for temporary ones, which `name` becomes a part of, is there as long as the attempt goes on.
    """
    marker = Path(tempfile.gettempdir()) / f"petseg-{os.getuid()}-{name}"
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL, 0o600))  # follows no link that somebody has laid there
        died_before = False
    except FileExistsError:
        died_before = True
    try:
        yield died_before
    finally:
        marker.unlink(missing_ok=True)


def each(work: Callable[[Argument], Result], arguments: Iterable[Argument], if_died: Result) -> Iterator[Result]:
    """`work` of each argument, in another process, and `if_died` where that one has died of it.

    All must be picklable. What `work` raises is raised here.
    """
    pool = None
    try:
        for argument in arguments:
            pool = pool or ProcessPoolExecutor(1, get_context("spawn"))
            try:
                yield pool.submit(work, argument).result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = None
                yield if_died
    finally:
        if pool is not None:
            pool.shutdown()
