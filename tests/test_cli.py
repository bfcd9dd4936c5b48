import sys

import pytest

from petseg import cli
from petseg.config import (
    InputError,
    JobError,
    NoSuchPlaceError,
    OxfordConfig,
    ShardsConfig,
    TrainConfig,
    UnavailableError,
)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("--epochs 0: give at least 1"), 2, "error: --epochs 0: give at least 1\n"),
        (JobError("no space left"), 1, "stopped: no space left\n"),
        (UnavailableError("s3://a/b: no answer"), 1, "stopped: s3://a/b: no answer\n"),
        (NoSuchPlaceError("s3://a: no such bucket"), 2, "error: s3://a: no such bucket\n"),
        (
            PermissionError(13, "access denied", "s3://a/b"),
            2,
            "error: s3://a/b: access denied; give the right to it, or another place\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_ends_a_job_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: raising(error))
    assert caught.value.code == code
    assert capsys.readouterr().err == line


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: raising(ZeroDivisionError()))


def test_success_is_exit_code_0() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: None)
    assert caught.value.code == 0


def test_flags_go_over_the_defaults_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--image-size", "64", "96", "--epochs", "4"])
    assert cli.parse(TrainConfig) == TrainConfig(image_size=(64, 96), epochs=4)
    assert cli.parse(TrainConfig, TrainConfig(seed=9, epochs=2)) == TrainConfig(image_size=(64, 96), epochs=4, seed=9)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--resume --name a", ("runs", "a")),
        ("--epochs 3 --name=a --storage s3://b/c --resume", ("s3://b/c", "a")),
        ("--name a", None),
        ("--resume", None),
    ],
)
def test_what_to_resume_is_known_before_the_rest(
    flags: str, expected: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *flags.split()])
    assert cli.peek_resume() == expected


def test_settings_that_fail_their_check_reach_the_user_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "0"])
    with pytest.raises(InputError, match="--epochs 0: give at least 1"):
        cli.parse(TrainConfig)


COMMANDS = {"oxford-pets": OxfordConfig, "shards": ShardsConfig}


def test_the_first_word_chooses_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", "oxford-pets", "--output", "pets"])
    assert cli.parse_subcommand(COMMANDS) == OxfordConfig(output="pets")
    monkeypatch.setattr(sys, "argv", ["prepare.py", "shards", "--images", "a", "--masks", "b", "--output", "c"])
    assert cli.parse_subcommand(COMMANDS) == ShardsConfig(images="a", masks="b", output="c")


def test_settings_of_a_subcommand_fail_in_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", "oxford-pets", "--output", "pets", "--url", "file:///etc"])
    with pytest.raises(InputError, match="--url file:///etc: give an address that begins with https://"):
        cli.parse_subcommand(COMMANDS)


@pytest.mark.parametrize("words", [[], ["cats"], ["shards", "--images", "a"]], ids=str)
def test_a_command_that_is_not_known_or_not_whole_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words])
    with pytest.raises(SystemExit) as caught:
        cli.parse_subcommand(COMMANDS)
    assert caught.value.code == 2
    assert "--help" in capsys.readouterr().err
