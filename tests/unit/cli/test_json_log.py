import contextlib
import io
import json
import threading
from datetime import UTC, datetime
from typing import Any

from petseg.cli.json_log import is_json, log_event, set_log_format


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_log_printed_lines_and_events_are_objects() -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        set_log_format("json", "predict")
        assert is_json()
        print("note: a", 1, end="\n\n")
        print("two\nlines — é")
        print("half of a line,", end=" ", flush=True)
        log_event("shard", shard=3, rate=None)
        print("the other half")
    found = lines(stream)
    assert stream.getvalue().isascii()
    assert all(
        abs((datetime.now(UTC) - datetime.fromisoformat(line.pop("time"))).total_seconds()) < 60 for line in found
    )
    assert found == [
        {"job": "predict", "event": "message", "message": "note: a 1"},
        {"job": "predict", "event": "message", "message": "two"},
        {"job": "predict", "event": "message", "message": "lines — é"},
        {"job": "predict", "event": "shard", "shard": 3, "rate": None},
        {"job": "predict", "event": "message", "message": "half of a line, the other half"},
    ]


def test_json_log_threads_lines_are_not_mixed() -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        set_log_format("json", "train")
        print("begun here,", end=" ")
        thread = threading.Thread(target=print, args=("a line of", "another thread"))
        thread.start()
        thread.join()
        print("ended here")
    assert [line["message"] for line in lines(stream)] == ["a line of another thread", "begun here, ended here"]


def test_text_log_prints_text_and_no_events() -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        set_log_format("text", "predict")
        print("a")
        log_event("shard", shard=3)
        assert not is_json()
    assert stream.getvalue() == "a\n"
