import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petseg import status as status_module
from petseg import storage
from petseg.errors import InputError, UnavailableError
from petseg.status import JobStatus, Status, read_status, seconds_since


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "INTERVAL_S", 0.01)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def written(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_job_status_running_heartbeat_goes_on_while_the_job_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(f"2026-01-01T00:00:{second:02}+00:00" for second in range(60))
    monkeypatch.setattr(status_module, "_now", lambda: next(times, "the last"))
    status = JobStatus("predict", str(tmp_path))
    status.count(100, done=40, failed=2)
    assert not list(tmp_path.iterdir()), "nothing is written before the first phase"
    status.enter("predicting")
    wait_for(lambda: written(tmp_path).get("heartbeat") == "the last")
    status.add(10, failed=1)
    wait_for(lambda: written(tmp_path)["done"] == 50)
    found = written(tmp_path)
    status.end("finished", 0)
    assert {name: found[name] for name in ("job", "phase", "failed", "total", "done_before", "exit_code")} == {
        "job": "predict",
        "phase": "predicting",
        "failed": 3,
        "total": 100,
        "done_before": 40,
        "exit_code": None,
    }
    assert found["rate"] > 0 and found["eta_s"] is not None and found["started"] == "2026-01-01T00:00:00+00:00"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_job_status_interval_is_kept_between_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "INTERVAL_S", 60)
    writes: list[dict[str, Any]] = []
    monkeypatch.setattr(storage, "write", lambda _, content: writes.append(json.loads(content)))
    status = JobStatus("predict", str(tmp_path))
    status.enter("starting Ray")
    wait_for(lambda: len(writes) == 1)
    status.enter("predicting")
    for _ in range(100):
        status.add(1)
    status.end("finished", 0)
    assert [found["phase"] for found in writes] == ["starting Ray", "finished"]


def test_job_status_waiting_phase_is_shown_until_the_wait_is_over(tmp_path: Path) -> None:
    status = JobStatus("predict", str(tmp_path))
    status.enter("starting Ray")
    status.wait(3)
    assert (status.get().phase, status.get().waiting_for) == ("waiting for nodes", 3)
    status.wait(0)
    assert (status.get().phase, status.get().waiting_for) == ("starting Ray", 0)
    status.end("finished", 0)


def test_job_status_end_last_status_has_exit_code_and_reason(tmp_path: Path) -> None:
    status = JobStatus("predict", str(tmp_path))
    status.enter("predicting")
    status.count(10)
    status.wait(2)
    status.end("stopped", 1, "the disk is full")
    found = written(tmp_path)
    assert (found["phase"], found["exit_code"], found["reason"]) == ("stopped", 1, "the disk is full")
    assert found["waiting_for"] == 0 and found["rate"] is found["eta_s"] is None


def test_job_status_storage_fails_end_prints_a_note_and_does_not_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    status = JobStatus("predict", str(tmp_path / "file"))
    status.enter("predicting")
    status.end("finished", 0)
    assert capsys.readouterr().out == f"note: {tmp_path}/file/status.json cannot be written: Not a directory\n"


def test_job_status_storage_hangs_end_waits_only_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, answer, writes = threading.Event(), threading.Event(), []

    def write(_: str, content: bytes) -> None:
        asked.set()
        answer.wait(60)
        writes.append(json.loads(content)["phase"])

    monkeypatch.setattr(status_module, "END_S", 0.1)
    monkeypatch.setattr(storage, "write", write)
    is_held = True
    status = JobStatus("predict", str(tmp_path), lambda: is_held)
    status.enter("predicting")
    assert asked.wait(20)
    started = time.monotonic()
    status.end("finished", 0)
    assert time.monotonic() - started < 30
    assert "cannot be written: no answer for 0.1 seconds" in capsys.readouterr().out
    is_held = False  # another job may have begun by now: its status stays
    answer.set()
    assert status._thread is not None
    status._thread.join(20)
    assert writes == ["predicting"]


def test_job_status_storage_fails_for_a_while_next_beat_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = storage.write, []

    def write(location: str, content: bytes) -> None:
        calls.append(location)
        if len(calls) < 3:
            raise UnavailableError("the store does not answer")
        real(location, content)

    monkeypatch.setattr(storage, "write", write)
    status = JobStatus("predict", str(tmp_path))
    status.enter("predicting")
    wait_for(lambda: written(tmp_path).get("phase") == "predicting")
    status.end("finished", 0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [None, "of an earlier job"])
def test_job_status_invalid_input_before_the_work_file_is_as_before(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    status = JobStatus("predict", str(tmp_path))
    status.enter("starting Ray")
    wait_for(lambda: (tmp_path / "status.json").exists() and "starting Ray" in (tmp_path / "status.json").read_text())
    status.end("failed", 2, "no GPU")
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if content is None else [content])


def test_job_status_invalid_input_after_the_work_began_is_written(tmp_path: Path) -> None:
    status = JobStatus("train", str(tmp_path))
    status.enter("training")
    status.count(10)
    status.end("failed", 2, "the loss is no longer a number")
    assert written(tmp_path)["reason"] == "the loss is no longer a number"


def test_job_status_refused_or_idle_job_writes_nothing(tmp_path: Path) -> None:
    JobStatus("predict", str(tmp_path)).end("failed", 2, "other settings")
    JobStatus("predict", str(tmp_path)).end("stopped", 1, "too many photos have failed")
    assert not list(tmp_path.iterdir())
    first = JobStatus("predict", str(tmp_path))
    first.enter("predicting")
    first.end("finished", 0)
    before = (tmp_path / "status.json").stat()
    JobStatus("predict", str(tmp_path)).end("finished", 0)
    assert (tmp_path / "status.json").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"phase": "finished"}'])
def test_job_status_idle_job_corrects_the_status_of_a_killed_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    status = JobStatus("predict", str(tmp_path))
    status.count(7, done=7)
    status.end("finished", 0)
    assert (written(tmp_path)["phase"], written(tmp_path)["done"]) == ("finished", 7)


def test_job_status_lost_folder_nothing_more_is_written(tmp_path: Path) -> None:
    is_held = True
    status = JobStatus("predict", str(tmp_path), lambda: is_held)
    status.enter("predicting")
    wait_for(lambda: bool(written(tmp_path)))
    is_held = False
    time.sleep(0.05)  # a write may be under way
    (tmp_path / "status.json").write_text("of the other job")
    status.end("stopped", 130, "interrupted")
    assert (tmp_path / "status.json").read_text() == "of the other job"


def test_job_status_listener_gets_every_beat_and_the_last_one(tmp_path: Path) -> None:
    heard: list[Status] = []
    status = JobStatus("predict", str(tmp_path))
    status.subscribe(heard.append)
    status.enter("predicting")
    wait_for(lambda: len(heard) > 2)
    status.end("stopped", 1, "why")
    assert [found.phase for found in heard[-2:]] == ["predicting", "stopped"]


def test_read_status_returns_what_was_written(tmp_path: Path) -> None:
    status = JobStatus("train", str(tmp_path))
    status.enter("training")
    status.count(30, done=10, unit="crops")
    status.finish_epoch(1, 3, 0.5, None)
    status.end("stopped", 1, "why")
    found = read_status(str(tmp_path))
    assert found == status.get() and (found.epochs, found.val_loss, found.unit) == (3, 0.5, "crops")
    assert 0 <= seconds_since(found.started) < 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it has no status.json; give the output of a job, or a run"),
        (b"{", "status.json: not JSON"),
        (b'{"job": 1}', "status.json: job: 1 is not a valid value"),
    ],
)
def test_read_status_missing_or_invalid_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_status(str(tmp_path))
