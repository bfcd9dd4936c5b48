"""Progress of a job in one line, and its rate.

A terminal rewrites the line in place; a log gets a new one from time to time.

This module uses neither Ray nor files.
"""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

LOG_INTERVAL_S = 10
"""Seconds between log lines when the output is not a terminal. The first and the last line are always printed."""

RATE_WINDOW_S = 60
"""Window in seconds over which the rate is averaged. The ETA follows recent speed, because a cluster may resize."""


class Rate:
    """Rate at which a count grows, over the last `RATE_WINDOW_S` seconds. `done` is the count at the start."""

    def __init__(self, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window = deque([(clock(), done)])

    def update(self, done: int) -> None:
        """Note that the count has grown to `done`."""
        now = self._clock()
        self._window.append((now, done))
        while len(self._window) > 2 and now - self._window[1][0] > RATE_WINDOW_S:
            self._window.popleft()

    def per_second(self) -> float | None:
        """Return the rate; None before the count has grown.

        The time since the last growth counts only if it is longer than the window, so that the rate does not swing
        with every shard, but falls if the work stands still.
        """
        (start_s, at_start), (end_s, at_end) = self._window[0], self._window[-1]
        now = self._clock()
        if now - end_s > max(end_s - start_s, RATE_WINDOW_S):
            end_s = now
        return (at_end - at_start) / (end_s - start_s) if at_end > at_start and end_s > start_s else None


class Progress:
    """Progress line for `total` photos, of which earlier starts of the job have already done `done`.

    It can count bytes instead: `unit` is the name of the displayed unit and the bytes in one of it. A count of failures
    is shown for photos only. `name` begins the line.
    """

    def __init__(
        self,
        total: int,
        done: int,
        failed: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        unit: tuple[str, int] = ("images", 1),
        name: str = "",
    ) -> None:
        self._total = total
        self._done = done
        self._failed = failed
        self._stream = stream
        self._clock = clock
        self._unit, self._unit_size = unit
        self._name = name
        self._live = stream.isatty()
        self._last_line_s = -float("inf")
        self._rate = Rate(done, clock)
        self._show()

    def add(self, done: int, failed: int = 0) -> None:
        """Count `done` more photos, of which `failed` have no mask, and print the line if it is due."""
        self._done += done
        self._failed += failed
        now = self._clock()
        self._rate.update(self._done)
        if self._live or self._done == self._total or now - self._last_line_s >= LOG_INTERVAL_S:
            self._show()

    def close(self) -> None:
        """End the line, so that the next output starts on a new one."""
        if self._live:
            print(file=self._stream, flush=True)

    def _show(self) -> None:
        self._last_line_s = self._clock()
        rate = self._rate.per_second()
        failed = f"  {self._failed} failed" if self._unit == "images" else ""
        done, total = self._done // self._unit_size, self._total // self._unit_size
        line = f"{self._name}{done}/{total} {self._unit}  {100 * self._done // self._total}%"
        if rate is not None:
            left_s = round((self._total - self._done) / rate)
            line += f"  {rate / self._unit_size:.1f} {self._unit}/s{failed}  ETA {timedelta(seconds=left_s)}"
        else:
            line += failed
        clear_to_end_of_line = "\x1b[K"
        if self._live:
            print(f"\r{line}{clear_to_end_of_line}", end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)


class Clock:
    """Stopwatch for the consecutive parts of a job. `laps` holds the seconds of each part by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last call, or since the start, to the lap `name`."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._since
        self._since = now
