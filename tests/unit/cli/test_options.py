import dataclasses
from typing import Any

import pytest

from petseg.cli import options
from petseg.config import base
from petseg.config import predict as predict_config
from petseg.config import prepare as prepare_config
from petseg.config import train as train_config
from petseg.config.predict import PredictConfig
from petseg.config.train import TrainConfig
from petseg.errors import InputError

JOBS = [
    cls
    for module in (train_config, predict_config, prepare_config)
    for cls in vars(module).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
]


def given(cls: type[base.Config], line: str) -> dict[str, Any]:
    return options.parser_of(cls, "job", None).given(line.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("--epochs 3 --learning-rate 1e-3", {"epochs": 3, "learning_rate": 0.001}),
        ("--batch_size 8 --val_fraction=0.5", {"batch_size": 8, "val_fraction": 0.5}),
        ("--image-size 64 96", {"image_size": (64, 96)}),
        ("--num-workers 2", {"num_workers": (2,)}),
        ("--num-workers 2 8 --seed 1", {"num_workers": (2, 8), "seed": 1}),
        ("--split-file train=a_b val=c", {"split_file": ("train=a_b", "val=c")}),
        ("--split-file", {"split_file": ()}),
        ("--use-gpu --no-mlflow", {"use_gpu": True, "mlflow": False}),
        ("--val-count None --images None", {"val_count": None, "images": None}),
        ("--resume --epochs 3", {"resume": True, "epochs": 3}),
        ("--resume auto", {"resume": "auto"}),
        ("--resume=auto", {"resume": "auto"}),
        ("--recipe keras --name None", {"recipe": "keras", "name": "None"}),
        ("--label-map=#ff0000:cat,#000000:dog", {"label_map": "#ff0000:cat,#000000:dog"}),
    ],
)
def test_given_returns_only_the_flags_on_the_command_line(line: str, expected: dict[str, Any]) -> None:
    assert given(TrainConfig, line) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--imags photos", "unknown option --imags; did you mean --images? (see --help)"),
        ("--batchsize=8", "unknown option --batchsize; did you mean --batch-size? (see --help)"),
        ("--workers 2", "unknown option --workers; did you mean --num-workers? (see --help)"),
        ("--no-use-gpus", "unknown option --no-use-gpus; did you mean --no-use-gpu? (see --help)"),
        ("--epoch 3", "unknown option --epoch; did you mean --epochs? (see --help)"),
        ("--qqqq 3", "unknown option --qqqq (see --help)"),
        ("photos", "unexpected argument 'photos' (see --help)"),
        ("--epochs 3 4", "unexpected argument '4' (see --help)"),
        ("--epochs many", "--epochs: 'many' is not a whole number (see --help)"),
        ("--epochs None", "--epochs: 'None' is not a whole number (see --help)"),
        ("--batch-size 1.5", "--batch-size: '1.5' is not a whole number (see --help)"),
        ("--learning-rate fast", "--learning-rate: 'fast' is not a number (see --help)"),
        ("--recipe kera", "--recipe: 'kera' is not one of best, keras, pretrained (see --help)"),
        ("--resume atuo", "--resume: 'atuo' is not one of auto (see --help)"),
        ("--epochs", "--epochs: expected one argument (see --help)"),
        ("--image-size 64", "--image-size: expected 2 arguments (see --help)"),
    ],
)
def test_given_invalid_flag_or_value_is_one_line_with_a_remedy(line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        given(TrainConfig, line)
    assert str(caught.value) == message


@pytest.mark.parametrize("cls", JOBS, ids=lambda cls: cls.__name__)
def test_help_every_setting_is_in_one_group(cls: type[base.Config]) -> None:
    fields = dataclasses.fields(cls)
    headings = [name for names in options.GROUPS.values() for name in names]
    assert sorted(name for name in headings if name in {field.name for field in fields}) == sorted(
        field.name for field in fields
    )
    words = " ".join(options.parser_of(cls, "job", None).format_help().split())
    for field in fields:
        assert f" {options.flag(field.name)} " in words or f" {options.flag(field.name)}," in words
    assert "others:" not in words


def test_help_has_units_defaults_and_required_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = options.parser_of(PredictConfig, "python job.py", "What it does.\n\n  an example").format_help()
    assert text.startswith(
        "usage: python job.py --checkpoint PATH --images PATH --output PATH [FLAGS]\n\nWhat it does.\n\n  an example\n"
    )
    assert max(map(len, text.splitlines())) < 80
    words = " ".join(text.split())
    about_table = "a table: .csv or .parquet with the columns id and uri. Required."
    assert f"--images PATH Folder or URI of the photos, one photo, or {about_table}" in words
    assert (
        "--wait-min X Minutes to wait for an autoscaling cluster to reach the requested size. Default: 30.0." in words
    )
    assert "--precision auto|bf16|fp32 " in words and "else fp32. Default: auto." in words
    assert "--png, --no-png Write masks/<id>.png beside the Parquet files. Default: yes." in words


def test_help_optional_value_is_in_brackets() -> None:
    words = " ".join(options.parser_of(TrainConfig, "job", None).format_help().split())
    assert "--resume [auto] Continue the run --name" in words


def test_help_percent_sign_is_kept() -> None:
    parser = options.Parser("a 100 % job", "All of 50 %.")
    parser.add_argument("--share", help=options._help("of 100 %", "5%"))
    assert "of 100 % Default: 5%." in parser.format_help() and "usage: a 100 % job" in parser.format_help()
