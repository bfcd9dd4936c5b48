"""`petseg status`, on files that the tests write."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RunJob, assert_refused

from petseg.jobs.status import describe
from petseg.status import JobStatus, Status

NOW = "2026-01-01T00:00:00+00:00"
RUNNING = Status(
    job="predict",
    phase="predicting",
    done=12034,
    failed=2,
    total=90000,
    rate=309.7,
    eta_s=252,
    started=NOW,
    heartbeat=NOW,
    host="here",
    pid=7,
)
ENDED = replace(RUNNING, rate=None, eta_s=None)


@pytest.mark.parametrize(
    ("status", "age_s", "expected"),
    [
        (
            RUNNING,
            6.2,
            "predicting, 12,034 of 90,000 images (13%), 2 failed, 310 images/s, ETA 0:04:12, heartbeat 6 s ago",
        ),
        (
            replace(RUNNING, rate=1.26),
            -3,
            "predicting, 12,034 of 90,000 images (13%), 2 failed, 1.3 images/s, ETA 0:04:12, heartbeat 0 s ago",
        ),
        (
            replace(RUNNING, rate=None),
            190,
            "predicting, 12,034 of 90,000 images (13%), 2 failed, no heartbeat for 3 min: killed?",
        ),
        (
            replace(ENDED, phase="waiting for nodes", waiting_for=4, total=None),
            0,
            "waiting for nodes for 4 more processes, heartbeat 0 s ago",
        ),
        (
            replace(ENDED, phase="finished", done=90000, exit_code=0),
            7300,
            "finished, 90,000 of 90,000 images (100%), 2 failed, 2 h ago",
        ),
        (
            replace(ENDED, phase="stopped", exit_code=1, reason="disk full"),
            1.2,
            "stopped with exit code 1, 12,034 of 90,000 images (13%), 2 failed, 1 s ago: disk full",
        ),
        (
            replace(RUNNING, job="train", phase="training", epoch=3, epochs=15, val_loss=0.41234, val_miou=None),
            0,
            "training, 3 of 15 epochs, val loss 0.412, 310 images/s, ETA 0:04:12, heartbeat 0 s ago",
        ),
    ],
)
def test_describe_status_in_one_line(status: Status, age_s: float, expected: str) -> None:
    assert describe(status, age_s) == expected


def test_status_of_several_places_is_a_line_each_and_one_without_is_refused(tmp_path: Path, call_job: RunJob) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        status = JobStatus("predict", str(tmp_path / name))
        status.enter("predicting")
        status.count(10, done=5)
        status.end("finished", 0)
    done = call_job("status", "a", "b")
    assert (done.returncode, done.stderr) == (0, "")
    line = "finished, 5 of 10 images (50%), 0 failed, 0 s ago"
    assert [text.replace("1 s ago", "0 s ago") for text in done.stdout.splitlines()] == [
        f"{tmp_path}/{name}: {line}" for name in ("a", "b")
    ]
    done = call_job("status", "nowhere", "b")
    assert_refused(done, f"{tmp_path}/nowhere: it has no status.json; give the output of a job, or a run")
    assert done.stdout.startswith(f"{tmp_path}/b: finished")
    assert_refused(call_job("status"), "a place is required")
    assert_refused(call_job("status", "--since", "1"), "unknown option --since")
