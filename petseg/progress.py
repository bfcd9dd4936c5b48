"""How far a job is, in one line: rewritten in place on a terminal, a line now and then in a log. No Ray, no files."""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

LOG_INTERVAL_S = 10
"""Between lines where the output is not a terminal, but for the first and the last."""

RATE_WINDOW_S = 60
"""What the rate, and so the ETA, is the mean over: a cluster grows and shrinks."""


class Progress:
    """Photos done of all, also those that earlier starts did.

    Or bytes, shown in another `unit` of so many each, which do not fail. `name` begins the line.
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
        self._window = deque([(clock(), done)])
        self._show()

    def add(self, done: int, failed: int = 0) -> None:
        """So many more photos are done, so many of them without a mask."""
        self._done += done
        self._failed += failed
        now = self._clock()
        self._window.append((now, self._done))
        while len(self._window) > 2 and now - self._window[1][0] > RATE_WINDOW_S:
            self._window.popleft()
        if self._live or self._done == self._total or now - self._last_line_s >= LOG_INTERVAL_S:
            self._show()

    def close(self) -> None:
        """End the line, so that the next thing printed has its own."""
        if self._live:
            print(file=self._stream, flush=True)

    def _show(self) -> None:
        self._last_line_s = self._clock()
        (start_s, at_start), (end_s, at_end) = self._window[0], self._window[-1]
        failed = f"  {self._failed} failed" if self._unit == "images" else ""
        done, total = self._done // self._unit_size, self._total // self._unit_size
        line = f"{self._name}{done}/{total} {self._unit}  {100 * self._done // self._total}%"
        if at_end > at_start and end_s > start_s:
            rate = (at_end - at_start) / (end_s - start_s)
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
    """Seconds of a job's parts, one after the other."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """What was done since the last call, or the beginning, is called so; the same name twice is added up."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._since
        self._since = now
