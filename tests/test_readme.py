"""The README against what is there: its tree, its flags, its commands."""

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import ROOT

from petseg.config import PredictConfig, TrainConfig

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tree_names_every_file_once() -> None:
    tree = re.findall(r"^((?:jobs|petseg)/\w+\.py)  ", README, re.MULTILINE)
    files = [str(path.relative_to(ROOT)) for folder in ("jobs", "petseg") for path in (ROOT / folder).glob("*.py")]
    assert sorted(tree) == sorted(path for path in files if not path.endswith("__init__.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize(("job", "settings"), [("train", TrainConfig), ("predict", PredictConfig)])
def test_the_commands_have_only_flags_that_exist(job: str, settings: type, page: Path) -> None:
    commands = re.findall(rf"python jobs/{job}\.py((?:[^\n\\]|\\\n)*)", page.read_text())
    given = set(re.findall(r"--[a-z-]+", " ".join(commands))) - {"--help"}
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)}
    assert given <= known
    assert given or page.name != "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists()


def test_every_flag_of_predict_that_is_named_alone_exists() -> None:
    page = (ROOT / "docs" / "predicting.md").read_text()
    named = {flag.removeprefix("--no-").removeprefix("--") for flag in re.findall(r"--[a-z][a-z-]+", page)} - {"kills"}
    assert named <= {field.name.replace("_", "-") for field in dataclasses.fields(PredictConfig)}


def test_the_two_commands_are_there() -> None:
    assert "pip install -e . && python jobs/train.py " in README
    assert "pip install -e '.[test]' && pytest " in README
