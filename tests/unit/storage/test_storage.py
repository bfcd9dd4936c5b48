import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from petseg import storage
from petseg.errors import InputError
from petseg.storage import checks


def test_absolute_local_paths_and_uris_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("a/../b/") == f"{tmp_path}/b"
    assert storage.absolute("~/photos") == "/home/someone/photos"
    assert storage.absolute(f"file://{tmp_path}/b") == f"{tmp_path}/b"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.is_local(storage.absolute("b"))
    assert not storage.is_local("s3://bucket/a")


@pytest.mark.parametrize(
    "location", ["s3://key:secret@bucket/a", "s3:///a", "s3://", "s3://bucket/a?access_key=secret", "gs://user@bucket"]
)
def test_absolute_uri_without_bucket_or_with_credentials_is_refused(location: str) -> None:
    with pytest.raises(InputError, match="scheme://bucket/prefix is expected") as caught:
        storage.absolute(location)
    assert "secret" not in str(caught.value)


def test_absolute_key_with_parent_folder_is_refused() -> None:
    with pytest.raises(InputError, match=r"s3://bucket/a/\.\./c: a key with \. or \.\."):
        storage.absolute("s3://bucket/a/../c")


def test_absolute_file_uri_is_decoded(tmp_path: Path) -> None:
    assert storage.absolute(f"FILE://{tmp_path}/a%20b") == f"{tmp_path}/a b"


def test_list_files_skips_pipes_and_lists_dangling_links(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "link-to-pipe.jpg").symlink_to("pipe.jpg")
    assert list(storage.list_files(str(tmp_path))) == ["gone.jpg"]


def test_create_existing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = storage.join(str(tmp_path), "new", "file")
    storage.create(location, b"first", "--name")

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    for _ in range(2):  # the second time as on a file system without hard links
        with pytest.raises(InputError, match=r"--name: .*file"):
            storage.create(location, b"second", "--name")
        monkeypatch.setattr(os, "link", no_links)
    assert storage.read(location) == b"first"
    storage.create(location + "2", b"third", "--name")
    assert storage.list_names(str(tmp_path / "new")) == ["file", "file2"]


def test_list_files_subfolders_are_listed_hidden_files_skipped(tmp_path: Path) -> None:
    for name in ("a.jpg", "b/c.jpg", "b/d/e.txt", ".DS_Store", "b/._c.jpg", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "circle").symlink_to(tmp_path, target_is_directory=True)
    skipped: Counter[str] = Counter()
    assert sorted(storage.list_files(str(tmp_path), skipped)) == ["a.jpg", "b/c.jpg", "b/d/e.txt"]
    assert skipped == {"hidden": 3, "link to a folder that contains it": 1}


def test_list_files_links_to_folders_are_followed_except_in_a_circle(tmp_path: Path) -> None:
    for name in ("photos/a/1.jpg", "elsewhere/2.jpg", "elsewhere/deep/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "c").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "photos")
    skipped: Counter[str] = Counter()
    found = sorted(storage.list_files(str(tmp_path / "photos"), skipped))
    assert found == ["a/1.jpg", "b/2.jpg", "b/deep/3.jpg", "c/3.jpg"]
    assert skipped == {"link to a folder that contains it": 1}


def test_list_files_file_or_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("file", "it is a file; give the folder that contains it"), ("missing", "no such folder")):
        with pytest.raises(InputError, match=f"{name}: {reason}"):
            list(storage.list_files(str(tmp_path / name)))


def test_list_names_missing_folder_is_empty(tmp_path: Path) -> None:
    assert storage.list_names(str(tmp_path / "missing")) == []
    (tmp_path / "file").touch()
    assert storage.list_names(str(tmp_path / "file")) == []
    with pytest.raises(InputError, match="cannot be listed"):
        storage.list_names(str(tmp_path / ("x" * 300)))


def test_write_replaces_content_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    location = storage.join(str(tmp_path), "deep", "file")
    storage.write(location, b"first", scratch=str(tmp_path))
    storage.write(location, b"second", scratch=str(tmp_path))
    assert storage.read(location) == b"second"
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "file"]


