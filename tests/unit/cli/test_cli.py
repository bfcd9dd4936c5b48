import importlib
import json
import sys
import tempfile
from pathlib import Path

import pytest

from petseg import cli
from petseg.config import base
from petseg.config.evaluate import EvaluateConfig
from petseg.config.predict import PredictConfig
from petseg.config.prepare import OxfordConfig, ShardsConfig
from petseg.config.train import Resume, TrainConfig
from petseg.data import manifest
from petseg.errors import InputError, JobError, NoSuchPlaceError, UnavailableError


def raising(error: BaseException) -> None:
    raise error


def interrupted_import() -> RuntimeError:
    error = RuntimeError("in a module")
    error.__cause__ = KeyboardInterrupt()
    return error


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
            "error: s3://a/b: access denied; grant access to it, or choose another location\n",
        ),
        (
            OSError(28, "No space left on device", "/a/b"),
            1,
            "stopped: /a/b: No space left on device; free some space and run the same command again\n",
        ),
        (
            MemoryError(),
            1,
            "stopped: out of memory; use a larger machine, or lower --batch-size or --num-workers if this command has "
            "them (see --help)\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to start over\n"),
        (interrupted_import(), 130, "interrupted; run the same command to start over\n"),
        (KeyboardInterrupt("--resume goes on"), 130, "interrupted; --resume goes on\n"),
        (ValueError("a\nb"), 70, "defect: ValueError: a\n"),
        (ZeroDivisionError(), 70, "defect: ZeroDivisionError\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_run_each_error_has_its_line_and_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: raising(error))
    assert caught.value.code == code
    left = list(tmp_path.iterdir())
    where = f"; please report it with the traceback in {left[0]}\n" if left else "\n"
    assert capsys.readouterr().err == line.removesuffix("\n") + where
    assert len(left) == (code == 70)
    assert all("in raising\n" in file.read_text() for file in left)

    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3", "--debug"])
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: raising(error))
    assert caught.value.code == code
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown and "in raising\n" in shown and shown.endswith(f"\n{line}")


def test_run_success_exits_with_code_0() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: None)
    assert caught.value.code == 0


