import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from petseg.inference import crash_guard


def crash_on_2_and_raise_on_9(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 9:
        raise ValueError("nine")
    return number * 10


def test_map_in_subprocess_crash_gives_if_died_and_others_run() -> None:
    assert list(crash_guard.map_in_subprocess(crash_on_2_and_raise_on_9, [1, 2, 3, 2], if_died=-1)) == [10, -1, 30, -1]


def crash_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "good"


def test_map_in_subprocess_single_crash_is_retried(tmp_path: Path) -> None:
    assert list(crash_guard.map_in_subprocess(crash_once, [str(tmp_path / "marker")], if_died="bad")) == ["good"]


def out_of_memory(where: int | None) -> str:
    """Raise `MemoryError` in the process `where`, or in every process if it is None."""
    if where in (None, os.getpid()):
        raise MemoryError
    return "good"


def test_run_with_retry_out_of_memory_once_succeeds_in_a_subprocess() -> None:
    assert crash_guard.run_with_retry(out_of_memory, os.getpid(), "bad") == "good"


def test_run_with_retry_always_out_of_memory_gives_if_died() -> None:
    assert crash_guard.run_with_retry(out_of_memory, None, "bad") == "bad"


def test_run_with_retry_other_exception_is_raised() -> None:
    with pytest.raises(ValueError, match="nine"):
        crash_guard.run_with_retry(crash_on_2_and_raise_on_9, 9, -1)


def hang_on_2(number: int) -> int:
    """Hang, for 2, without ever giving back Python's lock, as C code does that hangs."""
    if number == 2:
        re.match(r"(a+)+$", "a" * 60 + "b")
    return number * 10


def test_map_in_subprocess_hanging_work_gives_if_late_and_others_run() -> None:
    limit = crash_guard.TimeLimit(1.0, if_late=-2)
    assert list(crash_guard.map_in_subprocess(hang_on_2, [1, 2, 3], -1, limit)) == [10, -2, 30]


def test_map_in_subprocess_crash_with_a_limit_gives_if_died() -> None:
    """The start of the process takes longer than the limit, which is for the work alone."""
    limit = crash_guard.TimeLimit(0.3, if_late=-2)
    assert list(crash_guard.map_in_subprocess(crash_on_2_and_raise_on_9, [2, 1], -1, limit)) == [-1, 10]


def test_run_with_retry_hanging_work_ends_the_process_and_leaves_the_marker(tmp_path: Path) -> None:
    hanging = """
import re
from petseg.inference import crash_guard
with crash_guard.crash_marker("a"):
    crash_guard.run_with_retry(lambda text: re.match("(a+)+$", text), "a" * 60 + "b", 0, crash_guard.TimeLimit(0.2, 0))
"""
    done = subprocess.run(
        [sys.executable, "-c", hanging],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "Timeout" in done.stderr and "match" in done.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_run_with_retry_timer_is_off_after_the_work() -> None:
    assert crash_guard.run_with_retry(hang_on_2, 1, -1, crash_guard.TimeLimit(0.1, -2)) == 10
    time.sleep(0.2)  # the timer of that call would end this process


def test_crash_marker_no_temporary_folder_reports_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with crash_guard.crash_marker("a") as died_before:
        assert not died_before


def test_map_in_subprocess_exception_is_raised_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="nine") as caught:
        list(crash_guard.map_in_subprocess(crash_on_2_and_raise_on_9, [1, 9], if_died=-1))
    assert 'raise ValueError("nine")' in caught.value.__notes__[0]


def return_a_lock(_: int) -> object:
    return threading.Lock()


def test_map_in_subprocess_result_that_cannot_be_pickled_is_not_a_crash() -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        list(crash_guard.map_in_subprocess(return_a_lock, [1], if_died=-1))


def test_crash_marker_only_a_killed_process_leaves_its_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with crash_guard.crash_marker("a") as died_before:
        assert not died_before
    with pytest.raises(ZeroDivisionError), crash_guard.crash_marker("a") as died_before:
        assert not died_before
        raise ZeroDivisionError
    killed = """
import os
from petseg.inference import crash_guard
with crash_guard.crash_marker("a"):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", killed], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    with crash_guard.crash_marker("b") as died_before:
        assert not died_before
    with crash_guard.crash_marker("a") as died_before:
        assert died_before
    with crash_guard.crash_marker("a") as died_before:
        assert not died_before
    assert list(tmp_path.iterdir()) == []
