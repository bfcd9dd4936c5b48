import sys

import pytest

from petseg.cli.invocation import as_started, command_line, program

HELP = "Train.\n\npython jobs/train.py --name first\nray job submit -- python jobs/train.py\n"


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("/usr/bin/petseg", "petseg predict"),
        ("/site-packages/petseg/__main__.py", "python -m petseg predict"),
        ("jobs/train.py", "python jobs/predict.py"),
        ("/a b/jobs/train.py", "python '/a b/jobs/predict.py'"),
        ("notebook", "petseg predict"),
    ],
)
def test_program_each_way_to_start_gives_its_own_name(
    started: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert program("predict") == expected
    assert command_line("predict", ["--output", "my masks"]) == f"{expected} --output 'my masks'"


def test_as_started_examples_use_the_form_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py"])
    assert as_started(HELP) == HELP
    monkeypatch.setattr(sys, "argv", ["/usr/bin/petseg"])
    expected = "Train.\n\npetseg train --name first\nray job submit -- python jobs/train.py\n"
    assert as_started(HELP) == expected
