"""The program: `petseg COMMAND …`, and `python -m petseg COMMAND …`.

A command's module is imported once the command is known, so that help answers at once.
"""

import importlib
import sys

import petseg
from petseg import cli
from petseg.cli import options
from petseg.errors import InputError

COMMANDS = {
    "train": "Train a network on photos and their masks.",
    "predict": "Write a mask for every photo of a folder.",
    "evaluate": "Score a network on photos and their masks.",
    "prepare": "Download a dataset, check one, or decode one in advance.",
    "export": "Write a trained network as ONNX and torch.export.",
    "status": "Print how far the jobs are that write to some places.",
}


def main() -> None:
    """Run the command that the first argument names, and exit with its code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        cli.run(_without_command)  # exits
    del sys.argv[1]
    importlib.import_module(f"petseg.jobs.{name}").run()


def _without_command() -> None:
    """Print the help or the version. Raises `InputError` on an unknown command."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("-h", "--help"):
        parser = options.Parser("petseg COMMAND [FLAGS]", petseg.__doc__.partition("\n")[0])  # pyright: ignore
        group = parser.add_argument_group("commands, each with a --help of its own")
        for name, text in COMMANDS.items():
            group.add_argument(name, help=text)
        others = parser.add_argument_group("other")
        others.add_argument("--version", help="Print the version.", action="store_true")
        parser.print_help()
    elif word == "--version":
        print(f"petseg {petseg.__version__}")
    else:
        known = f"the commands are {', '.join(COMMANDS)} (see --help)"
        raise InputError(f"unknown command {word}; {known}{options.did_you_mean(word, COMMANDS)}")


if __name__ == "__main__":
    main()
