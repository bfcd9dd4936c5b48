import subprocess
import sys
import time
from pathlib import Path

import pytest

from petseg.errors import InputError
from petseg.storage.hold import hold

HOLD = """
import sys, time
from petseg.storage.hold import hold
with hold(sys.argv[1], "--output"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_hold_second_process_is_refused_and_told_the_holder(tmp_path: Path) -> None:
    output = str(tmp_path / "new" / "out")
    with subprocess.Popen([sys.executable, "-c", HOLD, output], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(InputError, match=f"--output {output}: process {other.pid} on .*, since .* is writing"),
                hold(output, "--output"),
            ):
                pass
        finally:
            other.kill()
    started = time.monotonic()
    with hold(output, "--output"):  # the system has let go of the killed process's lock
        assert time.monotonic() - started < 5
        Path(output, "kept").touch()
    assert [path.name for path in Path(output).iterdir()] == ["kept"]


def test_hold_leaves_no_empty_folder(tmp_path: Path) -> None:
    with hold(str(tmp_path / "new" / "out"), "--output"):
        assert (tmp_path / "new" / "out").is_dir()
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with hold(str(tmp_path / "out"), "--output"):
        pass
    assert (tmp_path / "out").is_dir()


def test_hold_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"--output .*file/out: cannot be written"),
        hold(f"{tmp_path}/file/out", "--output"),
    ):
        pass


def test_hold_tells_as_long_as_it_holds(tmp_path: Path) -> None:
    with hold(str(tmp_path / "out"), "--output") as is_held:
        assert is_held()
    assert not is_held()
