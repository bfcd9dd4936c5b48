"""S3, and all that speaks its language, through boto3: one bucket as a store of whole objects. Only `objects` uses it.

S3 has a code of its own because pyarrow asks twice for every file (a HEAD before each GET), holds a whole listing at
once, and knows neither the write that fails where something is there already nor which error means what. boto3 does,
and finds region, endpoint, addressing style and credentials where the AWS tools do.
"""

import errno
import functools
import io
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pyarrow as pa

from petseg.errors import NoSuchPlaceError, UnavailableError
from petseg.storage import s3_client
from petseg.storage.s3_client import ConflictError, NoSuchRangeError, UnsupportedError

_TAIL_BYTES = 2**17
"""What the first request of a file opened for reading here and there brings: the footer of a Parquet file, mostly."""

_MULTIPART_BYTES = 64 * 2**20
"""Larger contents are put in parts, which become an object once they are all there."""


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
                s3_client.client().put_object(Bucket=self._bucket, Key=path, Body=content)
            else:
                s3_client.client().upload_fileobj(io.BytesIO(content), self._bucket, path)

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
        put = functools.partial(
            s3_client.client().put_object, Bucket=self._bucket, Key=path, Body=content, Metadata=mark
        )
        for pause in s3_client.pauses():
            try:
                with self._errors(path):
                    put(IfNoneMatch="*")
                return
            except ConflictError:  # another's put of it is under way; by the next look it has happened, or not
                time.sleep(pause)
            except FileExistsError:
                # It may be ours: put, though the answer was lost, and put again by boto3.
                if self._head(path).get("Metadata") != mark:
                    raise
                return
            except UnsupportedError:
                with self._errors(path):
                    put()
                return
        raise UnavailableError(f"{self._name(path)}: others keep writing it")

    def remove_file(self, path: str) -> None:
        """Delete an object; no error where there is none."""
        with self._errors(path):
            s3_client.client().delete_object(Bucket=self._bucket, Key=path)

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
        with suppress(UnsupportedError):
            with self._errors(folder):
                upload = s3_client.client().create_multipart_upload(**place)
            with suppress(FileNotFoundError), self._errors(folder):  # its answer was lost, and it was asked again
                s3_client.client().abort_multipart_upload(**place, UploadId=upload["UploadId"])

    def _delete(self, keys: list[str]) -> None:
        """Delete at most 1,000 objects. What fails of them comes in a good answer, which boto3 does not try again."""
        refusal = {}
        for pause in s3_client.pauses():
            if not keys:
                return
            wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            with self._errors(keys[0]):
                refusals = s3_client.client().delete_objects(Bucket=self._bucket, Delete=wanted).get("Errors", ())
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
        for pause in s3_client.pauses():
            try:
                with self._errors(path):
                    response = s3_client.client().get_object(Bucket=self._bucket, Key=path, **ranged)
                size = int(response.get("ContentRange", f"/{response['ContentLength']}").rpartition("/")[2])
                with closing(response["Body"]) as body:
                    if at_most is not None and size > at_most:
                        raise OSError(errno.EFBIG, f"it has more than {at_most} bytes", self._name(path))
                    return body.read(), size
            except cut_short as error:  # boto3 has the headers by then, and tries no more
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
        """boto3's errors as those that a file system has."""
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
    """An object as a file: each read is a request for so many bytes, but what the first has brought."""

    def __init__(self, get: Any) -> None:
        self._get = get
        try:
            self._tail, self._size = get(f"bytes=-{_TAIL_BYTES}")
        except NoSuchRangeError:  # not even a first byte
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
