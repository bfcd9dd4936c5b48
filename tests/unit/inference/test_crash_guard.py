import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from petseg.inference import crash_guard


def deadly(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 9:
        raise ValueError("nine")
    return number * 10


def test_one_that_kills_its_process_is_told_and_the_others_go_on() -> None:
    assert list(crash_guard.each(deadly, [1, 2, 3, 2], if_died=-1)) == [10, -1, 30, -1]


def deadly_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "good"


def test_one_death_may_be_anything_s_doing(tmp_path: Path) -> None:
    assert list(crash_guard.each(deadly_once, [str(tmp_path / "marker")], if_died="bad")) == ["good"]


def test_without_a_place_for_the_marker_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with crash_guard.attempt("a") as died_before:
        assert not died_before


def test_what_is_raised_is_raised() -> None:
    with pytest.raises(ValueError, match="nine"):
        list(crash_guard.each(deadly, [1, 9], if_died=-1))


def test_an_attempt_is_known_for_as_long_as_nobody_has_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with crash_guard.attempt("a") as died_before:
        assert not died_before
    with pytest.raises(ZeroDivisionError), crash_guard.attempt("a") as died_before:
        assert not died_before
        raise ZeroDivisionError
    killed = """
import os
from petseg.inference import crash_guard
with crash_guard.attempt("a"):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", killed], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    with crash_guard.attempt("b") as died_before:
        assert not died_before
    with crash_guard.attempt("a") as died_before:
        assert died_before
    with crash_guard.attempt("a") as died_before:
        assert not died_before
    assert list(tmp_path.iterdir()) == []
