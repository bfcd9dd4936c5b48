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


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(server, tmp_path / "new") == fetch(server, tmp_path / "new") == CONTENT
    assert server.asked == [("/a.tar.gz", None)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.tar.gz: 0/1 MB  0%"
    assert lines[-1].startswith("a.tar.gz: 1/1 MB  100%  ") and "failed" not in lines[-1]


def test_a_connection_that_is_cut_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.faults = [CUT, CUT]
    assert fetch(server, tmp_path) == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=500000-", "bytes=750000-"]


def test_what_a_killed_start_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:999_999])
    assert fetch(server, tmp_path) == CONTENT
    assert server.asked == [("/a.tar.gz", "bytes=999999-")]


def test_a_part_that_is_all_of_it_is_asked_for_in_vain(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT)  # killed between the last byte and the name
    assert fetch(server, tmp_path) == CONTENT


@pytest.mark.parametrize("faults", [[WHOLE], [BUSY, WHOLE], [WHOLE, BUSY]], ids=str)
def test_a_server_that_knows_no_ranges_starts_over(server: Server, tmp_path: Path, faults: list[str]) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:400_000])
    server.faults = faults
    assert fetch(server, tmp_path) == CONTENT


def test_another_part_than_asked_for_is_not_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:400_000])
    server.faults = [WRONG_PART]
    assert fetch(server, tmp_path) == CONTENT
    assert len(server.asked) == 2


def test_a_server_that_stays_busy_ends_it(server: Server, tmp_path: Path) -> None:
    server.faults = [BUSY] * download.TRIES
    with pytest.raises(JobError, match=r"/a.tar.gz: HTTP 503 Service Unavailable \(6 tries\); give the same command"):
        fetch(server, tmp_path)
    server.faults = [BUSY] * (download.TRIES - 1)
    assert fetch(server, tmp_path) == CONTENT


def test_tries_that_bring_something_do_not_count(server: Server, tmp_path: Path) -> None:
    server.faults = [CUT] * (download.TRIES + 2)
    assert fetch(server, tmp_path) == CONTENT


def test_a_server_that_cuts_and_knows_no_ranges_ends_it(
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


def test_other_content_is_removed_in_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(b"of another version")
    with pytest.raises(JobError, match=rf"a.tar.gz: what arrived has the MD5 \w+, not {MD5}; it is removed. Give"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch(server, tmp_path) == CONTENT


def test_a_file_of_another_version_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"of another version")
    assert fetch(server, tmp_path) == CONTENT


def test_a_file_that_is_not_there_is_the_address_s_fault(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--url: http://.*/b: HTTP 404 Not Found; give the folder"):
        fetch(server, tmp_path, "b")
    assert len(server.asked) == 1


def test_no_server_at_all_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JobError, match=r"Connection refused \(6 tries\)"):
        download.fetch(f"http://127.0.0.1:{port}/a", tmp_path / "a", MD5)


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_no_other_scheme_is_opened(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.001)
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(JobError, match=f"unknown url type: {scheme}"):
        download.fetch(f"{scheme}://{tmp_path}/secret", tmp_path / "a", MD5)


def test_a_full_disk_is_told_from_a_broken_connection(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.part").mkdir()
    with pytest.raises(JobError, match=r"--cache .*a.tar.gz.part: Is a directory"):
        fetch(server, tmp_path)
