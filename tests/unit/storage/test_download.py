import hashlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import webserver
from webserver import BUSY, CUT, WHOLE, WRONG_PART, Server

from petseg.errors import InputError, JobError
from petseg.storage import download

CONTENT = random.Random(0).randbytes(1_000_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.001)
    with webserver.serve() as server:
        server.files["/a.tar.gz"] = CONTENT
        yield server


def fetch(server: Server, folder: Path, name: str = "a.tar.gz") -> bytes:
    download.fetch(f"{server.address}/{name}", folder / "a.tar.gz", MD5)
    assert not (folder / "a.tar.gz.part").exists()
    return (folder / "a.tar.gz").read_bytes()


def test_fetch_twice_downloads_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(server, tmp_path / "new") == fetch(server, tmp_path / "new") == CONTENT
    assert server.asked == [("/a.tar.gz", None)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.tar.gz: 0/1 MB  0%"
    assert lines[-1].startswith("a.tar.gz: 1/1 MB  100%  ") and "failed" not in lines[-1]


def test_fetch_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.faults = [CUT, CUT]
    assert fetch(server, tmp_path) == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=500000-", "bytes=750000-"]


def test_fetch_partial_file_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:999_999])
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == [("/a.tar.gz", "bytes=999999-")]


def test_fetch_complete_partial_file_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT)  # killed between the last byte and the name
    assert fetch(server, tmp_path) == CONTENT


@pytest.mark.parametrize("faults", [[WHOLE], [BUSY, WHOLE], [WHOLE, BUSY]], ids=str)
def test_fetch_server_without_ranges_starts_over(server: Server, tmp_path: Path, faults: list[str]) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:400_000])
    server.faults = faults
    assert fetch(server, tmp_path) == CONTENT


def test_fetch_wrong_range_is_discarded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:400_000])
    server.faults = [WRONG_PART]
    assert fetch(server, tmp_path) == CONTENT
    assert len(server.asked) == 2


def test_fetch_server_stays_busy_fails_after_all_tries(server: Server, tmp_path: Path) -> None:
    server.faults = [BUSY] * download.TRIES
    with pytest.raises(JobError, match=r"/a.tar.gz: HTTP 503 Service Unavailable \(6 tries\); run the same command"):
        fetch(server, tmp_path)
    server.faults = [BUSY] * (download.TRIES - 1)
    assert fetch(server, tmp_path) == CONTENT


def test_fetch_tries_with_progress_are_not_counted(server: Server, tmp_path: Path) -> None:
    server.faults = [CUT] * (download.TRIES + 2)
    assert fetch(server, tmp_path) == CONTENT


def test_fetch_cut_connections_without_ranges_fail(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([300_000, 500_000] * 20)

    def cut(response: object, file: object, name: str, have: int) -> None:
        file.write(bytes(next(sizes)))  # pyright: ignore[reportAttributeAccessIssue]
        raise download._CutOffError("cut")

    monkeypatch.setattr(download, "_receive", cut)
    server.faults = [WHOLE] * 40
    with pytest.raises(JobError, match="6 tries"):
        fetch(server, tmp_path)
    assert len(server.asked) < 10


def test_fetch_wrong_md5_is_removed_and_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(b"of another version")
    with pytest.raises(JobError, match=rf"a.tar.gz: the download has the MD5 \w+ instead of {MD5} and was"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch(server, tmp_path) == CONTENT


def test_fetch_file_of_another_version_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"of another version")
    assert fetch(server, tmp_path) == CONTENT


def test_fetch_http_404_is_an_input_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--url: http://.*/b: HTTP 404 Not Found; give the folder"):
        fetch(server, tmp_path, "b")
    assert len(server.asked) == 1


def test_fetch_no_server_fails_after_all_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JobError, match=r"Connection refused \(6 tries\)"):
        download.fetch(f"http://127.0.0.1:{port}/a", tmp_path / "a", MD5)


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_fetch_scheme_other_than_http_is_refused(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.001)
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(JobError, match=f"unknown url type: {scheme}"):
        download.fetch(f"{scheme}://{tmp_path}/secret", tmp_path / "a", MD5)


def test_fetch_local_write_error_is_not_retried(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").mkdir()
    with pytest.raises(JobError, match=r"--cache .*a.tar.gz.part: Is a directory"):
        fetch(server, tmp_path)
