"""Start or join Ray. Knows nothing of the jobs."""

import atexit
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions

import petseg
from petseg.cluster import memory, ray_compat
from petseg.errors import InputError, JobError

_PACKAGE_PARENT = Path(petseg.__file__).parent.parent
_SHORT_PARENT = "/tmp"  # noqa: S108 - a new folder in it, with a random name
_MAX_FOLDER_BYTES = 43
_START_S = 30.0
"""Maximum seconds until the first worker process has imported our modules. It takes 1 to 3."""


def connect(*, debug: bool = False) -> None:
    """Join the cluster in RAY_ADDRESS or the one started on this machine, else start a local Ray without a dashboard.

    With `debug`, Ray's own logs stay visible. Raises `InputError` if the address is invalid, or if the cluster does not
    answer or has another version.
    """
    address = _find_address()
    # Logs of Ray and its workers would bury our output. Errors still reach the driver as exceptions.
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:  # a Ray that runs already has its own
        settings["_system_config"] = ray_compat.IDLE_WORKER_CONFIG
        settings |= _short_folders()
    try:
        # Ray puts the working folder first into the workers' import path. There, a `petseg` or a `numpy.py` of the user
        # would replace ours, so the workers get the folder that this process imports `petseg` from.
        with _uninterrupted() if address is None else contextlib.nullcontext(), contextlib.chdir(_PACKAGE_PARENT):
            ray.init(**settings)
    except RuntimeError as error:
        versions = ray_compat.parse_version_mismatch(error)
        if versions is None:
            raise
        raise _other_version(os.environ.get("RAY_ADDRESS") or str(address), versions) from error
    ray_compat.limit_memory_retries(memory.MAX_KILLS - 1)
    if address is None:
        _require_workers()
    ray_compat.divert_native_stderr(f"petseg-{os.getpid()}.err")
    if not debug:
        ray_compat.replace_worker_log_printer(memory.note_printer())
    silence_logs(debug)


def _short_folders() -> dict[str, str]:
    """Return the settings of a local Ray that give it a short folder if the temporary folder's path is too long.

    The path of a Unix socket has at most 107 bytes, and Ray adds up to 64 to its folder's. Ray's large files stay in
    the temporary folder. Raises `InputError` if there is no short folder.
    """
    usual = ray_compat.temporary_folder()
    if len(os.fsencode(usual)) <= _MAX_FOLDER_BYTES:
        return {}
    try:
        short = tempfile.mkdtemp(prefix="petseg-", dir=_SHORT_PARENT)
    except OSError as error:
        raise InputError(
            f"TMPDIR {usual}: its path is too long for Ray, and {_SHORT_PARENT} is not writable ({error.strerror}); "
            f"set RAY_TMPDIR to a folder with a path of at most {_MAX_FOLDER_BYTES - len('/ray')} bytes"
        ) from error

    def remove() -> None:
        ray.shutdown()
        shutil.rmtree(short, ignore_errors=True)

    atexit.register(remove)
    return {"_temp_dir": short, "object_spilling_directory": usual}


@ray.remote(num_cpus=0, max_retries=2)  # a worker may be killed by chance, for lack of memory perhaps
def _import_package() -> None:
    import numpy  # noqa: F401
    from PIL import Image  # noqa: F401

    from petseg import storage  # noqa: F401


def _require_workers() -> None:
    """Start a worker of a local Ray. Raises `JobError` if none starts, or if the memory is full already.

    Ray itself would try again for ever.
    """
    try:
        ray.get(_import_package.remote(), timeout=_START_S)
    except ray.exceptions.GetTimeoutError:
        reason = f"none has started within {_START_S:g} seconds"
    except ray.exceptions.OutOfMemoryError as error:
        usage = memory.usage(ray_compat.parse_memory_kill(str(error)))
        raise JobError(
            f"the memory of this machine is full ({usage}), so Ray ended its first process; end other programs, or use "
            "a machine with more memory"
        ) from error
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else repr(error)
    else:
        return
    raise JobError(
        f"Ray's worker processes do not start: {reason}; see {ray_compat.log_folder()}, and check PYTHONPATH, free "
        "memory and the limits on processes (ulimit -u)"
    )


def _find_address() -> str | None:
    """Return host:port of the cluster to join, or None to start a local Ray."""
    given = os.environ.get("RAY_ADDRESS", "")
    try:
        # Not "ray://…", Ray Client: Ray Train does not support a driver outside the cluster. Not "auto" and other
        # words: Ray would join any cluster that runs on this machine, also that of an unrelated job.
        if given and not re.fullmatch(r"[^:/]+:\d+|\[[^\]/]+\]:\d+", given):
            raise ValueError(given)
        address = ray_compat.find_address()
        host, _, port = (address or "").rpartition(":")
        answers = address is None or _answers(host, int(port))
    except (ValueError, socket.gaierror) as error:
        raise InputError(
            f"RAY_ADDRESS {given}: a cluster's host:port is expected; from outside it, use `ray job submit`"
        ) from error
    if not answers:
        raise InputError(
            f"no Ray answers at {given or address}; start it there, or unset RAY_ADDRESS (and run `ray stop` where "
            "one has crashed) to start a local one"
        )
    return address


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the end of the `with` block, because a partly started Ray leaves processes behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _other_version(address: str, versions: list[str]) -> InputError:
    """Return the error for a cluster with other versions of Ray or Python: the cluster's two, then ours."""
    there_ray, there_python, here_ray, here_python = versions
    return InputError(
        f"the Ray at {address} has version {there_ray} on Python {there_python}, and this environment {here_ray} on "
        f"Python {here_python}; install the same here, hand the job over with `ray job submit`, or unset RAY_ADDRESS"
    )


def _answers(host: str, port: int) -> bool:
    """Return True if a server listens at the address. Ray itself would try for four minutes, with many warnings."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def silence_logs(debug: bool = False) -> None:
    """Hide the progress bars and logs of Ray's libraries in this process, which runs a job.

    Without `debug`, this also hides the tracebacks that they log for exceptions which reach the driver anyway.
    """
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR if debug else logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
