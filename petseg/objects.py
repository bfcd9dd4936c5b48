"""Object stores: S3, and all that speaks its language, through boto3; Google's through pyarrow. Only `storage` uses it.

S3 has a code of its own because pyarrow asks twice for every file (a HEAD before each GET), holds a whole listing at
once, and knows neither the write that fails where something is there already nor which error means what. boto3 does,
and finds region, endpoint, addressing style and credentials where the AWS tools do.
"""

import datetime
import errno
import functools
import io
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from petseg.config import NoSuchPlaceError, UnavailableError

CONNECTIONS = 64
"""Of one process to S3 at a time: more than its threads."""

_TRIES = 6
"""Of each request, with longer and longer waits between them: 15 s in all, as a rule. AWS_MAX_ATTEMPTS changes it."""

_LONGEST_WAIT_S = 20.0
_GOOGLE_LIMIT = datetime.timedelta(minutes=1)
_TAIL_BYTES = 2**17
"""What the first request of a file opened for reading here and there brings: the footer of a Parquet file, mostly."""

_MULTIPART_BYTES = 64 * 2**20
"""Larger contents are put in parts, which become an object once they are all there."""

_REFUSED_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_WRONG_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}


class S3Store:
    """One bucket. Paths are keys, without a slash at either end; a folder is what has its path and a slash before it.

    Every method raises `FileNotFoundError` where there is no such object, `PermissionError` where access is denied,
    `UnavailableError` where nothing answers, `NoSuchPlaceError` (which is one, too) where the bucket is missing or the
    credentials are refused, and `OSError` else.
    """

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def list_files(self, folder: str) -> Iterator[str]:
        """The path below `folder` of every object in it, a page of 1,000 at a time."""
        start = f"{folder}/" if folder else ""
        for page in self._pages(Prefix=start):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # some tools leave empty objects for folders
                    yield found["Key"][len(start) :]

    def list_names(self, folder: str) -> list[str]:
        """The names of the objects and folders directly in `folder`."""
        start = f"{folder}/" if folder else ""
        names = []
        for page in self._pages(Prefix=start, Delimiter="/"):
            names += [found["Key"][len(start) :] for found in page.get("Contents", ())]
            names += [found["Prefix"][len(start) : -1] for found in page.get("CommonPrefixes", ())]
        return [name for name in names if name]

    def read(self, path: str, at_most: int | None = None) -> bytes:
        """The whole content of an object; `OSError` where it has more than `at_most` bytes, before they are read."""
        return self._get(path, at_most=at_most)[0]

    def open_file(self, path: str) -> pa.NativeFile:
        """An object for reading here and there."""
        return pa.PythonFile(_Ranges(functools.partial(self._get, path)), mode="r")

    def write(self, path: str, content: bytes) -> None:
        """Put an object, in place of one that may be there; it appears complete or not at all."""
        with self._errors(path):
            if len(content) <= _MULTIPART_BYTES:
                _client().put_object(Bucket=self._bucket, Key=path, Body=content)
            else:
                _client().upload_fileobj(io.BytesIO(content), self._bucket, path)

    def create(self, path: str, content: bytes) -> None:
        """Put an object that must not be there yet: of two that try, one gets `FileExistsError`.

        It is looked for first, as a store may not know conditional writes, and then not say so.
        """
        # By listing: who may get and list what is below a prefix is denied a HEAD of what is not there.
        for page in self._pages(Prefix=path):
            if any(found["Key"] == path for found in page.get("Contents", ())):
                raise FileExistsError(errno.EEXIST, "it is there already", self._name(path))
            break
        mark = {"petseg-writer": uuid.uuid4().hex}
        put = functools.partial(_client().put_object, Bucket=self._bucket, Key=path, Body=content, Metadata=mark)
        for pause in _pauses():
            try:
                with self._errors(path):
                    put(IfNoneMatch="*")
                return
            except _ConflictError:  # another's put of it is under way; by the next look it has happened, or not
                time.sleep(pause)
            except FileExistsError:
                # It may be ours: put, though the answer was lost, and put again by boto3.
                if self._head(path).get("Metadata") != mark:
                    raise
                return
            except _UnsupportedError:
                with self._errors(path):
                    put()
                return
        raise UnavailableError(f"{self._name(path)}: others keep writing it")

    def remove_file(self, path: str) -> None:
        """Delete an object; no error where there is none."""
        with self._errors(path):
            _client().delete_object(Bucket=self._bucket, Key=path)

    def remove_folder(self, path: str) -> None:
        """Delete all below a folder, the objects that stand for empty folders included."""
        for page in self._pages(Prefix=f"{path}/"):
            self._delete([found["Key"] for found in page.get("Contents", ())])

    def require_writable(self, folder: str) -> None:
        """Raise as the others do where nothing can be put into `folder`; nothing appears there.

        An upload in parts is begun, for which one needs what one needs for a put, and called off. A store that has no
        such thing is told by the first write.
        """
        place = {"Bucket": self._bucket, "Key": f"{folder}/.petseg-probe" if folder else ".petseg-probe"}
        with suppress(_UnsupportedError):
            with self._errors(folder):
                upload = _client().create_multipart_upload(**place)
            with suppress(FileNotFoundError), self._errors(folder):  # its answer was lost, and it was asked again
                _client().abort_multipart_upload(**place, UploadId=upload["UploadId"])

    def _delete(self, keys: list[str]) -> None:
        """Delete at most 1,000 objects. What fails of them comes in a good answer, which boto3 does not try again."""
        refusal = {}
        for pause in _pauses():
            if not keys:
                return
            wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            with self._errors(keys[0]):
                refusals = _client().delete_objects(Bucket=self._bucket, Delete=wanted).get("Errors", ())
            for refusal in refusals:
                if refusal["Code"] == "AccessDenied":
                    raise PermissionError(errno.EACCES, "access denied (AccessDenied)", self._name(refusal["Key"]))
            keys = [refusal["Key"] for refusal in refusals]
            if keys:
                time.sleep(pause)
        if keys:
            raise UnavailableError(f"{self._name(keys[0])}: cannot be deleted: {refusal.get('Code')}")

    def _get(self, path: str, wanted: str | None = None, at_most: int | None = None) -> tuple[bytes, int]:
        """The bytes of the range `wanted`, or all, and the size of the whole object."""
        from botocore import exceptions as boto

        cut_short = (
            boto.FlexibleChecksumError,
            boto.IncompleteReadError,
            boto.ReadTimeoutError,
            boto.ResponseStreamingError,
        )
        ranged = {} if wanted is None else {"Range": wanted}
        reason = ""
        for pause in _pauses():
            try:
                with self._errors(path):
                    response = _client().get_object(Bucket=self._bucket, Key=path, **ranged)
                size = int(response.get("ContentRange", f"/{response['ContentLength']}").rpartition("/")[2])
                with closing(response["Body"]) as body:
                    if at_most is not None and size > at_most:
                        raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", self._name(path))
                    return body.read(), size
            except cut_short as error:  # boto3 has the headers by then, and tries no more
                reason = _without_secrets(error)
                time.sleep(pause)
        raise UnavailableError(f"{self._name(path)}: cut short {_TRIES} times: {reason}")

    def _head(self, path: str) -> dict[str, Any]:
        with self._errors(path):
            return _client().head_object(Bucket=self._bucket, Key=path)

    def _pages(self, **which: str) -> Iterator[dict[str, Any]]:
        pages = iter(_client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **which))
        while True:
            with self._errors(which["Prefix"]):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _name(self, path: str) -> str:
        return f"s3://{self._bucket}/{path}"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """boto3's errors as those that a file system has."""
        from botocore import exceptions as boto

        name = self._name(path)
        try:
            yield
        except boto.ClientError as error:
            is_head = error.operation_name == "HeadObject"
            raise _as_os_error(error.response, name, f"s3://{self._bucket}", is_head) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise NoSuchPlaceError(
                f"s3://{self._bucket}: no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give the machine a role"
            ) from error
        except (boto.ConnectionError, boto.HTTPClientError) as error:
            raise UnavailableError(f"{name}: no answer: {_without_secrets(error)}; see AWS_ENDPOINT_URL") from error
        except boto.BotoCoreError as error:
            raise UnavailableError(f"{name}: {_without_secrets(error)}") from error


