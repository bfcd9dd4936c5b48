"""Form in which this process was started, so that a printed command can be typed in the same form."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = re.compile(r"^python jobs/(\w+)\.py\b", re.MULTILINE)


def program(command: str) -> str:
    """Return the words that the user types to start a command, quoted for a shell.

    They have the form with which this process was started: "petseg train", "python -m petseg train" or
    "python jobs/train.py". In any other process, such as a notebook, the form is "petseg train".
    """
    started = Path(sys.argv[0])
    if started.absolute().parent.name == "jobs" and started.suffix == ".py":
        return shlex.join(["python", str(started.with_name(f"{command}.py"))])
    if started.name == "__main__.py":
        return f"python -m petseg {command}"
    return f"petseg {command}"


def command_line(command: str, arguments: Sequence[str]) -> str:
    """Return a whole command for a shell, in the form of `program`."""
    return shlex.join([*shlex.split(program(command)), *arguments])


def as_started(text: str) -> str:
    """Rewrite the lines of a text that begin with `python jobs/NAME.py` to the form of `program`.

    Lines with `ray job submit` stay unchanged: it uploads the checkout, which contains these scripts.
    """
    if Path(sys.argv[0]).suffix == ".py" and Path(sys.argv[0]).name != "__main__.py":
        return text
    return _SCRIPT.sub(lambda match: program(match[1]), text)
