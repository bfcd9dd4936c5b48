"""The command line to settings, and errors to exit codes: the edge of every job. No torch, no Ray."""

import argparse
import contextlib
import dataclasses
import errno
import inspect
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from petseg import storage
from petseg.cli import options
from petseg.cli.invocation import as_started, program
from petseg.config.base import Config, ConfigT, to_json, typed_values
from petseg.config.train import TrainConfig
from petseg.errors import InputError, JobError, UnavailableError

_OF_ONE_RUN = ("name", "resume", "overwrite")
"""Settings that --config does not take over: which run it was, and what may be lost."""

CONFIG_FILE = "config.json"
"""What a job calls its resolved settings, which --config takes."""

_DEFECT = 70
"""Exit code where the fault is ours: EX_SOFTWARE of sysexits.h."""


def parse(command: str, cls: type[ConfigT], default: ConfigT | None = None, *, about: str | None = None) -> ConfigT:
    """Return the settings in `sys.argv` of a command such as "train". A flag that is not given has its value from the
    file that --config names, from `default` or from the class. `about` is what --help begins with.

    Raises `InputError` on a flag that is not known, a value that cannot be, or one that is missing. Exits with code 0
    after --help.
    """
    return _parse(cls, sys.argv[1:], program(command), about, default)


def parse_subcommand(command: str, commands: Mapping[str, type[ConfigT]], *, about: str | None = None) -> ConfigT:
    """As `parse`, where the first word of `sys.argv` chooses the settings class."""
    prog, words = program(command), sys.argv[1:]
    if words and words[0] in commands:
        lines = [line for line in (about or "").splitlines() if f" {words[0]} " in line]
        about = "\n".join([inspect.getdoc(commands[words[0]]) or "", *([""] if lines else []), *lines])
        return _parse(commands[words[0]], words[1:], f"{prog} {words[0]}", about)
    if {"-h", "--help"} & set(words):
        parser = options.Parser(f"{prog} COMMAND [FLAGS]", as_started(about or ""))
        group = parser.add_argument_group("commands, each with a --help of its own")
        for name, cls in commands.items():
            group.add_argument(name, help=inspect.getdoc(cls))
        parser.print_help()
        sys.exit(0)
    known = f"the commands are {', '.join(commands)} (--help tells more)"
    if not words or words[0].startswith("-"):
        raise InputError(f"a command must come first; {known}")
    raise InputError(f"{words[0]}: there is no such command; {known}{options.did_you_mean(words[0], commands)}")


def _parse(
    cls: type[ConfigT], words: list[str], prog: str, about: str | None, default: ConfigT | None = None
) -> ConfigT:
    parser = options.parser_of(cls, prog, as_started(about) if about else None)
    _add_own(parser, [name for name in _OF_ONE_RUN if name in cls.__dataclass_fields__])
    given = parser.given(words)
    file = given.pop("config", None)
    given.pop("debug", None)  # `run` looks for it itself: there may be an error before this line
    of_file = _read(cls, file) if file else {}
    before = {} if default is None else {field.name: getattr(default, field.name) for field in dataclasses.fields(cls)}
    values = before | of_file | given
    missing = [options.flag(name) for name in options.required(cls) if name not in values]
    if missing:
        raise InputError(f"{', '.join(missing)}: must be given (--help tells more)")
    try:
        return cls(**values)
    except InputError as error:
        if not of_file:
            raise
        raise InputError(f"{error} (with the settings of {file}; a flag's value None undoes one)") from error


def _add_own(parser: argparse.ArgumentParser, not_taken: list[str]) -> None:
    group = parser.add_argument_group("this command")
    but = f" Not taken: {', '.join(map(options.flag, not_taken))}." if not_taken else ""
    group.add_argument(
        "--config",
        metavar="FILE",
        help="Take the settings in a config.json that this job has left (path or URI), to do the same again. Flags go "
        f"over them; the value None undoes one.{but}",
    )
    group.add_argument("--debug", action="store_true", help="Show the traceback of what went wrong.")
    group.add_argument("-h", "--help", action="help", help="Show this.")


def _read(cls: type[Config], file: str) -> dict[str, Any]:
    """The settings that a job has left in a file, but for those that were its alone."""
    location = storage.absolute(file)
    values = typed_values(cls, storage.read_json(location), location)
    return {name: value for name, value in values.items() if name not in _OF_ONE_RUN}


def located(config: ConfigT) -> ConfigT:
    """The settings with absolute locations, so that they mean the same in another folder."""
    places = {name: getattr(config, name, None) for name in options.PLACES}
    absolute = {name: storage.absolute(place) for name, place in places.items() if place}
    return dataclasses.replace(config, **absolute)


def as_file(config: Config) -> bytes:
    """What `CONFIG_FILE` holds of the settings."""
    return to_json(located(config)).encode()


def peek_resume() -> tuple[str, str] | None:
    """--storage and --name of `sys.argv`, where --resume is there too.

    They are needed before the rest can be parsed: the settings of the run that they name are its defaults.
    """
    parser = options.Parser("", None)
    parser.add_argument("--storage", default=TrainConfig.storage)
    parser.add_argument("--name", default="")
    parser.add_argument("--resume", action="store_true", default=False)
    given, _ = parser.parse_known_args()
    return (given.storage, given.name) if given.resume and given.name else None


@contextlib.contextmanager
def on_interrupt(remedy: str) -> Iterator[None]:
    """Where Ctrl-C ends what is done within, `run` tells this remedy."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not _is_interrupt(error):
            raise
        raise KeyboardInterrupt(remedy) from error


def _is_interrupt(error: BaseException | None) -> bool:
    """Also where what was interrupted has made an error of it, as an import does."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def run(main: Callable[[], None], interrupted: str = "the same command begins again") -> NoReturn:
    """Run a job's `main` and exit: 0, 2 with one line on bad input, 1 with one line where it had to stop, 130 after
    Ctrl-C, and 70 with one line on a defect of ours. With --debug the traceback comes before the line.
    """
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        line, code = _verdict(error, interrupted)
        if code == _DEFECT and "--debug" not in sys.argv:  # after hours nobody wants to see it once more to show it
            with tempfile.NamedTemporaryFile("w", prefix="petseg-defect-", suffix=".txt", delete=False) as file:
                traceback.print_exc(file=file)
            line += f"; please report it with the traceback in {file.name}"
        print(line, file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _verdict(error: BaseException, interrupted: str = "the same command begins again") -> tuple[str, int]:
    """What the user is told of what ended a job, and its exit code."""
    match error:
        case InputError():
            return f"error: {error}", 2
        case JobError() | UnavailableError():
            return f"stopped: {error}", 1
        case PermissionError():
            return f"error: {error.filename}: {error.strerror}; give the right to it, or another place", 2
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"stopped: {error.filename or 'a disk'}: {error.strerror}; make room, and give the command again", 1
        case MemoryError():
            return "stopped: too little memory; lower --batch-size or --num-workers, or take a larger machine", 1
        case KeyboardInterrupt(args=[_]):
            return f"interrupted; {error}", 130
    if _is_interrupt(error):
        return f"interrupted; {interrupted}", 130
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = ": ".join([type(error).__name__, *lines[:1]])
    return f"defect: {what}", _DEFECT
