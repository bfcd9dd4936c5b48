"""Object stores: a real one, with network faults and with error answers."""

import errno
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import stores
from conftest import Store

from petseg import files, storage
from petseg.data import manifest
from petseg.errors import InputError, JobError, UnavailableError
from petseg.storage import arrow, checks, lease, s3, s3_client
from petseg.storage.hold import hold


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, new_client: None) -> None:
    """Shorten the pauses between tries to almost nothing."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture
def new_client() -> Iterator[None]:
    """Let the next client be created from the changed environment."""
    s3_client._new_client.cache_clear()
    yield
    s3_client._new_client.cache_clear()


def test_store_written_objects_are_listed_and_read(store: Store, prefix: str) -> None:
    contents = {"a.txt": b"one", "b/c d+ü%.txt": b"two", "b/e/f": b"", ".hidden": b"x", "b/.git/y": b"x"}
    for name, content in contents.items():
        storage.write(storage.join(prefix, name), content)
    s3_client.client().put_object(Bucket=stores.BUCKET, Key=prefix.removeprefix(f"{store.url}/") + "/b/empty/")
    assert sorted(storage.list_files(prefix)) == ["a.txt", "b/c d+ü%.txt", "b/e/f"]
    assert storage.list_names(prefix) == [".hidden", "a.txt", "b"]
    assert storage.list_names(f"{prefix}/b") == [".git", "c d+ü%.txt", "e", "empty"]
    assert storage.list_names(f"{prefix}/nothing") == list(storage.list_files(f"{prefix}/nothing")) == []
    assert {name: storage.read(storage.join(prefix, name)) for name in contents} == contents
    storage.write(f"{prefix}/a.txt", b"another")
    assert storage.read(f"{prefix}/a.txt") == b"another"
    assert prefix.rpartition("/")[2] in storage.list_names(store.url)

    storage.remove_file(f"{prefix}/a.txt")
    storage.remove_file(f"{prefix}/a.txt")
    storage.remove_folder(f"{prefix}/b", first=".git/y")
    storage.remove_folder(f"{prefix}/b")
    assert list(storage.list_files(prefix)) == [] and storage.list_names(prefix)[:1] == [".hidden"]


def test_discover_keys_that_are_no_safe_paths_are_read_under_escaped_ids(store: Store, prefix: str) -> None:
    """This store has no keys with a backslash or two slashes; S3 has. See `test_manifest.UNSAFE` for them."""
    contents = {"c\td": b"2", "e/%2F": b"3"}
    for name, content in contents.items():
        storage.write(f"{prefix}/{name}.png", content)
    photos = manifest.discover(prefix)
    assert photos["id"].to_pylist() == ["c%09d", "e/%2F"]
    assert list(storage.read_each(photos["image"].to_pylist())) == list(contents.values())


def test_discover_single_object_is_taken(store: Store, prefix: str) -> None:
    storage.write(f"{prefix}/a.png", b"1")
    storage.write(f"{prefix}/a.png.txt", b"2")
    [row] = manifest.discover(f"{prefix}/a.png").to_pylist()
    assert (row["id"], row["image"]) == ("a", f"{prefix}/a.png")


def test_list_files_long_listing_is_one_request_per_page(store: Store, prefix: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: storage.write(f"{prefix}/{number % 3}/{number:05}", b""), range(1005)))
    store.proxy.reset()
    listing = storage.list_files(prefix)
    first = next(listing)
    assert store.proxy.requests == {"LIST": 1}
    assert len({first, *listing}) == 1005
    assert store.proxy.requests == {"LIST": 2}
    storage.remove_folder(prefix)
    assert list(storage.list_files(prefix)) == []


def test_read_and_write_one_request_each(store: Store, prefix: str) -> None:
    content = secrets.token_bytes(200_000)
    storage.write(f"{prefix}/a", content)
    assert store.proxy.requests == {"PUT": 1}
    assert storage.read(f"{prefix}/a", at_most=200_000) == content
    assert store.proxy.requests == {"PUT": 1, "GET": 1}
    with pytest.raises(OSError, match="more than 199999 bytes") as caught:
        storage.read(f"{prefix}/a", at_most=199_999)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError, match="no such object"):
        storage.read(f"{prefix}/b")
    assert "HEAD" not in store.proxy.requests


def test_open_file_random_access_reads_the_right_bytes(store: Store, prefix: str) -> None:
    content = secrets.token_bytes(300_000)
    storage.write(f"{prefix}/a", content)
    with storage.open_file(f"{prefix}/a") as file:
        assert file.size() == len(content)
        for start, size in ((0, 10), (299_990, 100), (100_000, 50_000), (234_460, 8), (299_999, 1)):
            file.seek(start)
            assert file.read(size) == content[start : start + size]
        file.seek(5)
        assert file.read() == content[5:]
    storage.write(f"{prefix}/empty", b"")
    with storage.open_file(f"{prefix}/empty") as file:
        assert (file.size(), file.read()) == (0, b"")


def test_open_file_parquet_footer_is_one_request(store: Store, prefix: str) -> None:
    table = pa.table({"id": [str(number) for number in range(1000)], "mask": [secrets.token_bytes(300)] * 1000})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, use_dictionary=False, row_group_size=100)
    storage.write(f"{prefix}/part.parquet", buffer.getvalue().to_pybytes())
    store.proxy.reset()
    with storage.open_file(f"{prefix}/part.parquet") as file:
        assert pq.read_metadata(file).num_rows == 1000
    assert store.proxy.requests == {"GET": 1}
    with storage.open_file(f"{prefix}/part.parquet") as file:
        assert pq.read_table(file) == table


def test_write_large_object_is_a_multipart_upload(store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_MULTIPART_BYTES", 2**20)
    content = secrets.token_bytes(17 * 2**20)
    storage.write(f"{prefix}/large", content)
    assert store.proxy.requests["PUT"] == 3 and store.proxy.requests["POST"] == 2
    assert storage.read(f"{prefix}/large") == content


def test_create_three_writers_race_only_one_succeeds(store: Store, prefix: str) -> None:
    for race in range(3):
        start, outcomes = threading.Barrier(3), []

        def write(content: bytes, race: int = race, start: threading.Barrier = start, to: list = outcomes) -> None:
            start.wait()
            try:
                storage.create(f"{prefix}/{race}", content, "--output")
                to.append(content)
            except InputError as error:
                to.append(str(error))

        threads = [threading.Thread(target=write, args=(bytes([number]),)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        assert winners == [storage.read(f"{prefix}/{race}")]
        told = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert len(told) == 2 and all("--output" in line and "already exists" in line for line in told)


@pytest.mark.usefixtures("quick")
def test_create_lost_answer_is_recognised_as_own(store: Store, prefix: str) -> None:
    store.proxy.reset(seed=1, lose=0.3)
    for number in range(12):
        storage.create(f"{prefix}/{number}", b"x", "--output")
    assert store.proxy.done["lose"] >= 3
    store.proxy.reset()
    with pytest.raises(InputError, match="already exists"):
        storage.create(f"{prefix}/0", b"x", "--output")


@pytest.mark.usefixtures("quick", "brief")
def test_create_and_hold_store_without_conditional_writes_existing_is_refused(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = s3_client.client().put_object

    def old_put(**given: object) -> object:
        if {"IfNoneMatch", "IfMatch"} & given.keys():
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            from botocore.exceptions import ClientError

            raise ClientError(answer, "PutObject")  # pyright: ignore[reportArgumentType]
        return put(**given)

    monkeypatch.setattr(s3_client.client(), "put_object", old_put)
    storage.create(f"{prefix}/a", b"first", "--name")
    with pytest.raises(InputError, match=r"--name: .* already exists"):
        storage.create(f"{prefix}/a", b"second", "--name")
    assert storage.read(f"{prefix}/a") == b"first"
    with hold(prefix, "--output"):
        threading.Event().wait(1)
        assert json.loads(storage.read(f"{prefix}/{files.LOCK}"))["beats"] > 0
        with pytest.raises(InputError, match="is writing there"), hold(prefix, "--output"):
            pass


@pytest.mark.usefixtures("quick")
def test_create_store_that_ignores_the_condition_existing_is_refused(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = s3_client.client().put_object
    monkeypatch.setattr(s3_client.client(), "put_object", lambda IfNoneMatch="", **given: put(**given))  # noqa: N803
    storage.create(f"{prefix}/a", b"first", "--name")
    storage.create(f"{prefix}/", b"a folder's marker", "--name")
    with pytest.raises(InputError, match=r"--name: .* already exists"):
        storage.create(f"{prefix}/a", b"second", "--name")
    assert storage.read(f"{prefix}/a") == b"first"


def test_store_404_from_a_proxy_is_not_an_empty_folder(store: Store) -> None:
    """Otherwise training would start again and delete its checkpoints."""
    store.proxy.answer = (404, "<html>no such service</html>")
    for ask in (storage.list_names, storage.read, lambda place: list(storage.list_files(place))):
        with pytest.raises(UnavailableError, match="no answer from a store, but a 404"):
            ask(f"{store.url}/runs")


@pytest.mark.usefixtures("quick")
def test_remove_folder_failed_deletions_are_retried(store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        storage.write(f"{prefix}/{name}", b"x")
    delete, asked = s3_client.client().delete_objects, []

    def refuse(Delete: dict, **given: object) -> dict:  # noqa: N803
        keys = [found["Key"] for found in Delete["Objects"]]
        asked.append(len(keys))
        delete(Delete={"Objects": [{"Key": key} for key in keys[1:]]} if keys[1:] else Delete, **given)
        return {"Errors": [{"Key": keys[0], "Code": code}]} if len(asked) < 3 else {}

    monkeypatch.setattr(s3_client.client(), "delete_objects", refuse)
    code = "SlowDown"
    storage.remove_folder(prefix)
    assert asked == [3, 1, 1] and list(storage.list_files(prefix)) == []
    storage.write(f"{prefix}/a", b"x")
    asked, code = [], "AccessDenied"
    with pytest.raises(PermissionError, match=r"access denied"):
        storage.remove_folder(prefix)


@pytest.mark.usefixtures("quick")
def test_require_writable_no_multipart_uploads_first_write_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.proxy.answer = (501, "<Error><Code>NotImplemented</Code></Error>")
    checks.require_writable(f"{store.url}/out", "--output")
    with pytest.raises(OSError, match="the store cannot do that"):
        storage.write(f"{store.url}/out/a", b"x")


def test_discover_photos_listed_but_not_readable_are_refused(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        storage.write(f"{prefix}/{number}.jpg", b"x")
    assert manifest.discover(prefix).num_rows == 3
    read = storage.read

    def denied(location: str, at_most: int | None = None) -> bytes:
        if location.endswith(tuple(closed)):
            raise PermissionError(errno.EACCES, "access denied (AccessDenied)", location)
        return read(location, at_most)

    monkeypatch.setattr(storage, "read", denied)
    closed = ["0.jpg"]
    assert manifest.discover(prefix).num_rows == 3  # a single unreadable photo becomes an error row later
    closed = [".jpg"]
    with pytest.raises(InputError, match=r"--images s3://.*: its files cannot be read: access denied .*s3:GetObject"):
        manifest.discover(prefix)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["refuse", "drop", "lose", "truncate"])
def test_store_temporary_faults_are_retried(fault: str, store: Store, prefix: str) -> None:
    store.proxy.reset(5, **{fault: 0.3})
    contents = {f"{number:02}": secrets.token_bytes(70_000) for number in range(20)}
    for name, content in contents.items():
        storage.write(f"{prefix}/{name}", content)
    assert sorted(storage.list_files(prefix)) == sorted(contents)
    names = list(contents)
    assert list(storage.read_each([f"{prefix}/{name}" for name in names])) == [contents[name] for name in names]
    storage.remove_folder(prefix)
    assert list(storage.list_files(prefix)) == []
    assert store.proxy.done[fault] > 10


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", r"/a: refused 6 times: SlowDown"),
        ("drop", r"/a: no answer: Connection was closed .*AWS_ENDPOINT_URL"),
        ("truncate", r"/a: cut short 6 times: "),
    ],
)
def test_read_each_permanent_fault_is_unavailable_error(fault: str, message: str, store: Store, prefix: str) -> None:
    storage.write(f"{prefix}/a", b"x" * 1000)
    store.proxy.reset(0, **{fault: 1.0})
    with pytest.raises(UnavailableError, match=message) as caught:
        list(storage.read_each([f"{prefix}/a"]))
    assert "\n" not in str(caught.value)
    assert store.proxy.done[fault] == 6


@pytest.mark.usefixtures("quick")
def test_read_number_of_tries_follows_aws_max_attempts(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    store.proxy.reset(refuse=1.0)
    with pytest.raises(UnavailableError, match="refused 2 times"):
        storage.read(f"{prefix}/a")


def test_read_each_missing_files_are_errors_in_their_place(store: Store, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"local")
    locations = [f"{prefix}/{number}" for number in range(40)]
    for number in range(0, 40, 2):
        storage.write(locations[number], b"%d" % number)
    found = list(storage.read_each([*locations, str(tmp_path / "local"), str(tmp_path / "missing")]))
    for number, content in enumerate(found[:40]):
        assert content == b"%d" % number if number % 2 == 0 else isinstance(content, FileNotFoundError)
    assert found[40] == b"local" and isinstance(found[41], FileNotFoundError)


def test_read_each_slow_answers_overlap(store: Store, prefix: str) -> None:
    """Sixteen answers that are half a second late arrive in far less than eight seconds."""
    for number in range(16):
        storage.write(f"{prefix}/{number}", b"x")
    store.proxy.reset(delay=1.0)
    started = time.monotonic()
    assert list(storage.read_each(f"{prefix}/{number}" for number in range(16))) == [b"x"] * 16
    assert time.monotonic() - started < 4


ANSWERS = [
    (404, "<Code>NoSuchBucket</Code>", "s3://pets: no such bucket"),
    (403, "<Code>AccessDenied</Code>", "access denied (AccessDenied)"),
    (403, "<Code>InvalidAccessKeyId</Code>", "the credentials are rejected (InvalidAccessKeyId); see AWS_PROFILE"),
    (403, "<Code>SignatureDoesNotMatch</Code>", "the credentials are rejected (SignatureDoesNotMatch)"),
    (400, "<Code>ExpiredToken</Code>", "the credentials are rejected (ExpiredToken)"),
    (
        400,
        "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>",
        "it is in another region; set AWS_REGION to eu-west-1",
    ),
    (400, "<Code>InvalidRequest</Code><Message>why not</Message>", "InvalidRequest: why not"),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("status", "xml", "message"), ANSWERS)
def test_store_s3_error_is_one_line(status: int, xml: str, message: str, store: Store) -> None:
    """Checked for listing and for `require_writable`, which come before any work."""
    store.proxy.answer = (status, f"<Error>{xml}</Error>")
    place = f"{store.url}/photos"
    for ask in (lambda: list(storage.list_files(place)), lambda: checks.require_writable(place, "--output")):
        with pytest.raises(InputError) as caught:
            ask()
        line = str(caught.value)
        assert message in line and line.count("s3://pets/photos") and "\n" not in line
        assert stores.secret_free(line, store.keys)


@pytest.mark.usefixtures("new_client")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials found; set AWS_PROFILE"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the credentials are rejected (SignatureDoesNotMatch)"),
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found; see AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "no address"}, "Invalid endpoint: no address; see AWS_PROFILE and AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://user:pass@127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "no answer: Could not connect"),
    ],
)
def test_store_invalid_aws_setting_is_one_line(
    changes: dict[str, str], message: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises((InputError, UnavailableError)) as caught:
        list(storage.list_files(f"{store.url}/photos"))
    line = str(caught.value)
    assert message in line and "\n" not in line and "user:pass" not in line
    assert stores.secret_free(line, store.keys)


@pytest.mark.usefixtures("new_client")
def test_store_aws_profile_supplies_all_settings(
    store: Store, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint, region, credentials and addressing style come from the files of the AWS tools."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\ns3 =\n    addressing_style = path\n"
    )
    keys = "\n".join(f"{name.lower()} = {key}" for name, key in store.keys.items())
    (tmp_path / "credentials").write_text(f"[lab]\n{keys}\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", *store.keys):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    storage.write(f"{prefix}/a", b"x")
    assert storage.read(f"{prefix}/a") == b"x"
    assert s3_client.client().meta.region_name == "eu-west-1"


def test_require_writable_leaves_nothing_in_the_store(store: Store, prefix: str) -> None:
    checks.require_writable(f"{prefix}/out", "--output")
    checks.require_writable(store.url, "--output")
    assert storage.list_names(prefix) == []
    assert store.proxy.requests["POST"] == store.proxy.requests["DELETE"] == 2
    uploads = s3_client.client().list_multipart_uploads(Bucket=stores.BUCKET)
    assert [upload["Key"] for upload in uploads.get("Uploads", ()) if "probe" in upload["Key"]] == []


def test_require_writable_missing_bucket_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"--output s3://nowhere/out: cannot be written: s3://nowhere: no such bucket"):
        checks.require_writable("s3://nowhere/out", "--output")


def test_arrow_store_all_operations_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """gs:// cannot be reached here. A store in memory replaces it, which pyarrow uses in the same way."""
    from fsspec.implementations.memory import MemoryFileSystem

    in_memory = pafs.SubTreeFileSystem("/", pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())))
    monkeypatch.setattr(arrow.pafs, "GcsFileSystem", lambda **_: in_memory)
    place = "gs://bucket/some"
    storage.write(f"{place}/a/b.txt", b"hello")
    assert storage.read(f"{place}/a/b.txt", at_most=5) == b"hello"
    with pytest.raises(OSError, match="more than 4 bytes"):
        storage.read(f"{place}/a/b.txt", at_most=4)
    assert list(storage.list_files(place)) == ["a/b.txt"]
    assert storage.list_names(place) == ["a"] and storage.list_names(f"{place}/x") == []
    with storage.open_file(f"{place}/a/b.txt") as file:
        assert file.size() == 5
    storage.create(f"{place}/c", b"1", "--name")
    with pytest.raises(InputError, match="already exists"):
        storage.create(f"{place}/c", b"2", "--name")
    with pytest.raises(FileNotFoundError):
        storage.read(f"{place}/none")
    checks.require_writable(place, "--output")
    for _ in range(2):
        storage.remove_file(f"{place}/c")
        storage.remove_folder(f"{place}/a")
    assert list(storage.list_files(place)) == []


