"""Command line of every job: parses settings and turns errors into exit codes. Imports neither torch nor Ray."""

import argparse
import contextlib
import dataclasses
import inspect
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from petseg import storage
from petseg.cli import options, terminal
from petseg.cli.invocation import as_started, program
from petseg.cli.verdict import DEFECT, is_interrupt, verdict
from petseg.config.base import Config, ConfigT, to_json, typed_values
from petseg.config.train import Resume, TrainConfig
from petseg.errors import InputError
from petseg.storage.locations import absolute_locations

_NOT_INHERITED = ("name", "resume", "overwrite")
"""Settings that --config does not take from its file: they identify a run, or permit deleting results."""

CONTINUES = "finished work is kept: run the same command to continue"
"""Remedy for `on_interrupt` in a job that can continue where it stopped."""


def parse(command: str, cls: type[ConfigT], default: ConfigT | None = None, *, about: str | None = None) -> ConfigT:
    """Return the settings of a command such as "train" from `sys.argv`.

    A flag that is not given gets its value from the file in --config, else from `default`, else from the class. `about`
    is the first part of --help. Raises `InputError` on an unknown flag, an invalid value or a missing value. Exits with
    code 0 after --help.
    """
    return _parse(cls, sys.argv[1:], program(command), about, default)


def parse_subcommand(command: str, commands: Mapping[str, type[ConfigT]], *, about: str | None = None) -> ConfigT:
    """Do as `parse`, with the settings class chosen from `commands` by the first word of `sys.argv`."""
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
    known = f"the commands are {', '.join(commands)} (see --help)"
    if not words or words[0].startswith("-"):
        raise InputError(f"a command must come first; {known}")
    raise InputError(f"unknown command {words[0]}; {known}{options.did_you_mean(words[0], commands)}")


def _parse(
    cls: type[ConfigT], words: list[str], prog: str, about: str | None, default: ConfigT | None = None
) -> ConfigT:
    parser = options.parser_of(cls, prog, as_started(about) if about else None)
    _add_common_options(parser, [name for name in _NOT_INHERITED if name in cls.__dataclass_fields__])
    given = parser.given(words)
    file = given.pop("config", None)
    given.pop("debug", None)
    of_file = _read(cls, file) if file else {}
    before = {} if default is None else {field.name: getattr(default, field.name) for field in dataclasses.fields(cls)}
    values = before | of_file | given
    missing = [options.flag(name) for name in options.required(cls) if name not in values]
    if missing:
        raise InputError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required (see --help)")
    try:
        return cls(**values)
    except InputError as error:
        if not of_file:
            raise
        raise InputError(f"{error} (with the settings of {file}; override them with flags)") from error


def _add_common_options(parser: argparse.ArgumentParser, not_taken: list[str]) -> None:
    group = parser.add_argument_group("this command")
    but = f" Not taken from the file: {', '.join(map(options.flag, not_taken))}." if not_taken else ""
    group.add_argument(
        "--config",
        metavar="FILE",
        help="Use the settings in a config.json that this job wrote earlier (path or URI). Flags override them. To "
        f'unset one, give None for a number or a folder, "" for text.{but}',
    )
    group.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    group.add_argument("-h", "--help", action="help", help="Show this help.")


def _read(cls: type[Config], file: str) -> dict[str, Any]:
    """Return the settings that a job has written to a file, except those in `_NOT_INHERITED`."""
    location = storage.absolute(file)
    values = typed_values(cls, storage.read_json(location), location)
    return {name: value for name, value in values.items() if name not in _NOT_INHERITED}


def as_file(config: Config) -> bytes:
    """Return the content of the file config.json, which --config reads."""
    return to_json(absolute_locations(config)).encode()


def is_debugging() -> bool:
    """Return True if --debug is given. It is looked up in `sys.argv`, because parsing may fail before it is read."""
    return "--debug" in sys.argv


def peek_resume() -> tuple[str, str, Resume] | None:
    """Return --storage, --name and --resume from `sys.argv` if --resume and --name are given, else None.

    They are needed before the other flags are parsed, because the settings of the resumed run are the defaults. The
    file in --config may give --storage. An invalid value of --resume also gives None: `parse` reports it.
    """
    parser = options.Parser("", None)
    for name in ("storage", "name", "config"):
        parser.add_argument(options.flag(name))
    parser.add_argument("--resume", nargs="?", const=True)
    given = vars(parser.parse_known_args()[0])
    if not given.get("name") or given.get("resume") not in (True, "auto"):
        return None
    of_file = _read(TrainConfig, given["config"]) if "config" in given else {}
    location = ({"storage": TrainConfig.storage} | of_file | given)["storage"]
    return location, given["name"], given["resume"]


@contextlib.contextmanager
def on_interrupt(remedy: str) -> Iterator[None]:
    """Make `run` print `remedy` if Ctrl-C interrupts the `with` block or the decorated function."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not is_interrupt(error):
            raise
        raise KeyboardInterrupt(remedy) from error


def run(main: Callable[[], None]) -> NoReturn:
    """Run a job's `main` and exit with a code; on failure, print one line.

    The codes are 0 on success, 1 if the job had to stop, 2 on invalid input, 70 on a bug in petseg and 130 after
    Ctrl-C. With --debug a traceback is printed before the line.
    """
    terminal.require_utf8()
    with terminal.safe_output():
        sys.exit(_run(main))


def _run(main: Callable[[], None]) -> int:
    """Run a job's `main`, print its error, and return the exit code."""
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        if is_debugging():
            traceback.print_exc()
        line, code = verdict(error)
        if code == DEFECT and not is_debugging():  # saved, so that nobody must repeat hours of work to report it
            with tempfile.NamedTemporaryFile("w", prefix="petseg-defect-", suffix=".txt", delete=False) as file:
                traceback.print_exc(file=file)
            line += f"; please report it with the traceback in {file.name}"
        with contextlib.suppress(OSError):  # nobody reads it
            print(terminal.one_line(line), file=sys.stderr)
        return code
    return 0
