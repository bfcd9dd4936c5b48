"""README and docs against the code: the tree of files, flags, links. test_docs.py runs their commands."""

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import ROOT

from petseg.cli.options import flag
from petseg.config.evaluate import EvaluateConfig
from petseg.config.export import ExportConfig
from petseg.config.labelling import MasksConfig, SelectConfig
from petseg.config.predict import PredictConfig
from petseg.config.prepare import CheckConfig, OxfordConfig, ShardsConfig
from petseg.config.train import TrainConfig

README = (ROOT / "README.md").read_text()
HOW_IT_WORKS = (ROOT / "docs" / "how-it-works.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_docs_tree_names_every_file_once() -> None:
    tree = re.findall(r"^(petseg/\S+\.py) ", HOW_IT_WORKS, re.MULTILINE)
    files = [path for path in (ROOT / "petseg").rglob("*.py") if path.read_text().count("\n") > 1]
    assert sorted(tree) == sorted(
        str(path.relative_to(ROOT)) for path in files if path.parent.parent != ROOT or path.stem != "__init__"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize(
    ("job", "settings"),
    [
        ("train", TrainConfig),
        ("predict", PredictConfig),
        ("evaluate", EvaluateConfig),
        ("prepare oxford-pets", OxfordConfig),
        ("prepare shards", ShardsConfig),
        ("prepare check", CheckConfig),
        ("prepare masks", MasksConfig),
        ("prepare select", SelectConfig),
        ("export", ExportConfig),
    ],
)
def test_docs_commands_have_only_known_flags(job: str, settings: type, page: Path) -> None:
    name, _, subcommand = job.partition(" ")
    program = rf"(?:python jobs/{name}\.py|\bpetseg {name}){f' {subcommand}' if subcommand else ''}\b"
    commands = re.findall(rf"{program}((?:[^\n\\`]|\\\n)*)", page.read_text())
    given = set(re.findall(r"--[a-z-]+", " ".join(commands))) - {"--help", "--config", "--debug"}
    known = {flag(field.name) for field in dataclasses.fields(settings)}
    assert given <= known
    pages: dict[str, str] = dict.fromkeys(("prepare masks", "prepare select"), "labelling.md")
    pages |= dict.fromkeys(("prepare check", "prepare shards"), "data.md")
    assert given or page.name != pages.get(job, "data.md" if job.startswith("prepare") else "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_relative_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists()


@pytest.mark.parametrize(
    ("page", "settings"),
    [
        ("predicting", {PredictConfig}),
        ("evaluating", {EvaluateConfig}),
        ("data", {CheckConfig, OxfordConfig, ShardsConfig, TrainConfig}),
        ("labelling", {MasksConfig, TrainConfig, PredictConfig, SelectConfig, CheckConfig}),
    ],
)
def test_docs_each_named_flag_exists(page: str, settings: set[type]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    named = {word.replace("--no-", "--") for word in re.findall(r"--[a-z][a-z-]+", text)}
    named -= {"--kills", "--config", "--debug"}
    assert named <= {flag(field.name) for job in settings for field in dataclasses.fields(job)}


def test_readme_has_the_two_first_commands() -> None:
    assert "pip install -e . && petseg train " in README
    assert "pip install -e '.[test]' && pytest " in README
