"""Object stores: S3 through `s3`, Google's and others through pyarrow. Only `storage` imports this module."""

import datetime
import errno
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs

from petseg.errors import NoSuchPlaceError, UnavailableError
from petseg.storage.s3 import S3Store
from petseg.storage.s3_client import without_secrets

_GOOGLE_LIMIT = datetime.timedelta(minutes=1)


class ArrowStore:
    """Bucket of a store other than S3 (such as gs://), through pyarrow. It has the same methods as `S3Store`."""

    def __init__(self, scheme: str, bucket: str) -> None:
        self._place = f"{scheme}://{bucket}"
        self._bucket = bucket
        try:
            if scheme in ("gs", "gcs"):
                self._filesystem = pafs.GcsFileSystem(retry_time_limit=_GOOGLE_LIMIT)  # default: 15 minutes
            else:
                self._filesystem = pafs.FileSystem.from_uri(self._place)[0]
        except (OSError, pa.ArrowException) as error:
            raise NoSuchPlaceError(f"{self._place}: cannot be opened: {without_secrets(error)}") from error

    def list_files(self, folder: str) -> Iterator[tuple[str, str]]:
        """Do as `S3Store.list_files`."""
        path = self._path(folder)
        with self._errors(folder):
            infos = self._filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
        for info in infos:
            if info.type == pafs.FileType.File:
                yield info.path[len(path) + 1 :], f"{info.size}-{info.mtime_ns or 0}"

    def list_names(self, folder: str) -> list[str]:
        """Do as `S3Store.list_names`."""
        with self._errors(folder):
            infos = self._filesystem.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True))
        return [info.base_name for info in infos]

    def read(self, path: str, at_most: int | None = None) -> bytes:
        """Do as `S3Store.read`."""
        with self._errors(path), self._filesystem.open_input_file(self._path(path)) as file:
            if at_most is not None and file.size() > at_most:
                raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", path)
            return file.read()

    def open_file(self, path: str) -> pa.NativeFile:
        """Do as `S3Store.open_file`."""
        with self._errors(path):
            return self._filesystem.open_input_file(self._path(path))

    def write(self, path: str, content: bytes) -> None:
        """Do as `S3Store.write`."""
        with self._errors(path), self._filesystem.open_output_stream(self._path(path)) as stream:
            stream.write(content)

    def create(self, path: str, content: bytes) -> None:
        """Write an object if it does not exist. Two processes at the same moment can both pass the check for it."""
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "it already exists", f"{self._place}/{path}")
        self.write(path, content)

    def remove_file(self, path: str) -> None:
        """Do as `S3Store.remove_file`."""
        if self.exists(path):
            with self._errors(path):
                self._filesystem.delete_file(self._path(path))

    def remove_folder(self, path: str) -> None:
        """Do as `S3Store.remove_folder`."""
        for below, _ in self.list_files(path):
            self.remove_file(f"{path}/{below}")

    def require_writable(self, folder: str) -> None:
        """Do nothing: only the first write shows a missing permission."""

    def exists(self, path: str) -> bool:
        """Do as `S3Store.exists`."""
        with self._errors(path):
            return self._filesystem.get_file_info(self._path(path)).type != pafs.FileType.NotFound

    def _path(self, path: str) -> str:
        return f"{self._bucket}/{path}" if path else self._bucket

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
                raise  # pyarrow sets errno on errors that it recognises
            if "PERMISSION_DENIED" in str(error):
                raise PermissionError(errno.EACCES, "access denied", f"{self._place}/{path}") from error
            raise UnavailableError(f"{self._place}/{path}: {without_secrets(error)}") from error


Store = S3Store | ArrowStore


@functools.cache
def store(scheme: str, bucket: str) -> Store:
    """Return the store for a bucket. Raises `NoSuchPlaceError` if the scheme is unknown or it cannot be opened."""
    return S3Store(bucket) if scheme == "s3" else ArrowStore(scheme, bucket)
