"""Status of a job from its first phase to its exit code: in status.json, and in the last line of a JSON log."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from petseg.cli.json_log import log_event
from petseg.cli.verdict import INTERRUPTED, verdict
from petseg.status import End, JobStatus


@contextlib.contextmanager
def report_status(job: str, folder: str, is_held: Callable[[], bool]) -> Iterator[JobStatus]:
    """Report the status of a job while the `with` block runs, and how it ended.

    `job` is the command, `folder` its output, and `is_held` the value of `hold`.
    """
    status, started = JobStatus(job, folder, is_held), time.monotonic()

    def end(phase: End, code: int, reason: str = "") -> None:
        status.end(phase, code, reason)
        last = dataclasses.asdict(status.get())
        values = {name: last[name] for name in ("done", "failed", "total", "unit")}
        seconds = round(time.monotonic() - started, 3)
        log_event("end", phase=phase, exit_code=code, reason=reason, output=folder, **values, seconds=seconds)

    try:
        yield status
    except (Exception, KeyboardInterrupt) as error:
        line, code = verdict(error)
        if code == INTERRUPTED:
            end("stopped", code, "interrupted")
        else:
            end("stopped" if code == 1 else "failed", code, line.partition(": ")[2])
        raise
    except SystemExit as error:  # Ray's answer to SIGTERM, which `ray job stop` and Kubernetes send
        end("stopped", error.code if isinstance(error.code, int) else 1, "terminated")
        raise
    end("finished", 0)
