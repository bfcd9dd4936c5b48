import io

import pytest

from petseg.progress import Progress, Rate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_progress_terminal_rewrites_one_line(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(1000, 0, 0, stream, clock)
    for seconds, failed in ((2, 0), (2, 3)):
        clock.now += seconds
        progress.add(100, failed)
    progress.close()
    assert stream.getvalue().replace("\x1b[K", "").split("\r") == [
        "",
        "0/1000 images  0%  0 failed",
        "100/1000 images  10%  50.0 images/s  0 failed  ETA 0:00:18",
        "200/1000 images  20%  50.0 images/s  3 failed  ETA 0:00:16\n",
    ]


def test_progress_log_file_has_a_line_every_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(100, 0, 0, stream, clock)
    for _ in range(100):
        clock.now += 0.25
        progress.add(1, 0)
    progress.close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["0/100", "40/100", "80/100", "100/100"]
    assert stream.getvalue().endswith("100/100 images  100%  4.0 images/s  0 failed  ETA 0:00:00\n")


def test_progress_resumed_job_counts_earlier_work_but_not_its_speed(clock: Clock) -> None:
    """Images of earlier starts count as done, but not for this start's speed."""
    stream = io.StringIO()
    progress = Progress(40_000, 30_000, 7, stream, clock)
    clock.now += 10
    progress.add(20, 1)
    assert stream.getvalue().splitlines() == [
        "30000/40000 images  75%  7 failed",
        "30020/40000 images  75%  2.0 images/s  8 failed  ETA 1:23:10",
    ]


def test_progress_rate_covers_the_last_minute(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(10_000, 0, 0, stream, clock)
    for rate in [1] * 100 + [10] * 70:
        clock.now += 1
        progress.add(rate, 0)
    assert "  10.0 images/s" in stream.getvalue().rsplit("\r", 1)[1]


def test_rate_falls_only_once_nothing_was_done_for_longer_than_the_window(clock: Clock) -> None:
    rate = Rate(1000, clock)
    assert rate.per_second() is None
    for _ in range(9):
        clock.now += 10
        rate.update(1000 + round(clock.now - 100) * 5)
    assert rate.per_second() == 5
    clock.now += 59
    assert rate.per_second() == 5
    clock.now += 21
    assert rate.per_second() == pytest.approx(5 * 70 / 150)