@pytest.fixture(autouse=True)
def new_stores() -> Iterator[None]:
    """Forget the stores that an earlier test has created."""
    arrow.store.cache_clear()
    yield
    arrow.store.cache_clear()


def test_store_gs_uri_uses_pyarrow() -> None:
    store = arrow.store("gs", "bucket")
    assert isinstance(store, arrow.ArrowStore) and isinstance(store._filesystem, pafs.GcsFileSystem)


@pytest.mark.usefixtures("new_client")
def test_require_writable_read_only_user_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(f"{store.url}/open/a.jpg", b"x")
    storage.write(f"{store.url}/closed/a.jpg", b"x")
    s3_client._new_client.cache_clear()
    for name, key in store.reader.items():
        monkeypatch.setenv(name, key)
    assert list(storage.list_files(f"{store.url}/open")) == ["a.jpg"]
    assert storage.read(f"{store.url}/open/a.jpg") == b"x"
    with pytest.raises(InputError, match=r"--output s3://pets/open/out: cannot be written: access denied"):
        checks.require_writable(f"{store.url}/open/out", "--output")
    with pytest.raises(InputError, match=r"s3://pets/closed: cannot be listed: access denied"):
        list(storage.list_files(f"{store.url}/closed"))
    [refused] = storage.read_each([f"{store.url}/closed/a.jpg"])
    assert isinstance(refused, PermissionError) and "access denied" in str(refused)


