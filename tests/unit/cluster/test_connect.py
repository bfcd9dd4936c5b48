import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from petseg.cluster import connect, ray_compat
from petseg.errors import InputError, JobError


def test_connect_no_ray_found_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def init(**settings: object) -> None:
        signal.raise_signal(signal.SIGINT)  # must be deferred until Ray has started completely
        started.append(settings)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_compat.services, "find_gcs_addresses", set)
    monkeypatch.setattr(ray_compat.services, "find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(connect.ray, "init", init)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore SIGINT
    try:
        with pytest.raises(KeyboardInterrupt):
            connect.connect()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1 and "address" not in started[0]


@pytest.mark.parametrize(
    "address", ["nonsense", "auto", "local", "127.0.0.1:abc", "ray://127.0.0.1:10001", "http://a:1"]
)
def test_connect_invalid_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"RAY_ADDRESS {address}: a cluster's host:port is expected"):
        connect.connect()


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.40.0
    Python: 3.12.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def test_connect_other_ray_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: object) -> None:
        raise RuntimeError(MISMATCH)

    address = "10.0.0.9:6379"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(connect, "_answers", lambda host, port: True)
    monkeypatch.setattr(connect.ray, "init", init)
    with pytest.raises(InputError) as caught:
        connect.connect()
    assert str(caught.value).startswith(
        f"the Ray at {address} has version 2.40.0 on Python 3.12.1, and this environment 2.60.0 on Python 3.11.7; "
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", [None, "10.0.0.9:6379"])
def test_connect_only_a_local_ray_gets_the_idle_worker_setting(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray that is already running would refuse the setting."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray_compat, "find_address", lambda: address)
    monkeypatch.setattr(connect, "_answers", lambda host, port: True)
    monkeypatch.setattr(connect.ray, "init", lambda **settings: asked.update(settings))
    monkeypatch.setattr(ray_compat, "divert_native_stderr", lambda name: None)
    monkeypatch.setattr(connect, "silence_logs", lambda debug: None)
    monkeypatch.setattr(connect, "_require_workers", lambda: None)
    monkeypatch.setattr(ray_compat.worker, "print_worker_logs", None)
    connect.connect()
    patience = asked.get("_system_config", {}).get("idle_worker_killing_time_threshold_ms", 0)
    assert patience >= 10_000 if address is None else "_system_config" not in asked


def test_short_folders_only_a_long_path_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connect, "_SHORT_PARENT", str(tmp_path))
    monkeypatch.setattr(connect.atexit, "register", lambda *_: None)
    for length in (connect._MAX_FOLDER_BYTES - len("/ray"), connect._MAX_FOLDER_BYTES - len("/ray") + 1):
        monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
        settings = connect._short_folders()
        assert bool(settings) == (length + len("/ray") > connect._MAX_FOLDER_BYTES)
    assert settings["_temp_dir"].startswith(f"{tmp_path}/petseg-") and Path(settings["_temp_dir"]).is_dir()
    assert settings["object_spilling_directory"] == f"/{'x' * (length - 1)}/ray"
    monkeypatch.setattr(connect, "_SHORT_PARENT", str(tmp_path / "missing"))
    with pytest.raises(InputError, match="set RAY_TMPDIR to a folder with a path of at most 39 bytes"):
        connect._short_folders()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (connect.ray.exceptions.GetTimeoutError(), "none has started within 30 seconds"),
        (
            connect.ray.exceptions.RayError("failed:\n  …\nImportError: no numpy\n"),
            "ImportError: no numpy",
        ),
    ],
)
def test_require_workers_that_do_not_start_are_one_line(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(connect, "_import_package", mock.Mock())
    monkeypatch.setattr(connect.ray, "get", get)
    with pytest.raises(JobError, match=f"^Ray's worker processes do not start: {reason}; see .*PYTHONPATH") as caught:
        connect._require_workers()
    assert "\n" not in str(caught.value)


def test_require_workers_full_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = connect.ray.exceptions.OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.3, ID: 01) was "
        "22.90GB used / 23.54GB limit (0.972)\nSelected to kill: (…, actual memory used=0.12GB, worker ID=aa01)\n"
    )
    monkeypatch.setattr(connect, "_import_package", mock.Mock())
    monkeypatch.setattr(connect.ray, "get", mock.Mock(side_effect=error))
    with pytest.raises(JobError) as caught:
        connect._require_workers()
    assert str(caught.value) == (
        "the memory of this machine is full (the process used 0.1 GiB, and all of 10.0.0.3 22.9 of 23.5 GiB), so Ray "
        "ended its first process; end other programs, or use a machine with more memory"
    )