class _ConflictError(OSError):
    """Two writes of one object at a time."""


class _NoSuchRangeError(OSError):
    """The object is shorter."""


class _UnsupportedError(OSError):
    """The store has no such operation."""


def _as_os_error(response: dict[str, Any], name: str, bucket: str, is_head: bool) -> OSError:
    """What the answer of S3, other than the one that was wanted, means."""
    told = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    status, code = metadata.get("HTTPStatusCode", 0), told.get("Code", "")
    if code == "NoSuchBucket":
        return NoSuchPlaceError(f"{bucket}: no such bucket; is the name right, and AWS_ENDPOINT_URL?")
    if code in _REFUSED_CREDENTIALS:
        return NoSuchPlaceError(f"{bucket}: the credentials are refused ({code}); see AWS_PROFILE or AWS_ACCESS_KEY_ID")
    if code in _WRONG_REGION or status == 301:
        region = told.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "its own")
        return NoSuchPlaceError(f"{bucket}: it is in another region; set AWS_REGION to {region}")
    if code == "ConditionalRequestConflict" or (code == "OperationAborted" and status == 409):
        return _ConflictError(errno.EAGAIN, "another write of it is under way", name)
    if status == 416:
        return _NoSuchRangeError(errno.EINVAL, "it is shorter", name)
    if status == 412:
        return FileExistsError(errno.EEXIST, "it is there already", name)
    if status == 501:
        return _UnsupportedError(errno.ENOSYS, "the store cannot do that", name)
    if code in ("NoSuchKey", "NoSuchUpload", "NoSuchVersion") or (status == 404 and is_head):
        return FileNotFoundError(errno.ENOENT, "no such object", name)
    if status == 404:  # not from S3, but from what stands before it
        return UnavailableError(f"{name}: no answer from a store, but a 404; see AWS_ENDPOINT_URL")
    if status == 403:
        return PermissionError(errno.EACCES, f"access denied ({code})", name)
    if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling", "RequestLimitExceeded"):
        return UnavailableError(f"{name}: refused {1 + metadata.get('RetryAttempts', 0)} times: {code or status}")
    return OSError(errno.EIO, f"{code or status}: {told.get('Message', 'no reason given')}", name)