HOLD = """
import sys
from petseg.storage.hold import hold
with hold(sys.argv[1], "--output"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times of a lease."""
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "LAPSE_S", 2.0)
    monkeypatch.setattr(lease, "_POLL_S", 0.1)


def write_lease(prefix: str) -> None:
    """Write a lease as a process on another machine does."""
    process = {"holder": "process 7 on elsewhere", "process": ["boot", "pid:[1]", 7, "1"], "beats": -1}
    storage.write(f"{prefix}/{files.LOCK}", json.dumps(process).encode())


def test_hold_second_process_is_refused_at_once_and_a_killed_one_is_followed_at_once(store: Store, prefix: str) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, prefix], **pipes) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with (
                pytest.raises(InputError, match=f"--output {prefix}: process {other.pid} on .*, since .* is writing"),
                hold(prefix, "--output"),
            ):
                pass
        finally:
            other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, but still in /proc
        started = time.monotonic()
        with hold(prefix, "--output"):
            assert time.monotonic() - started < 5
            assert storage.list_names(prefix) == [files.LOCK]
    assert storage.list_names(prefix) == []


@pytest.mark.usefixtures("brief")
def test_hold_lease_of_another_machine_is_taken_over_once_it_has_lapsed(
    store: Store, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lease(prefix)
    started = time.monotonic()
    with hold(prefix, "--output"):
        assert 1 < time.monotonic() - started < 10
    assert capsys.readouterr().out == "waiting up to 2 s to see whether process 7 on elsewhere is still there\n"
    write_lease(prefix)
    time.sleep(4)  # the store's clock counts whole seconds
    started = time.monotonic()
    with hold(prefix, "--output"):
        assert time.monotonic() - started < 1
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("brief")
def test_hold_lease_of_another_machine_that_is_renewed_is_refused(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_identity", lambda pid: ["boot of", f"machine of {threading.get_ident()}", pid, "1"])
    with hold(prefix, "--output"), ThreadPoolExecutor(1) as pool:

        def hold_too() -> None:
            with hold(prefix, "--output"):
                pass

        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing there"):
            pool.submit(hold_too).result()
        time.sleep(2.5)  # longer than a lease that is not renewed
        with pytest.raises(InputError, match="is writing there"):
            pool.submit(hold_too).result()


@pytest.mark.usefixtures("brief")
def test_hold_lease_that_another_has_taken_over_ends_the_job(store: Store, prefix: str) -> None:
    with (
        pytest.raises(JobError, match=f"--output {prefix}: process 7 on elsewhere has taken it over, because"),
        hold(prefix, "--output"),
    ):
        write_lease(prefix)
        time.sleep(20)
    assert json.loads(storage.read(f"{prefix}/{files.LOCK}"))["beats"] == -1


@pytest.mark.usefixtures("brief")
def test_hold_lease_that_is_deleted_or_renewed_twice_is_kept(store: Store, prefix: str) -> None:
    """boto3 repeats a request whose response was lost, so the store may have another ETag than this process knows."""
    location = f"{prefix}/{files.LOCK}"
    with hold(prefix, "--output"):
        storage.remove_file(location)
        time.sleep(0.5)
        entry = json.loads(storage.read(location))
        storage.write(location, json.dumps(entry | {"beats": 99}).encode())
        time.sleep(0.5)
        assert json.loads(storage.read(location))["beats"] > entry["beats"]
    assert storage.list_names(prefix) == []


@pytest.mark.usefixtures("quick", "brief")
def test_hold_store_that_does_not_answer_for_a_while_does_not_end_the_job(store: Store, prefix: str) -> None:
    pause = threading.Event()
    with hold(prefix, "--output"):
        store.proxy.answer = stores.SLOW_DOWN
        pause.wait(1)
        store.proxy.answer = None
        pause.wait(1)
    assert storage.list_names(prefix) == []
