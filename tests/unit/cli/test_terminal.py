import os
import subprocess
import sys
from pathlib import Path

import pytest

from petseg.cli import terminal

JOB = """
import sys
from petseg import cli

def main():
    for number in range(20000):
        print("line", number, "…", flush=number % 7 == 0)
    print("broken", file=sys.stderr)
    open(sys.argv[1], "w").write("done")

cli.run(main)
"""


def test_pipe_closed_by_its_reader_job_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stderr is not None
        assert job.stdout.readline() == "line 0 …\n"
        job.stdout.close()
        assert (job.stderr.read(), job.wait()) == ("broken\n", 0)
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full"])
def test_closed_or_full_output_job_goes_on(closed: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    command = f"{sys.executable} {tmp_path}/job.py {tmp_path}/file {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "done"


def test_character_that_the_terminal_lacks_is_escaped(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", JOB, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith("line 0 \\u2026\n") and not done.returncode


def test_one_line_control_characters_are_escaped() -> None:
    assert (
        terminal.one_line("error: a\nb\x1b[31m – 猫\xa0👩\u200d🚀\u2028")
        == "error: a\\nb\\x1b[31m – 猫\xa0👩\u200d🚀\\u2028"
    )


def test_locale_of_another_encoding_process_starts_again_in_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "petseg", "train"])
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    monkeypatch.setitem(os.environ, "PYTHONUTF8", "0")
    terminal.require_utf8()
    assert started == [(sys.executable, [sys.executable, "-m", "petseg", "train"])]
    assert os.environ["PYTHONUTF8"] == "1"
