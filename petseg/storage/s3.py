"""S3 and compatible stores through boto3: one bucket as a store of whole objects. Only `arrow` imports `S3Store`.

S3 does not go through pyarrow, for four reasons. pyarrow sends two requests for every file (a HEAD before each GET),
keeps a whole listing in memory, has no write that fails if the object exists, and does not tell the errors apart.
boto3 does better in all four. It also finds region, endpoint, addressing style and credentials where the AWS tools do.
"""

import errno
import functools
import io
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any

import pyarrow as pa

from petseg.errors import NoSuchPlaceError, UnavailableError
from petseg.storage import s3_client
from petseg.storage.s3_client import ConflictError, NoSuchRangeError, UnsupportedError

_TAIL_BYTES = 2**17
"""Bytes at the end of a file that are fetched when it is opened. They usually hold the footer of a Parquet file."""

_MULTIPART_BYTES = 64 * 2**20
"""Size in bytes above which content is uploaded in parts. The object appears once all parts have arrived."""


class S3Store:
    """One S3 bucket. A path is a key without a slash at either end; a folder is the prefix of its path plus a slash.

    Every method raises `FileNotFoundError` if the object does not exist, `PermissionError` if access is denied,
    `UnavailableError` if the store does not answer, `NoSuchPlaceError` (a subclass of it) if the bucket is missing or
    the credentials are rejected, and otherwise `OSError`.
    """

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def list_files(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield (path relative to `folder`, version) of every object in it. One request lists 1,000 objects."""
        start = f"{folder}/" if folder else ""
        for page in self._pages(Prefix=start):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # some tools create empty objects as folders
                    yield item["Key"][len(start) :], item.get("ETag", "")

    def list_names(self, folder: str) -> list[str]:
        """Return the names of the objects and folders directly in `folder`."""
        start = f"{folder}/" if folder else ""
        names = []
        for page in self._pages(Prefix=start, Delimiter="/"):
            names += [item["Key"][len(start) :] for item in page.get("Contents", ())]
            names += [item["Prefix"][len(start) : -1] for item in page.get("CommonPrefixes", ())]
        return [name for name in names if name]

    def read(self, path: str, at_most: int | None = None) -> bytes:
        """Return the content of an object. Raises `OSError` before reading if it has more than `at_most` bytes."""
        return self._get(path, at_most=at_most)[0]

    def open_file(self, path: str) -> pa.NativeFile:
        """Open an object for random access."""
        return pa.PythonFile(_Ranges(functools.partial(self._get, path)), mode="r")

    def write(self, path: str, content: bytes) -> None:
        """Write or replace an object atomically."""
        with self._errors(path):
            if len(content) <= _MULTIPART_BYTES:
                s3_client.client().put_object(Bucket=self._bucket, Key=path, Body=content)
            else:
                s3_client.client().upload_fileobj(io.BytesIO(content), self._bucket, path)

    def read_tagged(self, path: str) -> tuple[bytes, str, float]:
        """Return the content of a small object, its ETag, and its age in seconds by the store's own clock."""
        with self._errors(path):
            response = s3_client.client().get_object(Bucket=self._bucket, Key=path)
            with closing(response["Body"]) as body:
                content = body.read()
        headers = response["ResponseMetadata"]["HTTPHeaders"]
        now, written = (parsedate_to_datetime(headers[name]) for name in ("date", "last-modified"))
        return content, response["ETag"], (now - written).total_seconds()

    def replace(self, path: str, content: bytes, etag: str) -> str:
        """Replace an object that still has this ETag, and return the new one. Raises `FileExistsError` if it has not.

        A store without conditional writes replaces it in any case.
        """
        put = functools.partial(s3_client.client().put_object, Bucket=self._bucket, Key=path, Body=content)
        try:
            with self._errors(path):
                return put(IfMatch=etag)["ETag"]
        except ConflictError as error:
            raise FileExistsError(errno.EEXIST, "another write of it is under way", self._name(path)) from error
        except UnsupportedError:
            with self._errors(path):
                return put()["ETag"]

    def create(self, path: str, content: bytes) -> str:
        """Write an object that must not exist yet, and return its ETag. If two processes try, one gets
        `FileExistsError`.

        The object is looked up first, because a store without conditional writes may ignore the condition silently.
        """
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "it already exists", self._name(path))
        mark = {"petseg-writer": uuid.uuid4().hex}
        put = functools.partial(
            s3_client.client().put_object, Bucket=self._bucket, Key=path, Body=content, Metadata=mark
        )
        for pause in s3_client.pauses():
            try:
                with self._errors(path):
                    return put(IfNoneMatch="*")["ETag"]
            except ConflictError:  # another process is writing it; the next attempt shows the outcome
                time.sleep(pause)
            except FileExistsError:
                # The object may be ours: boto3 repeats a write whose response was lost.
                there = self._head(path)
                if there.get("Metadata") != mark:
                    raise
                return there["ETag"]
            except UnsupportedError:
                with self._errors(path):
                    return put()["ETag"]
        raise UnavailableError(f"{self._name(path)}: others keep writing it")

    def exists(self, path: str) -> bool:
        """Return True if there is an object at `path`."""
        # List instead of HEAD: with access limited to a prefix, a HEAD of a missing object is denied.
        page = next(self._pages(Prefix=path), {})
        return any(item["Key"] == path for item in page.get("Contents", ()))

    def remove_file(self, path: str) -> None:
        """Delete an object. Do nothing if it does not exist."""
        with self._errors(path):
            s3_client.client().delete_object(Bucket=self._bucket, Key=path)

    def remove_folder(self, path: str) -> None:
        """Delete all objects below a folder, including those that represent empty folders."""
        for page in self._pages(Prefix=f"{path}/"):
            self._delete([item["Key"] for item in page.get("Contents", ())])

    def require_writable(self, folder: str) -> None:
        """Raise the same errors as the other methods if `folder` is not writable. Creates no object.

        The check starts a multipart upload, which needs the same permission as a write, and aborts it. If the store has
        no multipart uploads, only the first write shows a missing permission.
        """
        place = {"Bucket": self._bucket, "Key": f"{folder}/.petseg-probe" if folder else ".petseg-probe"}
        with suppress(UnsupportedError):
            with self._errors(folder):
                upload = s3_client.client().create_multipart_upload(**place)
            with suppress(FileNotFoundError), self._errors(folder):  # boto3 repeats a request whose response was lost
                s3_client.client().abort_multipart_upload(**place, UploadId=upload["UploadId"])

    def _delete(self, keys: list[str]) -> None:
        """Delete at most 1,000 objects.

        S3 reports failures for single objects in a successful response, which boto3 does not retry.
        """
        failure = {}
        for pause in s3_client.pauses():
            if not keys:
                return
            wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            with self._errors(keys[0]):
                failures = s3_client.client().delete_objects(Bucket=self._bucket, Delete=wanted).get("Errors", ())
            for failure in failures:
                if failure["Code"] == "AccessDenied":
                    raise PermissionError(errno.EACCES, "access denied (AccessDenied)", self._name(failure["Key"]))
            keys = [failure["Key"] for failure in failures]
            if keys:
                time.sleep(pause)
        if keys:
            raise UnavailableError(f"{self._name(keys[0])}: cannot be deleted: {failure.get('Code')}")

    def _get(self, path: str, wanted: str | None = None, at_most: int | None = None) -> tuple[bytes, int]:
        """Return the bytes of the HTTP range `wanted` (or all bytes) and the size of the whole object."""
        from botocore import exceptions as boto

        cut_short = (
            boto.FlexibleChecksumError,
            boto.IncompleteReadError,
            boto.ReadTimeoutError,
            boto.ResponseStreamingError,
        )
        ranged = {} if wanted is None else {"Range": wanted}
        reason = ""
        for pause in s3_client.pauses():
            try:
                with self._errors(path):
                    response = s3_client.client().get_object(Bucket=self._bucket, Key=path, **ranged)
                size = int(response.get("ContentRange", f"/{response['ContentLength']}").rpartition("/")[2])
                with closing(response["Body"]) as body:
                    if at_most is not None and size > at_most:
                        raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", self._name(path))
                    return body.read(), size
            except cut_short as error:  # boto3 does not retry after it has received the headers
                reason = s3_client.without_secrets(error)
                time.sleep(pause)
        raise UnavailableError(f"{self._name(path)}: cut short {s3_client.TRIES} times: {reason}")

    def _head(self, path: str) -> dict[str, Any]:
        with self._errors(path):
            return s3_client.client().head_object(Bucket=self._bucket, Key=path)

    def _pages(self, **which: str) -> Iterator[dict[str, Any]]:
        pages = iter(s3_client.client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **which))
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
        """Turn errors of boto3 into the `OSError`s that the class describes."""
        from botocore import exceptions as boto

        name = self._name(path)
        try:
            yield
        except boto.ClientError as error:
            is_head = error.operation_name == "HeadObject"
            raise s3_client.as_os_error(error.response, name, f"s3://{self._bucket}", is_head) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise NoSuchPlaceError(
                f"s3://{self._bucket}: no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give the machine a role"
            ) from error
        except (boto.ConnectionError, boto.HTTPClientError) as error:
            raise UnavailableError(
                f"{name}: no answer: {s3_client.without_secrets(error)}; see AWS_ENDPOINT_URL"
            ) from error
        except boto.BotoCoreError as error:
            raise UnavailableError(f"{name}: {s3_client.without_secrets(error)}") from error


class _Ranges(io.RawIOBase):
    """Read-only file of an object. Each read is a ranged request, unless the tail fetched on opening has the bytes."""

    def __init__(self, get: Any) -> None:
        self._get = get
        try:
            self._tail, self._size = get(f"bytes=-{_TAIL_BYTES}")
        except NoSuchRangeError:  # the object is empty
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
            data = self._tail[self._at - tail_begins : end - tail_begins]
        else:
            data, _ = self._get(f"bytes={self._at}-{end - 1}")
        self._at += len(data)
        return data
