"""boto3's client for S3: its connections, retries and pauses, and the meaning of its errors."""

import errno
import functools
import random
import re
import threading
from collections.abc import Iterator
from typing import Any

from petseg.errors import NoSuchPlaceError, UnavailableError

CONNECTIONS = 64
"""Maximum number of open connections from one process to S3. It is larger than the number of its threads."""

TRIES = 6
"""Attempts per request, with growing pauses, usually 15 s in all. AWS_MAX_ATTEMPTS overrides boto3's number."""

_LONGEST_WAIT_S = 20.0
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


class ConflictError(OSError):
    """Conflict of two simultaneous writes of one object."""


class NoSuchRangeError(OSError):
    """Request for a range beyond the end of the object."""


class UnsupportedError(OSError):
    """Operation that the store does not support."""


def as_os_error(response: dict[str, Any], name: str, bucket: str, is_head: bool) -> OSError | UnavailableError:
    """Return the exception for an error response of S3. `is_head` marks a HEAD request, whose 404 has no error code."""
    details = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    status, code = metadata.get("HTTPStatusCode", 0), details.get("Code", "")
    if code == "NoSuchBucket":
        return NoSuchPlaceError(f"{bucket}: no such bucket; is the name right, and AWS_ENDPOINT_URL?")
    if code in _REFUSED_CREDENTIALS:
        return NoSuchPlaceError(f"{bucket}: the credentials are rejected ({code}); see AWS_PROFILE, AWS_ACCESS_KEY_ID")
    if code in _WRONG_REGION or status == 301:
        region = details.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "its own")
        return NoSuchPlaceError(f"{bucket}: it is in another region; set AWS_REGION to {region}")
    if code == "ConditionalRequestConflict" or (code == "OperationAborted" and status == 409):
        return ConflictError(errno.EAGAIN, "another write of it is under way", name)
    if status == 416:
        return NoSuchRangeError(errno.EINVAL, "it is shorter", name)
    if status == 412:
        return FileExistsError(errno.EEXIST, "it already exists", name)
    if status == 501:
        return UnsupportedError(errno.ENOSYS, "the store cannot do that", name)
    if code in ("NoSuchKey", "NoSuchUpload", "NoSuchVersion") or (status == 404 and is_head):
        return FileNotFoundError(errno.ENOENT, "no such object", name)
    if status == 404:  # from a server in front of S3, such as a proxy
        return UnavailableError(f"{name}: no answer from a store, but a 404; see AWS_ENDPOINT_URL")
    if status == 403:
        return PermissionError(errno.EACCES, f"access denied ({code})", name)
    if status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling", "RequestLimitExceeded"):
        return UnavailableError(f"{name}: refused {1 + metadata.get('RetryAttempts', 0)} times: {code or status}")
    return OSError(errno.EIO, f"{code or status}: {details.get('Message', 'no reason given')}", name)


def without_secrets(error: Exception) -> str:
    """Return the error message in one line, with passwords in addresses removed."""
    return re.sub(r"(://)\S*@", r"\1", " ".join(str(error).split()))


def pauses() -> Iterator[float]:
    """Yield the seconds to wait after each of `TRIES` attempts.

    They are random, so that a thousand clients do not retry at the same moment. The last one is 0.
    """
    for number in range(TRIES - 1):
        yield random.uniform(0, min(_LONGEST_WAIT_S, 2.0**number))
    yield 0.0


_client_lock = threading.Lock()


def client() -> Any:
    """Return the process's only boto3 client for S3. Raises `NoSuchPlaceError` if its settings are invalid."""
    with _client_lock:  # creating clients is not thread-safe
        return _new_client()


@functools.cache
def _new_client() -> Any:
    import boto3
    import botocore.exceptions
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    try:
        tries = {} if session.get_config_variable("max_attempts") else {"total_max_attempts": TRIES}
        config = Config(
            max_pool_connections=CONNECTIONS, connect_timeout=10, read_timeout=60, retries=tries, tcp_keepalive=True
        )
        # Parsing modification times, which petseg does not use, would take a third of the time of a listing.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=lambda text: text)
        return boto3.Session(botocore_session=session).client("s3", config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:  # an unknown profile or an invalid endpoint
        raise NoSuchPlaceError(f"s3://: {without_secrets(error)}; see AWS_PROFILE and AWS_ENDPOINT_URL") from error
