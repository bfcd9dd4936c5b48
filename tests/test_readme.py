"""The README against what is there: its tree, its flags, its commands."""

import dataclasses
import re

import pytest
from conftest import ROOT

from petseg.config import PredictConfig, TrainConfig

README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_file_once() -> None:
    tree = re.findall(r"^((?:jobs|petseg)/\w+\.py)  ", README, re.MULTILINE)
    files = [str(path.relative_to(ROOT)) for folder in ("jobs", "petseg") for path in (ROOT / folder).glob("*.py")]
    assert sorted(tree) == sorted(path for path in files if not path.endswith("__init__.py"))


@pytest.mark.parametrize(("job", "settings"), [("train", TrainConfig), ("predict", PredictConfig)])
def test_the_commands_have_only_flags_that_exist(job: str, settings: type) -> None:
    commands = re.findall(rf"python jobs/{job}\.py((?:[^\n\\]|\\\n)*)", README)
    given = set(re.findall(r"--[a-z-]+", " ".join(commands))) - {"--help"}
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)}
    assert given and given <= known


def test_the_two_commands_are_there() -> None:
    assert "pip install -e . && python jobs/train.py " in README
    assert "pip install -e '.[test]' && pytest " in README
