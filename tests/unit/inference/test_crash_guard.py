import os
import signal
import subprocess
import sys
import tempfile
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


def test_crash_marker_no_temporary_folder_reports_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with crash_guard.crash_marker("a") as died_before:
        assert not died_before


def test_map_in_subprocess_exception_is_raised() -> None:
    with pytest.raises(ValueError, match="nine"):
        list(crash_guard.map_in_subprocess(crash_on_2_and_raise_on_9, [1, 9], if_died=-1))


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
