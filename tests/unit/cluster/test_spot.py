import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import ec2_metadata
import pytest
import webserver
from ec2_metadata import Metadata
from ray_head import wait_until

from petseg.cluster import ray_compat, spot
from petseg.errors import JobError

NOTICE = '{"action": "stop", "time": "2026-05-18T08:22:00Z"}'
AT = datetime(2026, 5, 18, 8, 22, tzinfo=UTC)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Metadata]:
    monkeypatch.setattr(spot, "_POLL_S", 0.05)
    caplog.set_level(logging.INFO)
    with ec2_metadata.serve() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.address)
        yield server


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a node's."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


def drains(monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> list[tuple[object, ...]]:
    """Record the requests to drain a node. The first `failures` of them fail."""
    asked = []

    def drain(*request: object) -> None:
        asked.append(request)
        if len(asked) <= failures:
            raise JobError("no answer")

    monkeypatch.setattr(ray_compat, "drain_node", drain)
    return asked


def test_read_notice_with_a_token_is_action_and_time(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert spot.read_notice(metadata.address) is None
    metadata.notice = NOTICE
    assert spot.read_notice(f"{metadata.address}/") == ("stop", AT)


@pytest.mark.parametrize("content", ["", "[]", '{"action": "stop"}', '{"action": "stop", "time": "soon"}'])
def test_read_notice_other_content_is_an_error(metadata: Metadata, content: str) -> None:
    metadata.notice = content
    with pytest.raises(ValueError, match="not a notice: "):
        spot.read_notice(metadata.address)


def test_read_notice_refused_request_is_an_error() -> None:
    with webserver.serve() as server, pytest.raises(ValueError, match="HTTP status 501"):
        spot.read_notice(server.address)


def test_read_notice_service_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "_TIMEOUT_S", 0.1)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        spot.read_notice(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 10


def test_watch_notice_drains_the_node_once_until_its_time(
    metadata: Metadata,
    raylet: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = drains(monkeypatch, failures=2)
    watcher = threading.Thread(target=spot.watch, args=("10.0.0.1:6379", raylet.pid, "f00d"), daemon=True)
    watcher.start()
    wait_until(lambda: metadata.polls >= 3, 10)
    assert asked == [] and caplog.messages == []
    metadata.notice = NOTICE
    watcher.join(10)
    assert not watcher.is_alive() and raylet.poll() is None
    assert asked == [("10.0.0.1:6379", "f00d", "EC2 will stop this spot instance", AT.timestamp())] * 3
    assert caplog.messages == [
        "notice: EC2 will stop this instance at 2026-05-18T08:22:00+00:00",
        "node f00d is not draining: no answer; trying again every 0.05 s",
        "node f00d is draining: it gets no more work",
    ]


def test_watch_ends_with_the_node(
    metadata: Metadata, raylet: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot, "_POLL_S", 60)
    watcher = threading.Thread(target=spot.watch, args=("10.0.0.1:6379", raylet.pid, "f00d"), daemon=True)
    watcher.start()
    wait_until(lambda: metadata.polls, 10)
    raylet.kill()
    watcher.join(10)
    assert not watcher.is_alive() and metadata.polls == 1


def test_watch_no_metadata_service_is_one_line_and_tried_again(
    metadata: Metadata,
    raylet: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = drains(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    tries = []
    read = spot.read_notice

    def count(endpoint: str) -> spot.Notice | None:
        tries.append(time.monotonic())
        return read(endpoint if len(tries) < 5 else metadata.address)

    monkeypatch.setattr(spot, "read_notice", count)
    metadata.notice = NOTICE
    spot.watch("10.0.0.1:6379", raylet.pid, "f00d")
    assert len(tries) == 5 and tries[-1] - tries[0] >= 4 * 0.05
    assert len(asked) == 1
    first, *others = caplog.messages
    assert first.startswith("no valid answer from http://127.0.0.1:1: ") and "refused" in first
    assert [line.split(":")[0] for line in others] == ["notice", "node f00d is draining"]


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_main_no_ray_on_this_machine_is_one_line(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_compat, "find_address", lambda: address)
    monkeypatch.setattr(ray_compat, "local_node", lambda _: None)
    with pytest.raises(SystemExit, match="error: no Ray runs on this machine; run `ray start` first"):
        spot.main()
