"""End a job if a machine's memory is full. Ray itself would start the same work again for ever.

Knows nothing of the jobs.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray.exceptions

from petseg.cluster import ray_compat
from petseg.cluster.ray_compat import MemoryKill
from petseg.errors import JobError

MAX_KILLS = 3
"""Kills of one task, or of one actor without progress in between, that end the job."""

_LOOK_EVERY_S = 5.0
"""Seconds between two queries for killed actors."""

_NOTE_EVERY_S = 60.0
"""Minimum seconds between two notes about full memory."""


@contextlib.contextmanager
def translate_out_of_memory(remedy: str) -> Iterator[None]:
    """Raise `JobError`, which ends with `remedy`, if Ray ended a task `MAX_KILLS` times. `connect` sets that limit."""
    try:
        yield
    except ray.exceptions.OutOfMemoryError as error:
        raise _give_up(ray_compat.parse_memory_kill(str(error)), remedy) from error


@contextlib.contextmanager
def stop_if_out_of_memory(remedy: str) -> Iterator[Callable[[], None]]:
    """Do as `translate_out_of_memory`, also for actors that Ray has ended `MAX_KILLS` times. For the main thread only.

    Ray restarts an actor for ever. So a thread counts the kills, and interrupts the main thread as Ctrl-C would, by a
    signal of its own, because a shell may have SIGINT ignored. Yields a function that the `with` block calls after each
    piece of finished work: the counts then start again.
    """
    watch = _ActorWatch()
    before = signal.signal(signal.SIGUSR1, watch.on_signal)
    try:
        with translate_out_of_memory(remedy):
            watch.start()
            yield watch.note_progress
    except BaseException:  # the interruption, or what Ray's code has made of it
        if watch.kill is None:
            raise
        raise _give_up(watch.kill, remedy) from None
    finally:
        watch.stop()
        signal.signal(signal.SIGUSR1, before)


def usage(kill: MemoryKill | None) -> str:
    """Return what the process used and what its machine has, as part of a message. None if Ray's text was not clear."""
    if kill is None:
        return "sizes unknown"
    return (
        f"the process used {kill.process_gib:.1f} GiB, and all of {kill.ip} {kill.used_gib:.1f} of "
        f"{kill.limit_gib:.1f} GiB"
    )


def note_printer() -> Callable[[str], None]:
    """Return a function that prints a note for a log line about full memory, at most once a minute.

    All other lines are dropped, since other failures either pass or reach the driver as exceptions.
    """
    last_note_s = -float("inf")

    def show(line: str) -> None:
        nonlocal last_note_s
        kill = ray_compat.parse_memory_kill(line)
        if kill is None or time.monotonic() - last_note_s <= _NOTE_EVERY_S:
            return
        last_note_s = time.monotonic()
        print(
            f"note: out of memory: Ray ended a process and tries again ({usage(kill)}); after {MAX_KILLS} times for "
            "one task the job stops",
            file=sys.stderr,
            flush=True,
        )

    return show


def _give_up(kill: MemoryKill | None, remedy: str) -> JobError:
    return JobError(f"out of memory: Ray ended one task {MAX_KILLS} times (the last time, {usage(kill)}); {remedy}")


class _ActorWatch:
    """Thread that sends the main thread a signal once an actor has been ended `MAX_KILLS` times without progress."""

    def __init__(self) -> None:
        self.kill: MemoryKill | None = None
        """Last kill of the actor that was ended too often."""
        self._before: dict[str, int] = {}
        self._progress, self._stopped = threading.Event(), threading.Event()
        self._progress.set()  # kills of actors of earlier work do not count
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def note_progress(self) -> None:
        """Start the counts again."""
        self._progress.set()

    def on_signal(self, *_: object) -> None:
        """Handle the signal in the main thread, unless it came too late."""
        if not self._stopped.is_set():
            raise KeyboardInterrupt  # the only exception with which Ray's C++ code stops waiting

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_S):
            self.kill = self._look()
            if self.kill is not None:
                main_thread: Any = threading.main_thread().ident
                signal.pthread_kill(main_thread, signal.SIGUSR1)
                return

    def _look(self) -> MemoryKill | None:
        """Return the last kill of an actor that was ended too often; None if there is no such actor."""
        kills = ray_compat.actor_memory_kills()
        if self._progress.is_set():
            self._progress.clear()
            self._before = {actor: len(each) for actor, each in kills.items()}
        for actor, each in kills.items():
            if len(each) - self._before.get(actor, 0) >= MAX_KILLS:
                return each[-1]
        return None