def test_on_interrupt_ctrl_c_message_says_how_to_continue() -> None:
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"), cli.on_interrupt("go on with --resume"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"), cli.on_interrupt("go on with --resume"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:  # as an import does
            raise RuntimeError("in a module") from error
    with pytest.raises(InputError, match="other"), cli.on_interrupt("go on with --resume"):
        raise InputError("other")
    with pytest.raises(JobError, match="memory"), cli.on_interrupt("go on with --resume"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:  # petseg/cluster/memory.py interrupts itself
            raise JobError("out of memory") from None


def given(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/job.py", *line.split()])


def test_parse_flags_override_given_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--image-size 64 96 --epochs 4 --debug")
    assert cli.parse("train", TrainConfig) == TrainConfig(image_size=(64, 96), epochs=4)
    assert cli.parse("train", TrainConfig, TrainConfig(seed=9, epochs=2)) == TrainConfig(
        image_size=(64, 96), epochs=4, seed=9
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--resume --name a", ("runs", "a", True)),
        ("--epochs 3 --name=a --storage s3://b/c --resume", ("s3://b/c", "a", True)),
        ("--resume auto --name a --epochs 3", ("runs", "a", "auto")),
        ("--name a --resume=auto", ("runs", "a", "auto")),
        ("--name a", None),
        ("--resume", None),
        ("--resume auto", None),
        ("--resume atuo --name a", None),
    ],
)
def test_peek_resume_returns_storage_name_and_resume_only_if_both_flags_are_given(
    flags: str, expected: tuple[str, str, Resume] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, flags)
    assert cli.peek_resume() == expected


def test_peek_resume_config_file_its_storage_is_taken_as_parse_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"storage": "/b", "name": "first", "resume": false}')
    for flags, expected in (("", "/b"), ("--storage /c", "/c")):
        given(monkeypatch, f"--config {tmp_path}/config.json --name a --resume auto {flags}")
        assert cli.peek_resume() == (expected, "a", "auto")
        assert cli.parse("train", TrainConfig).storage == expected


def test_parse_invalid_setting_error_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--epochs 0")
    with pytest.raises(InputError, match=r"^--epochs 0: give at least 1$"):
        cli.parse("train", TrainConfig)


def test_parse_missing_required_flags_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--output o")
    with pytest.raises(InputError, match=r"^--checkpoint and --images are required \(see --help\)$"):
        cli.parse("predict", PredictConfig)


def test_parse_config_file_of_a_run_name_and_resume_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--name and --resume are not taken from the file, or the new run would collide with the first."""
    first = TrainConfig(images="/a", masks="/b", name="first", resume=True, seed=7, num_workers=(2, 4), val_count=9)
    (tmp_path / "config.json").write_text(base.to_json(first))
    given(monkeypatch, f"--config {tmp_path}/config.json --epochs 3 --images /c --val-count None")
    expected = TrainConfig(images="/c", masks="/b", seed=7, num_workers=(2, 4), epochs=3)
    assert cli.parse("train", TrainConfig) == expected


def test_parse_config_file_supplies_required_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = EvaluateConfig(checkpoint="/c", images="/i", masks="/m", output="/o", overwrite=True)
    (tmp_path / "config.json").write_text(base.to_json(before))
    monkeypatch.chdir(tmp_path)
    given(monkeypatch, "--output /p --config config.json")
    assert cli.parse("evaluate", EvaluateConfig) == EvaluateConfig(
        checkpoint="/c", images="/i", masks="/m", output="/p"
    )
    (tmp_path / "config.json").write_text(json.dumps({"images": "/i", "limit": 3}))
    with pytest.raises(InputError, match=r"^--masks is required "):
        cli.parse("evaluate", EvaluateConfig)
    given(monkeypatch, "shards --output /p --config config.json --masks /m")
    with pytest.raises(InputError, match=r"/config.json: unknown setting limit; was it written by another job"):
        cli.parse_subcommand("prepare", COMMANDS)
    (tmp_path / "config.json").write_text('{"images": "/i", "classes": "a,b"}')
    assert cli.parse_subcommand("prepare", COMMANDS) == ShardsConfig(
        images="/i", masks="/m", output="/p", classes="a,b"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{}: cannot be read: No such file or directory"),
        ("{", "{}: not JSON (.*); was it edited, or cut short?"),
        ("[]", "{}: an object with one key per setting is expected"),
        ('{"a": 1, "b": 2, "c": 3, "d": 4}', "{}: unknown setting a, b, c, …; was it written by another job, or"),
        ('{"epochs": "3"}', "{}: epochs: '3' is not a valid value"),
        ('{"epochs": 0}', "--epochs 0: give at least 1 (with the settings of {}; override them with flags)"),
    ],
)
def test_parse_invalid_config_file_is_refused_by_name(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    given(monkeypatch, f"--config {file}")
    with pytest.raises(InputError) as caught:
        cli.parse("train", TrainConfig)
    before, _, after = message.replace("{}", str(file)).partition("(.*)")
    assert str(caught.value).startswith(before) and after in str(caught.value) and "\n" not in str(caught.value)


COMMANDS = {"oxford-pets": OxfordConfig, "shards": ShardsConfig}


def test_parse_subcommand_first_word_selects_the_config_class(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "oxford-pets --output pets")
    assert cli.parse_subcommand("prepare", COMMANDS) == OxfordConfig(output="pets")
    given(monkeypatch, "shards --images a --masks b --output c")
    assert cli.parse_subcommand("prepare", COMMANDS) == ShardsConfig(images="a", masks="b", output="c")


KNOWN = "the commands are oxford-pets, shards (see --help)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oxford-pets --output pets --url file:///etc", "--url file:///etc: give an address that begins with https://"),
        ("", f"a command must come first; {KNOWN}"),
        ("--output a shards", "a command must come first; the commands are oxford-pets, shards"),
        ("shard --images a", f"unknown command shard; {KNOWN}; did you mean shards?"),
        ("cats", f"unknown command cats; {KNOWN}"),
        ("shards --images a", "--masks and --output are required (see --help)"),
        ("oxford-pets --ouput a", "unknown option --ouput; did you mean --output? (see --help)"),
    ],
)
def test_parse_subcommand_unknown_or_incomplete_command_is_refused(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, line)
    with pytest.raises(InputError) as caught:
        cli.parse_subcommand("prepare", COMMANDS)
    assert str(caught.value).startswith(message)


ABOUT = """Get a dataset, or make one.

python jobs/prepare.py oxford-pets --output pets    the published one
python jobs/prepare.py shards --output set          your own
"""


def help_of(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    given(monkeypatch, f"{line} --help")
    with pytest.raises(SystemExit) as caught:
        if line == "train":
            given(monkeypatch, "--help")
            cli.parse("train", TrainConfig, about="Train.\n\npython jobs/train.py --epochs 3")
        cli.parse_subcommand("prepare", COMMANDS, about=ABOUT)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_starts_with_usage_and_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of("train", monkeypatch, capsys)
    assert text.startswith(
        "usage: python jobs/train.py [FLAGS]\n\nTrain.\n\npython jobs/train.py --epochs 3\n\ndata:\n"
    )
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[-2:] == ["logging:", "this command:"] and len(headings) == 8
    assert "Not taken from the file: --name, --resume." in " ".join(text.split())

    text = help_of("", monkeypatch, capsys)
    assert text.startswith(
        f"usage: python jobs/prepare.py COMMAND [FLAGS]\n\n{ABOUT}\ncommands, each with a --help of its"
    )
    assert "\n  shards " in text and "Decode photos and their masks once and for all" in text

    text = help_of("shards", monkeypatch, capsys)
    assert "python jobs/prepare.py shards --output set          your own\n\ndata:\n" in text
    assert "oxford-pets" not in text and "Not taken" not in text


@pytest.mark.parametrize(
    ("job", "flags", "line"),
    [
        ("predict", "--checkpoint c --images photos --output out", cli.CONTINUES),
        ("prepare", "shards --images photos --masks masks --output out", cli.CONTINUES),
        ("prepare", "check --images photos --masks masks --output out", "run the same command to start over"),
    ],
)
def test_run_ctrl_c_in_a_job_line_says_what_is_kept(
    job: str,
    flags: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *flags.split()])
    monkeypatch.setattr(manifest, "discover", interrupt)
    monkeypatch.setattr(manifest, "match", interrupt)
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"petseg.jobs.{job}").run()
    assert caught.value.code == 130 and capsys.readouterr().err == f"interrupted; {line}\n"
