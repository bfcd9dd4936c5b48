"""A published file from the web, whole or not at all: resumed, tried again, checked by its MD5. No archives here."""

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
"""In a row that bring nothing; one that was cut off, but brought something, does not count."""

FIRST_PAUSE_S = 1.0
"""After the first try that fails; each pause is twice the one before."""

TIMEOUT_S = 60.0
"""Without a byte, before a try is given up."""

_CHUNK_BYTES = 2**17
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class _CutOffError(Exception):
    """The network or the server failed in a way that may pass."""


def fetch(url: str, file: Path, md5: str) -> None:
    """Download `url` to `file`, or go on with what an earlier start has left in `file.part`.

    Raises `InputError`, naming --url, where the server says that there is no such file; `JobError` where the network
    fails again and again, where what arrived has another MD5 (it is removed), and where the disk fails.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        if file.exists() and _md5(file) == md5:
            return
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(url, part)
        found = _md5(part)
        if found != md5:
            part.unlink()
            raise JobError(
                f"{url}: what arrived has the MD5 {found}, not {md5}; it is removed. Give the same command again, or "
                "another --url"
            )
        part.replace(file)
    except OSError as error:
        raise JobError(f"--cache {file.parent}: {error.filename or part}: {error.strerror or error}") from error


def _fetch_part(url: str, part: Path) -> None:
    """Try until `part` has all that the server has."""
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
                    f"{url}: {error} ({TRIES} tries); give the same command again to go on, or another --url"
                ) from error
            pause_s = FIRST_PAUSE_S * 2 ** (failed - 1)
            print(f"{part.stem}: {error}; trying again in {pause_s:.0f} s", flush=True)
        time.sleep(pause_s)


def _try(url: str, part: Path) -> None:
    """Append what is missing in `part`; from its beginning where the server cannot go on in the middle."""
    have = _size(part)
    headers = {"User-Agent": "petseg"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the opener has http and https only
    try:
        response = _opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # there is no more; whether it is right, the MD5 will say
        if error.code in _PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _CutOffError(f"HTTP {error.code} {error.reason}") from error
        raise InputError(f"--url: {url}: HTTP {error.code} {error.reason}; give the folder of the archives") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(_reason(error)) from error
    with response:
        goes_on = response.status == HTTPStatus.PARTIAL_CONTENT
        if goes_on and not (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
            raise _CutOffError(f"the server sent {response.headers['Content-Range']}, not what was asked for")
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
    if response.length:  # http.client takes a connection that ends early for the end of the file
        raise _CutOffError(f"the connection was cut, {response.length} bytes before the end")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes: apart from the writing, since both fail with `OSError`."""
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOffError(_reason(error)) from error


def _opener() -> urllib.request.OpenerDirector:
    """As urllib's own, proxies and redirects included, but without file:, ftp: and data:."""
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
