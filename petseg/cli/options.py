"""Flags of a settings class, with their values and `--help` texts. This module reads no files and decides nothing."""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import shutil
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from petseg.config.base import Config
from petseg.errors import InputError
from petseg.storage.locations import LOCATIONS

GROUPS: Mapping[str, Sequence[str]] = {
    "data": (
        *(
            "from_",
            "images",
            "masks",
            "labels",
            "labelled",
            "count",
            "by",
            "data",
            "image_suffix",
            "mask_suffix",
            "classes",
            "num_classes",
            "label_map",
            "ignore_label",
            "masks_upright",
            "unlabelled",
            "order",
            "annotator",
            "all_photos",
            "exclude_class",
            "image_size",
            "crop",
            "scale",
            "resize",
        ),
        *("split_file", "val_fraction", "val_count", "val_fold", "skip_bad"),
        *("limit", "max_pixels", "decode_timeout", "max_errors", "url", "cache"),
    ),
    "network": ("checkpoint", "recipe", "network", "encoder_weights", "init_from", "tile", "tile_overlap"),
    "training": ("epochs", "learning_rate", "clip_norm", "augment", "loss", "class_weights", "keep_best_by", "seed"),
    "speed and memory": ("batch_size", "accumulate", "precision", "compile", "feed_budget_gb"),
    "cluster": ("num_workers", "use_gpu", "cpus_per_worker", "max_failures", "wait_min"),
    "output": ("storage", "name", "resume", "output", "append", "retry_errors", "merge", "overwrite"),
    "output formats": ("tool", "png", "overlay", "probabilities", "coco_rle", "shard_size", "formats", "licence"),
    "logging": ("log_format", "mlflow", "wandb"),
}
"""Headings of `--help` and the settings below each, in order. A name has the same meaning in every job."""


class Parser(argparse.ArgumentParser):
    """Argument parser that raises `InputError` instead of exiting, and returns only the settings that were given."""

    def __init__(self, usage: str, about: str | None) -> None:
        super().__init__(
            usage=_escaped(usage),
            description=about,
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=_layout,
        )

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`. argparse calls this method if a value is invalid or missing."""
        raise InputError(f"{message.removeprefix('argument ')} (see --help)")

    def given(self, words: Iterable[str]) -> dict[str, Any]:
        """Return the values of a command line by setting, without the settings that are not given.

        Raises `InputError` on an unknown flag or an invalid value.
        """
        namespace, unknown = self.parse_known_args([_hyphened(word) for word in words])
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if flags:
            suggestion = did_you_mean(flags[0], [flag for action in self._actions for flag in action.option_strings])
            raise InputError(f"unknown option {flags[0]}{suggestion} (see --help)")
        if unknown:
            raise InputError(f"unexpected argument {unknown[0]!r} (see --help)")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(namespace).items()}


def parser_of(cls: type[Config], prog: str, about: str | None) -> Parser:
    """Return a parser with one flag per setting, under the headings of `GROUPS`."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    usage = [f"{flag(name)} {_metavar(name, str)}" for name in required(cls)]
    parser = Parser(" ".join([prog, *usage, "[FLAGS]"]), about or inspect.getdoc(cls))
    hints, texts = typing.get_type_hints(cls), _docstrings(cls)
    others = [name for name in fields if not any(name in names for names in GROUPS.values())]
    for title, names in {**GROUPS, "others": others}.items():
        here = [name for name in names if name in fields]
        if here:
            group = parser.add_argument_group(title)
            for name in here:
                _add(group, name, hints[name], _help(texts[name], fields[name].default))
    return parser


def required(cls: type[Config]) -> list[str]:
    """Return the names of the settings that have no default."""
    return [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]


def flag(name: str) -> str:
    """Return the flag of a setting, such as --batch-size for batch_size, or --from for from_: `from` is a keyword."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of the message about an unknown word: the most similar known word, or "" if no word is similar."""
    suggestion = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {suggestion[0]}?" if suggestion else ""


def _hyphened(word: str) -> str:
    """Return a flag with hyphens for underscores (--batch_size becomes --batch-size); other words unchanged."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _layout(prog: str) -> argparse.HelpFormatter:
    width = min(shutil.get_terminal_size().columns, 120) - 1
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width)


def _add(group: Any, name: str, hint: Any, text: str) -> None:
    if hint is bool:
        group.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, help=text)
        return
    if bool in typing.get_args(hint):  # the flag alone is True
        [kind] = [member for member in typing.get_args(hint) if member is not bool]
        group.add_argument(
            flag(name), dest=name, nargs="?", const=True, type=_reader(kind), metavar=_metavar(name, kind), help=text
        )
        return
    several = typing.get_origin(hint) is tuple
    kinds = typing.get_args(hint) if several else (hint,)
    nargs = None if not several else "*" if Ellipsis in kinds else len(kinds)
    group.add_argument(
        flag(name), dest=name, nargs=nargs, type=_reader(kinds[0]), metavar=_metavar(name, hint), help=text
    )


def _reader(kind: Any) -> Callable[[str], Any]:
    """Return a function that converts a word to a value of the type. For optional types the word None gives None."""
    optional = type(None) in typing.get_args(kind)
    if optional:
        [kind] = [member for member in typing.get_args(kind) if member is not type(None)]
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()

    def read(word: str) -> Any:
        if optional and word == "None":
            return None
        if choices:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(choices)}")
            return word
        try:
            return kind(word)
        except ValueError:
            what = {int: "a whole number", float: "a number"}[kind]
            raise argparse.ArgumentTypeError(f"{word!r} is not {what}") from None

    return read


def _metavar(name: str, hint: Any) -> str | tuple[str, ...]:
    """Return the placeholder for the value of a flag in `--help`."""
    if name in LOCATIONS:
        return "PATH"
    kinds = (hint, *typing.get_args(hint))
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            return "|".join(typing.get_args(kind))
    number = "N" if int in kinds else "X" if float in kinds else "TEXT"
    return ("HEIGHT", "WIDTH") if name == "image_size" else number


def _help(text: str, default: Any) -> str:
    if default is dataclasses.MISSING:
        return f"{_escaped(text)} Required."
    if default is False or default in (None, "", ()):
        return _escaped(text)
    values = default if isinstance(default, tuple) else ("yes" if default is True else default,)
    return _escaped(f"{text} Default: {' '.join(map(str, values))}.")


def _escaped(text: str) -> str:
    """Return the text with % doubled, because argparse formats help texts with the % operator."""
    return text.replace("%", "%%")


def _docstrings(cls: type[Config]) -> dict[str, str]:
    """Return the docstring under each field of a settings class. It is read from the source, its only place."""
    [definition] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for pair in itertools.pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = inspect.cleandoc(text)
    return texts