def _without_secrets(error: Exception) -> str:
    """One line; an address in it that has a password is shown without."""
    return re.sub(r"(://)\S*@", r"\1", " ".join(str(error).split()))


def _pauses() -> Iterator[float]:
    """Seconds to wait after each of `_TRIES`: random, so that a thousand clients do not come back at once."""
    for number in range(_TRIES - 1):
        yield random.uniform(0, min(_LONGEST_WAIT_S, 2.0**number))
    yield 0.0


_client_lock = threading.Lock()


def _client() -> Any:
    with _client_lock:  # to make two at once is not safe
        return _new_client()


@functools.cache
def _new_client() -> Any:
    import boto3
    import botocore.exceptions
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    try:
        tries = {} if session.get_config_variable("max_attempts") else {"total_max_attempts": _TRIES}
        config = Config(
            max_pool_connections=CONNECTIONS, connect_timeout=10, read_timeout=60, retries=tries, tcp_keepalive=True
        )
        # A listing spends a third of its time on reading when each file was changed, which nobody asks here.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=lambda text: text)
        return boto3.Session(botocore_session=session).client("s3", config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:  # a profile that there is not, a bad endpoint
        raise NoSuchPlaceError(f"s3://: {_without_secrets(error)}; see AWS_PROFILE and AWS_ENDPOINT_URL") from error


class _Ranges(io.RawIOBase):
    """An object as a file: each read is a request for so many bytes, but what the first has brought."""

    def __init__(self, get: Any) -> None:
        self._get = get
        try:
            self._tail, self._size = get(f"bytes=-{_TAIL_BYTES}")
        except _NoSuchRangeError:  # not even a first byte
            self._tail, self._size = b"", 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        tail_begins = self._size - len(self._tail)
        if self._at >= tail_begins:
            found = self._tail[self._at - tail_begins : end - tail_begins]
        else:
            found, _ = self._get(f"bytes={self._at}-{end - 1}")
        self._at += len(found)
        return found


class ArrowStore:
    """A bucket of another kind (gs://), as pyarrow knows it. Its methods are those of `S3Store`."""

    def __init__(self, scheme: str, bucket: str) -> None:
        self._place = f"{scheme}://{bucket}"
        self._bucket = bucket
        try:
            if scheme in ("gs", "gcs"):
                self._filesystem = pafs.GcsFileSystem(retry_time_limit=_GOOGLE_LIMIT)  # of itself, a quarter of an hour
            else:
                self._filesystem = pafs.FileSystem.from_uri(self._place)[0]
        except (OSError, pa.ArrowException) as error:
            raise NoSuchPlaceError(f"{self._place}: cannot be opened: {_without_secrets(error)}") from error

    def list_files(self, folder: str) -> Iterator[str]:
        path = self._path(folder)
        with self._errors(folder):
            infos = self._filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
        for info in infos:
            if info.type == pafs.FileType.File:
                yield info.path[len(path) + 1 :]

    def list_names(self, folder: str) -> list[str]:
        with self._errors(folder):
            infos = self._filesystem.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True))
        return [info.base_name for info in infos]

    def read(self, path: str, at_most: int | None = None) -> bytes:
        with self._errors(path), self._filesystem.open_input_file(self._path(path)) as file:
            if at_most is not None and file.size() > at_most:
                raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", path)
            return file.read()

    def open_file(self, path: str) -> pa.NativeFile:
        with self._errors(path):
            return self._filesystem.open_input_file(self._path(path))

    def write(self, path: str, content: bytes) -> None:
        with self._errors(path), self._filesystem.open_output_stream(self._path(path)) as stream:
            stream.write(content)

    def create(self, path: str, content: bytes) -> None:
        """Looks first: two within the same moment both pass."""
        if self._exists(path):
            raise FileExistsError(errno.EEXIST, "it is there already", f"{self._place}/{path}")
        self.write(path, content)

    def remove_file(self, path: str) -> None:
        if self._exists(path):
            with self._errors(path):
                self._filesystem.delete_file(self._path(path))

    def remove_folder(self, path: str) -> None:
        for below in self.list_files(path):
            self.remove_file(f"{path}/{below}")

    def require_writable(self, folder: str) -> None:
        """The first write will tell."""

    def _exists(self, path: str) -> bool:
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
                raise  # pyarrow numbers those that it knows
            if "PERMISSION_DENIED" in str(error):
                raise PermissionError(errno.EACCES, "access denied", f"{self._place}/{path}") from error
            raise UnavailableError(f"{self._place}/{path}: {_without_secrets(error)}") from error


Store = S3Store | ArrowStore


@functools.cache
def store(scheme: str, bucket: str) -> Store:
    """The store that a URI begins with. Raises `NoSuchPlaceError` where there is none of that scheme."""
    return S3Store(bucket) if scheme == "s3" else ArrowStore(scheme, bucket)
