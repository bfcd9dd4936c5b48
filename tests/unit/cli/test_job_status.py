import contextlib
import io
import json
from pathlib import Path

import pytest

from petseg.cli.job_status import report_status
from petseg.cli.json_log import set_log_format
from petseg.errors import InputError, JobError, UnavailableError
from petseg.status import read_status


@pytest.mark.parametrize(
    ("error", "phase", "exit_code", "reason"),
    [
        (None, "finished", 0, ""),
        (JobError("disk full: free some"), "stopped", 1, "disk full: free some"),
        (UnavailableError("the store does not answer"), "stopped", 1, "the store does not answer"),
        (InputError("the loss is NaN"), "failed", 2, "the loss is NaN"),
        (KeyError("x"), "failed", 70, "KeyError: 'x'"),
        (KeyboardInterrupt(), "stopped", 130, "interrupted"),
        (SystemExit(15), "stopped", 15, "terminated"),
    ],
)
def test_report_status_end_of_the_job_is_in_the_file_and_the_log(
    error: BaseException | None, phase: str, exit_code: int, reason: str, tmp_path: Path
) -> None:
    stream = io.StringIO()
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with contextlib.redirect_stdout(stream), expected:
        set_log_format("json", "predict")
        with report_status("predict", str(tmp_path), lambda: True) as status:
            status.enter("predicting")
            status.count(10, done=4, failed=1)
            status.add(3)
            if error is not None:
                raise error
    found = read_status(str(tmp_path))
    assert (found.job, found.phase, found.exit_code, found.reason) == ("predict", phase, exit_code, reason)
    [last] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert last.pop("seconds") >= 0 and last.pop("time")
    assert last == {
        "job": "predict",
        "event": "end",
        "phase": phase,
        "exit_code": exit_code,
        "reason": reason,
        "output": str(tmp_path),
        "done": 7,
        "failed": 1,
        "total": 10,
        "unit": "images",
    }