def test_write_full_disk_old_content_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = storage.join(str(tmp_path), "file")
    storage.write(location, b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(location, b"second")
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
    assert storage.read(location) == b"first"


def test_remove_folder_given_first_file_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for name in ("commit", "other"):
        (tmp_path / "a" / name).touch()

    def halt(_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(storage.shutil, "rmtree", halt)
    with pytest.raises(InterruptedError):
        storage.remove_folder(str(tmp_path / "a"), first="commit")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_write_folder_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(storage.join(str(tmp_path), "whole"), {"a": b"1", "b": b"2"})
    assert storage.list_names(str(tmp_path / "whole")) == ["a", "b"]

    written = []

    def full_at_the_second(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        storage.write_folder(storage.join(str(tmp_path), "half"), {"a": b"1", "b": b"2"})
    assert storage.list_names(str(tmp_path)) == ["whole"]


def test_remove_leftovers_only_temporary_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed before it cleans up leaves a temporary file."""
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    storage.write(storage.join(str(tmp_path), "killed"), b"half")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "good").touch()
    storage.remove_leftovers(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_remove_folder_twice_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    storage.remove_folder(str(tmp_path / "a"))
    storage.remove_folder(str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_read_file_above_limit_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="more than 1000 bytes"):
        storage.read(str(tmp_path / "large"), at_most=1000)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    assert storage.read(str(tmp_path / "small"), at_most=1000) == b"x" * 1000


def test_remove_empty_folders_keeps_folders_with_files(tmp_path: Path) -> None:
    for folder in ("masks/a/b", "masks/c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "masks" / "c" / "file").touch()
    storage.remove_empty_folders(str(tmp_path / "masks"))
    storage.remove_empty_folders(str(tmp_path / "nowhere"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "masks",
        "masks/c",
        "masks/c/file",
    ]


def test_remove_file_missing_file_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for _ in range(2):
        storage.remove_file(str(tmp_path / "a"))
        storage.remove_file(str(tmp_path / "no" / "folder"))
    assert list(tmp_path.iterdir()) == []


def test_flush_folders_each_local_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    storage.flush_folders([str(tmp_path), "s3://bucket/folder"])
    assert flushed == [tmp_path]


def test_require_writable_creates_nothing(tmp_path: Path) -> None:
    checks.require_writable(str(tmp_path / "new" / "deep"), "--output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--output .*/file/out: .*/file is not a folder"):
        checks.require_writable(str(tmp_path / "file" / "out"), "--output")


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may write anywhere")
def test_require_writable_no_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission to write in"):
        checks.require_writable(str(tmp_path / "out"), "--output")
    tmp_path.chmod(0o700)


def test_list_files_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="nosuch://bucket: cannot be opened"):
        list(storage.list_files("nosuch://bucket/prefix"))


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/a", False),
        ("/runs", True),
        ("/mnt/efs", False),
        ("/mnt/efs/deep/file", False),
        ("/mnt/efs2/file", True),
        ("/mnt/my disk/file", False),
        ("/mnt/bucket/file", False),
        ("/mnt/efs/scratch/file", True),
        ("/twice/file", False),
    ],
)
def test_is_own_disk_network_file_system_is_not_own(
    location: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:40 / /mnt/efs rw shared:2 - nfs4 server:/ rw
24 22 0:41 / /mnt/my\\040disk rw - cifs //server/share rw
25 22 0:42 / /mnt/bucket rw - fuse.juicefs JuiceFS rw
26 23 8:2 / /mnt/efs/scratch rw - xfs /dev/sdb rw
27 22 8:3 / /twice rw - ext4 /dev/sdc rw
28 27 0:43 / /twice rw master:1 shared:3 - lustre server:/ rw
"""
    monkeypatch.setattr(Path, "read_text", lambda path: mounts if str(path) == "/proc/self/mountinfo" else "")
    monkeypatch.setattr(os.path, "realpath", lambda path: path)
    assert checks.is_own_disk(location) is expected
