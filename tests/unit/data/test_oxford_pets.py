"""Small archives in the published format, from a web server on this machine."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webserver
from conftest import ROOT, RunJob, assert_refused
from PIL import Image
from webserver import Server

from petseg import storage
from petseg.data import manifest, oxford_pets
from petseg.data.classes import read_classes
from petseg.errors import InputError, JobError

Files = dict[str, bytes]


def archive(files: Files, *others: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Return a .tar.gz of files and of other members."""
    buffer = io.BytesIO()
    members = [(tarfile.TarInfo(name), content) for name, content in files.items()]
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, content in [*members, *others]:
            member.size = member.size or len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def png(value: int, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def published(drawn: tuple[Path, Path]) -> tuple[Files, Files]:
    """Images and annotations: 12 pairs, of which 8 are usable, and the other files of the archives."""
    photos = {path.stem: path.read_bytes() for path in sorted(drawn[0].iterdir())[:12]}
    trimaps = {name: (drawn[1] / f"{name}.png").read_bytes() for name in photos}
    picture = Image.open(io.BytesIO(photos["pet_0001"]))
    gif = io.BytesIO()
    picture.save(gif, "GIF")
    photos["pet_0001"] = gif.getvalue()
    photos["pet_0002"] = photos["pet_0002"][:2000]
    trimaps["pet_0003"] = png(2, Image.open(io.BytesIO(photos["pet_0003"])).size)
    trimaps["pet_0004"] = png(2, (9, 9))
    del trimaps["pet_0005"], photos["pet_0006"]
    images = {f"images/{name}.jpg": content for name, content in photos.items()} | {"images/pet_0000.mat": b"matlab"}
    annotations = {
        "annotations/README": b"text",
        "annotations/trainval.txt": b"pet_0000 1 1 1\n",
        "annotations/test.txt": b"pet_0001 1 1 1\n",
        "annotations/xmls/pet_0000.xml": b"<annotation/>",
        **{f"annotations/trimaps/{name}.png": content for name, content in trimaps.items()},
        "annotations/trimaps/._pet_0000.png": b"Mac OS X",
    }
    return images, annotations


SKIPPED = {
    "pet_0002": "its photo: OSError: image file is truncated",
    "pet_0004": "its mask: its size 9 × 9 differs",
    "pet_0005": "it has no trimap",
    "pet_0006": "it has no photo",
}
ODD = {"pet_0001": "its photo is a GIF", "pet_0003": "its mask is blank: one class everywhere"}


@pytest.fixture
def cache(tmp_path: Path, published: tuple[Files, Files], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with both archives."""
    (tmp_path / "cache").mkdir()
    for name, files in zip(("images", "annotations"), published, strict=True):
        (tmp_path / "cache" / f"{name}.tar.gz").write_bytes(archive(files))
    md5s = {path.name: md5(path.read_bytes()) for path in (tmp_path / "cache").iterdir()}
    monkeypatch.setattr(oxford_pets, "MD5S", md5s)
    return tmp_path / "cache"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tree(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_unpack_usable_pairs_lists_and_summary_are_written(
    cache: Path, published: tuple[Files, Files], tmp_path: Path
) -> None:
    output = tmp_path / "pets"
    found = oxford_pets.unpack(cache, str(output))
    assert found.pairs == 8 and found.warnings == ODD
    assert found.skipped.keys() == SKIPPED.keys()
    assert all(found.skipped[name].startswith(reason) for name, reason in SKIPPED.items())
    kept = [f"pet_{index:04d}" for index in (0, 1, 3, 7, 8, 9, 10, 11)]
    written = tree(output)
    assert json.loads(written.pop("oxford-pets.json")) == {
        "pairs": 8,
        "left_out": found.skipped,
        "odd": found.warnings,
        "md5": oxford_pets.MD5S,
    }
    assert read_classes(str(output / "masks")) == oxford_pets.CLASSES
    del written["masks/classes.json"]
    images, annotations = published
    assert written == {
        **{f"images/{name}.jpg": images[f"images/{name}.jpg"] for name in kept},
        **{f"masks/{name}.png": annotations[f"annotations/trimaps/{name}.png"] for name in kept},
        "trainval.txt": b"pet_0000 1 1 1\n",
        "test.txt": b"pet_0001 1 1 1\n",
    }
    assert manifest.discover(f"{output}/images", f"{output}/masks")["id"].to_pylist() == kept


def test_finished_missing_file_or_other_version_is_not_finished(cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "pets"
    assert oxford_pets.finished(str(output)) is None
    found = oxford_pets.unpack(cache, str(output))
    assert oxford_pets.finished(str(output)) == found
    (output / "masks" / "pet_0000.png").unlink()
    assert oxford_pets.finished(str(output)) is None
    before = tree(output)
    assert oxford_pets.unpack(cache, str(output)) == found
    assert tree(output).keys() - before.keys() == {"masks/pet_0000.png"}
    oxford_pets.MD5S["images.tar.gz"] = "of another version"
    assert oxford_pets.finished(str(output)) is None
    (output / "oxford-pets.json").write_text('{"pairs": 8}')
    with pytest.raises(InputError, match=r"oxford-pets.json: was it edited\? Delete it"):
        oxford_pets.finished(str(output))


@pytest.mark.parametrize("writes", [0, 1, 9, 16, 17, 18])
def test_unpack_interrupted_second_run_writes_the_same_files(
    writes: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oxford_pets.unpack(cache, str(tmp_path / "whole"))
    write, left = storage.write, iter(range(writes))

    def write_some(*arguments: str) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)  # pyright: ignore[reportArgumentType]

    output = tmp_path / "pets"
    with monkeypatch.context() as patched:
        patched.setattr(storage, "write", write_some)
        with pytest.raises(KeyboardInterrupt):
            oxford_pets.unpack(cache, str(output))
    assert oxford_pets.finished(str(output)) is None
    (output / "images").mkdir(exist_ok=True, parents=True)
    (output / ".petseg-tmp-of-a-kill").write_bytes(b"half")
    (output / "images" / "pet_0002.jpg").write_bytes(b"written by a petseg that could use it")
    oxford_pets.unpack(cache, str(output))
    assert tree(output) == tree(tmp_path / "whole")


def test_unpack_output_with_other_files_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "pets" / "masks").mkdir(parents=True)
    (tmp_path / "pets" / "masks" / "mine.png").touch()
    with pytest.raises(InputError, match=r"--output .*/masks/mine.png is not of the dataset; choose another folder"):
        oxford_pets.unpack(cache, str(tmp_path / "pets"))
    assert list(tree(tmp_path / "pets")) == ["masks/mine.png"]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    ("evil", "reason"),
    [
        (member("images/../../evil.jpg"), "is not to be trusted"),
        (member("images/../images/pet_0099.jpg"), "leads out of the folder"),
        (member("/images/pet_0099.jpg"), "leads out of the folder"),
        (member("images/pet_0099.jpg", tarfile.SYMTYPE, "/etc/passwd"), "is not to be trusted"),
        (member("images/pet_0099.jpg", tarfile.SYMTYPE, "pet_0000.jpg"), "is neither a file nor a folder"),
        (member("images/pet_0099.jpg", tarfile.LNKTYPE, "../../secret"), "is not to be trusted"),
        (member("images/pet_0099.jpg", tarfile.LNKTYPE, "images/pet_0000.jpg"), "is neither a file nor a folder"),
        (member("images/pet_0099.jpg", tarfile.CHRTYPE), "is not to be trusted"),
        (member("images/pet_0099.jpg", tarfile.FIFOTYPE), "is not to be trusted"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.name}-{value.type.decode()}-{value.linkname}",
)
@pytest.mark.parametrize("name", ["images", "annotations"])
def test_unpack_malicious_member_nothing_is_written(
    name: str, evil: tarfile.TarInfo, reason: str, cache: Path, published: tuple[Files, Files], tmp_path: Path
) -> None:
    content = archive(published[name == "annotations"], (evil, b""))
    (cache / f"{name}.tar.gz").write_bytes(content)
    with pytest.raises(JobError) as caught:
        oxford_pets.unpack(cache, str(tmp_path / "pets"))
    message = str(caught.value)
    assert message.startswith(f"{cache}/{name}.tar.gz: {evil.name!r} {reason}"), message
    assert message.endswith("; nothing is unpacked. Is this the dataset?")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_unpack_member_or_total_above_limit_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:  # its header declares 64 MB and a byte; there is no content
        tar.addfile(member("images/pet_0099.jpg", size=oxford_pets.MAX_MEMBER_BYTES + 1))
    (cache / "images.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(JobError, match=r"'images/pet_0099.jpg' has 67108865 bytes, .* more than the dataset"):
        oxford_pets.unpack(cache, str(tmp_path / "pets"))
    (cache / "images.tar.gz").write_bytes(archive({f"images/pet_000{i}.jpg": b"x" * 100 for i in range(3)}))
    monkeypatch.setattr(oxford_pets, "MAX_TOTAL_BYTES", 250)
    with pytest.raises(JobError, match=r"'images/pet_0002.jpg' has 100 bytes, 300 with those before it: more than"):
        oxford_pets.unpack(cache, str(tmp_path / "pets"))


def test_unpack_duplicate_name_is_refused(cache: Path, tmp_path: Path) -> None:
    twice = member("images/pet_0000.jpg")
    (cache / "images.tar.gz").write_bytes(archive({"images/pet_0000.jpg": b"a"}, (twice, b"b")))
    with pytest.raises(JobError, match=r"images.tar.gz: pet_0000 occurs twice"):
        oxford_pets.unpack(cache, str(tmp_path / "pets"))


@pytest.mark.parametrize("spoil", [lambda content: content[:-300], lambda content: b"text", lambda content: b""])
def test_unpack_invalid_archive_is_refused_in_one_line(
    spoil: Callable[[bytes], bytes], cache: Path, tmp_path: Path
) -> None:
    file = cache / "annotations.tar.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(JobError, match=r"annotations.tar.gz: cannot be unpacked: .*; delete it and run"):
        oxford_pets.unpack(cache, str(tmp_path / "pets"))
    file.write_bytes(archive({"README": b"text"}))
    with pytest.raises(JobError, match="no photo with a trimap in the archives"):
        oxford_pets.unpack(cache, str(tmp_path / "pets"))


def test_unpack_real_pairs_unusual_are_kept_invalid_are_skipped(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [pets / "bad", pets / "full"]
    for name, folder, inside in (("images", "images", "images"), ("annotations", "trimaps", "annotations/trimaps")):
        files = {f"{inside}/{p.name}": p.read_bytes() for source in sources for p in (source / folder).iterdir()}
        (tmp_path / f"{name}.tar.gz").write_bytes(archive(files))
    found = oxford_pets.unpack(tmp_path, str(tmp_path / "pets"))
    assert found.warnings == {
        "Abyssinian_34": "its photo is a GIF; its mask is blank: one class everywhere",
        "Abyssinian_5": "its photo is a PNG",
    }
    assert found.skipped.keys() == {"Egyptian_Mau_162", "Egyptian_Mau_165", "Egyptian_Mau_196"}
    assert found.skipped["Egyptian_Mau_162"] == ("its mask: its size 3264 × 2448 differs from its photo's 2048 × 1536")


class TestJob:
    """The job from its command line, with the small archives' MD5s instead of the published ones."""

    @pytest.fixture
    def server(self, cache: Path) -> Iterator[Server]:
        with webserver.serve() as server:
            server.files = {f"/data/{path.name}": path.read_bytes() for path in cache.iterdir()}
            yield server

    def command(self, url: str, *flags: str) -> list[str]:
        code = f"""
import runpy, sys
from petseg.data import oxford_pets
from petseg.storage import download
oxford_pets.MD5S = {oxford_pets.MD5S!r}
download.FIRST_PAUSE_S = 0.01
sys.argv = ["prepare.py", "oxford-pets", "--output", "pets", "--cache", "archives", "--url", {url!r}, *{flags!r}]
runpy.run_path({str(ROOT / "jobs" / "prepare.py")!r}, run_name="__main__")
"""
        return [sys.executable, "-c", code]

    def run(self, folder: Path, url: str, *flags: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            self.command(url, *flags), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    def test_job_server_faults_are_retried_and_second_run_does_nothing(self, server: Server, tmp_path: Path) -> None:
        server.faults = ["", webserver.BUSY, webserver.CUT]
        done = self.run(tmp_path, f"{server.address}/data/")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert "images.tar.gz: HTTP 503 Service Unavailable; trying again in 0 s" in lines
        report = lines.index(
            f"the archives are kept in {tmp_path}/archives; 8 pairs, 4 skipped, 2 warnings: {tmp_path}/pets"
        )
        assert lines[report - 1].startswith("10/10 images  100%") and "2 failed" in lines[report - 1]
        said = lines[report + 1 : -1]
        assert [line.split(": ")[:2] for line in said] == [
            *[["  skipped", name] for name in SKIPPED],
            *[["  warning", name] for name in ODD],
        ]
        assert (
            lines[-1]
            == f"next: python {ROOT}/jobs/train.py --images {tmp_path}/pets/images --masks {tmp_path}/pets/masks"
        )

        asked = len(server.asked)
        (tmp_path / "pets" / "masks" / "classes.json").unlink()  # as earlier versions left it
        again = self.run(tmp_path, f"{server.address}/data/")
        assert again.returncode == 0
        assert read_classes(str(tmp_path / "pets" / "masks")) == oxford_pets.CLASSES
        assert again.stdout.startswith("already finished; nothing to do; 8 pairs, 4 skipped, 2 warnings: ")
        assert again.stdout.splitlines()[1:] == lines[report + 1 :]
        assert len(server.asked) == asked

    def test_job_killed_at_each_stage_ends_with_the_same_files(
        self, server: Server, cache: Path, tmp_path: Path
    ) -> None:
        oxford_pets.unpack(cache, str(tmp_path / "whole"))
        for moment in ("archives/annotations.tar.gz", "archives/images.tar.gz", "pets/images", "pets/masks"):
            command = self.command(f"{server.address}/data")
            process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
            while process.poll() is None and not (tmp_path / moment).exists():
                time.sleep(0.001)
            process.kill()
            process.wait()
        assert self.run(tmp_path, f"{server.address}/data").returncode == 0
        assert tree(tmp_path / "pets") == tree(tmp_path / "whole")

    def test_job_invalid_url_or_cache_is_refused(self, server: Server, tmp_path: Path, call_job: RunJob) -> None:
        for url, flags, line in (
            ("ftp://example.org", (), "error: --url ftp://example.org: give an address that begins with https://"),
            ("https:pets", (), "error: --url https:pets: give an address"),
            (f"{server.address}/other", (), f"error: --url: {server.address}/other/annotations.tar.gz: HTTP 404"),
            (f"{server.address}/data", ("--cache", "s3://bucket/cache"), "error: --cache s3://bucket/cache: must be a"),
        ):
            places = ("--output", "pets", "--cache", "archives", "--url", url)
            assert_refused(call_job("prepare", "oxford-pets", *places, *flags), line)
            assert not (tmp_path / "pets").exists()

    def test_job_python_that_cannot_check_archives_is_refused(
        self, server: Server, tmp_path: Path, call_job: RunJob, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(tarfile, "data_filter")  # as with Debian 12's Python 3.11.2
        places = ("--output", "pets", "--cache", "archives", "--url", f"{server.address}/data")
        assert_refused(call_job("prepare", "oxford-pets", *places), "needs Python 3.11.4 or later")
        assert not (tmp_path / "archives").exists()

    def test_job_archive_with_other_md5_stops_and_removes_it(self, server: Server, tmp_path: Path) -> None:
        server.files["/data/images.tar.gz"] = b"other"
        done = self.run(tmp_path, f"{server.address}/data")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"stopped: {server.address}/data/images.tar.gz: the download has the MD5 ")
        assert [path.name for path in (tmp_path / "archives").iterdir()] == ["annotations.tar.gz"]
        assert not (tmp_path / "pets").exists()


def test_unpack_check_size_shows_all_classes_of_every_generated_mask(drawn: tuple[Path, Path]) -> None:
    """Masks are checked at a reduced size. Every generated mask still shows its pet there."""
    for path in drawn[1].glob("*.png"):
        with Image.open(path) as mask:
            assert len(np.unique(np.asarray(mask.resize(oxford_pets._CHECKED_AT, Image.Resampling.NEAREST)))) == 3
