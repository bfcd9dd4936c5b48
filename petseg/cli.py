"""Flags to settings, and errors to exit codes: the edge of every job, and the only file that knows tyro."""

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from petseg.config import InputError, PredictConfig, TrainConfig

JobConfigT = TypeVar("JobConfigT", TrainConfig, PredictConfig)


def parse(cls: type[JobConfigT], default: JobConfigT | None = None) -> JobConfigT:
    """The settings of `sys.argv`; where a flag is not given, those of `default` or of the class.

    Exits with code 2 and tyro's message on a flag it does not know, 0 after `--help`.
    """
    if default is None:
        return tyro.cli(cls)
    return tyro.cli(cls, default=default)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a job's `main` and exit: 0, 2 with one line on bad input, 130 on Ctrl-C; a defect keeps its traceback."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
