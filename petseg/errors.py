"""What a job tells its user instead of a traceback. `cli` makes one line and an exit code of each."""


class InputError(ValueError):
    """What the user gave is wrong: the message is one line that names the file or flag, and the remedy.

    A job turns it, and nothing else, into that line and exit code 2. Any other exception is a defect of ours.
    """


class JobError(Exception):
    """A job that cannot go on, though what the user gave was right: one line, and exit code 1."""


class UnavailableError(OSError):
    """Storage that does not answer, or refuses everything: no fault of the one file that was asked for, so it says
    nothing of that. The message is one line that names the place, and the remedy where there is one.
    """


class NoSuchPlaceError(UnavailableError, InputError):
    """Storage that refuses everything until the user mends what he gave: the bucket, the credentials, the region."""
