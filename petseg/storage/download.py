"""Download of a published file: resumed, retried, and checked by its MD5. It does not unpack archives."""

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from petseg.errors import InputError, JobError
from petseg.progress import Progress

TRIES = 6
"""Consecutive attempts without progress before giving up. An interrupted attempt that brought new bytes resets it."""

FIRST_PAUSE_S = 1.0
"""Pause in seconds after the first failed attempt. Each further pause is twice as long."""

TIMEOUT_S = 60.0
"""Seconds without a byte after which an attempt is given up."""

_CHUNK_BYTES = 2**17
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class _CutOffError(Exception):
    """Temporary failure of the network or the server, worth another attempt."""


def fetch(url: str, file: Path, md5: str) -> None:
    """Download `url` to `file`. Resume from `file.part` if an earlier start has left it.

    The file appears complete or not at all. Raises `InputError`, naming --url, if the server rejects the request, for
    instance because there is no such file. Raises `JobError` if the network fails repeatedly, if the download has
    another MD5 (it is then deleted), or if the disk fails.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        if file.exists() and _md5(file) == md5:
            return
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(url, part)
        actual = _md5(part)
        if actual != md5:
            part.unlink()
            raise JobError(
                f"{url}: the download has the MD5 {actual} instead of {md5} and was removed; run the same command "
                "again, or give another --url"
            )
        part.replace(file)
    except OSError as error:
        raise JobError(f"--cache {file.parent}: {error.filename or part}: {error.strerror or error}") from error


def _fetch_part(url: str, part: Path) -> None:
    """Download into `part` until it is complete, with a pause after each failed attempt."""
    failed, most = 0, _size(part)
    while True:
        try:
            _try(url, part)
            return
        except _CutOffError as error:
            failed = failed + 1 if _size(part) <= most else 1
            most = max(most, _size(part))
            if failed == TRIES:
                raise JobError(
                    f"{url}: {error} ({TRIES} tries); run the same command again to continue, or give another --url"
                ) from error
            pause_s = FIRST_PAUSE_S * 2 ** (failed - 1)
            print(f"{part.stem}: {error}; trying again in {pause_s:.0f} s", flush=True)
        time.sleep(pause_s)


def _try(url: str, part: Path) -> None:
    """Append the missing bytes to `part`, or download it from the start if the server does not support ranges."""
    have = _size(part)
    headers = {"User-Agent": "petseg"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the opener has http and https only
    try:
        response = _opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # no bytes are missing; the MD5 check follows
        if error.code in _PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _CutOffError(f"HTTP {error.code} {error.reason}") from error
        raise InputError(f"--url: {url}: HTTP {error.code} {error.reason}; give the folder of the archives") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(_reason(error)) from error
    with response:
        goes_on = response.status == HTTPStatus.PARTIAL_CONTENT
        if goes_on and not (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
            raise _CutOffError(f"the server sent {response.headers['Content-Range']}, not the requested range")
        with part.open("ab" if goes_on else "wb") as file:
            _receive(response, file, part.stem, have if goes_on else 0)


def _receive(response: http.client.HTTPResponse, file: BinaryIO, name: str, have: int) -> None:
    missing = response.length  # None where the server does not say
    progress = missing and Progress(have + missing, have, 0, sys.stdout, unit=("MB", 10**6), name=f"{name}: ")
    try:
        while chunk := _read(response):
            file.write(chunk)
            if progress:
                progress.add(len(chunk))
    finally:
        if progress:
            progress.close()
    if response.length:  # http.client treats a connection that is cut as the end of the file
        raise _CutOffError(f"the connection was cut, {response.length} bytes before the end")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes. Reading is separate from writing, because both fail with `OSError`."""
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(_reason(error)) from error


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener like urllib's default, with proxies and redirects, but without file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
