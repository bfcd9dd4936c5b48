"""How this process was started, so that a printed command can be typed the same way."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_SCRIPT = re.compile(r"^python jobs/(\w+)\.py\b", re.MULTILINE)


def program(command: str) -> str:
    """Return what the user types to start a command, quoted for a shell.

    "petseg train", "python -m petseg train" or "python jobs/train.py": the form that this process was started with. In
    any other process (a notebook, say) it is "petseg train".
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

    Lines with `ray job submit` stay: it sends the checkout, which has these scripts.
    """
    if Path(sys.argv[0]).suffix == ".py" and Path(sys.argv[0]).name != "__main__.py":
        return text
    return _SCRIPT.sub(lambda found: program(found[1]), text)
