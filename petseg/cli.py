"""Flags to settings, and errors to exit codes: the edge of every job, and the only file that knows tyro."""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import tyro

from petseg.config import Config, EvaluateConfig, InputError, JobError, PredictConfig, TrainConfig, UnavailableError

JobConfigT = TypeVar("JobConfigT", TrainConfig, PredictConfig, EvaluateConfig)
AnyConfigT = TypeVar("AnyConfigT", bound=Config)


def parse(cls: type[JobConfigT], default: JobConfigT | None = None) -> JobConfigT:
    """The settings of `sys.argv`; where a flag is not given, those of `default` or of the class.

    Raises `InputError` where a value cannot be. Exits with code 2, and tyro's message, on a flag that is not known, and
    with 0 after `--help`.
    """
    return _one_line(lambda: tyro.cli(cls) if default is None else tyro.cli(cls, default=default))


def parse_subcommand(commands: Mapping[str, type[AnyConfigT]]) -> AnyConfigT:
    """As `parse`, where the first word of `sys.argv` chooses the settings class."""
    return _one_line(lambda: tyro.extras.subcommand_cli_from_dict(dict(commands)))


def _one_line(parse: Callable[[], AnyConfigT]) -> AnyConfigT:
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return parse()
    except SystemExit as exit:
        # tyro draws a box around what a settings class says of its values; ours is one line, like every other.
        cause = exit.__context__
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(boxed.getvalue())
        raise


def peek_resume() -> tuple[str, str] | None:
    """--storage and --name of `sys.argv`, where --resume is there too.

    They are needed before the rest can be parsed: the settings of the run that they name are its defaults.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--storage", default=TrainConfig.storage)
    parser.add_argument("--name")
    parser.add_argument("--resume", action="store_true")
    given, _ = parser.parse_known_args()
    return (given.storage, given.name) if given.resume and given.name else None


def run(main: Callable[[], None]) -> NoReturn:
    """Run a job's `main` and exit: 0, 2 with one line on bad input, 1 with one line where it had to stop.

    Ctrl-C is 130. A defect keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (JobError, UnavailableError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except PermissionError as error:
        print(f"error: {error.filename}: {error.strerror}; give the right to it, or another place", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
