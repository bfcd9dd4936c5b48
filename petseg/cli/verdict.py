"""Line and exit code for the error that ended a job."""

import errno

from petseg.errors import InputError, JobError, UnavailableError

DEFECT = 70
"""Exit code for a bug in petseg: EX_SOFTWARE of sysexits.h."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""

_OUT_OF_MEMORY = (
    "stopped: out of memory; use a larger machine, or lower --batch-size or --num-workers if this command has them "
    "(see --help)"
)


def verdict(error: BaseException) -> tuple[str, int]:
    """Return the line to print for the error that ended a job, and the exit code."""
    match error:
        case InputError():
            return f"error: {error}", 2
        case JobError() | UnavailableError():
            return f"stopped: {error}", 1
        case PermissionError():
            return f"error: {error.filename}: {error.strerror}; grant access to it, or choose another location", 2
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            where = error.filename or "a disk"
            return f"stopped: {where}: {error.strerror}; free some space and run the same command again", 1
        case MemoryError():
            return _OUT_OF_MEMORY, 1
        case KeyboardInterrupt(args=[_]):
            return f"interrupted; {error}", INTERRUPTED
    if is_interrupt(error):
        return "interrupted; run the same command to start over", INTERRUPTED
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = ": ".join([type(error).__name__, *lines[:1]])
    return f"defect: {what}", DEFECT


def is_interrupt(error: BaseException | None) -> bool:
    """Return True if Ctrl-C caused the error, also if the interrupted code raised another error, as an import does.

    An error that was raised `from None` has another cause.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error is not None
