"""Errors that a job shows without a traceback. `cli` turns each into one line and an exit code."""


class InputError(ValueError):
    """Invalid user input. The message is one line that names the file or flag and says how to fix it.

    A job prints that line and exits with code 2. Code raises this error for invalid input only; an unexpected
    exception of another type is a bug in petseg.
    """


class JobError(Exception):
    """Job failure on valid input: the job prints one line and exits with code 1."""


class UnavailableError(Exception):
    """Failure of a whole storage: it does not answer, or rejects every request.

    The requested file is not the cause, so the error says nothing about that file. It is therefore no `OSError`: code
    that turns the `OSError` of a file into a row's error lets this one through. The message is one line that names the
    location, and the fix where there is one.
    """


class NoSuchPlaceError(UnavailableError, InputError):
    """Storage that rejects every request until the user corrects the bucket, the credentials or the region."""


STORAGE_ERRORS = (OSError, UnavailableError)
"""Errors of a request to storage, for code to which it does not matter whose fault it is."""
