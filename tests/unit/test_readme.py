"""README and docs against what is there: the tree, flags, links. What their commands do: test_docs.py."""

import dataclasses
import re
from pathlib import Path

import pytest
from conftest import ROOT

from petseg.config.predict import EvaluateConfig, ExportConfig, PredictConfig
from petseg.config.prepare import CheckConfig, OxfordConfig, ShardsConfig
from petseg.config.train import TrainConfig

README = (ROOT / "README.md").read_text()
HOUSE = (ROOT / "docs" / "how-it-works.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tree_names_every_file_once() -> None:
    tree = re.findall(r"^(petseg/\S+\.py) ", HOUSE, re.MULTILINE)
    files = [path for path in (ROOT / "petseg").rglob("*.py") if path.read_text().count("\n") > 1]
    assert sorted(tree) == sorted(
        str(path.relative_to(ROOT)) for path in files if path.parent.parent != ROOT or path.stem != "__init__"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize(
    ("job", "settings"),
    [
        ("train.py", TrainConfig),
        ("predict.py", PredictConfig),
        ("evaluate.py", EvaluateConfig),
        ("prepare.py oxford-pets", OxfordConfig),
        ("prepare.py shards", ShardsConfig),
        ("prepare.py check", CheckConfig),
        ("export.py", ExportConfig),
    ],
)
def test_the_commands_have_only_flags_that_exist(job: str, settings: type, page: Path) -> None:
    commands = re.findall(rf"python jobs/{re.escape(job)}((?:[^\n\\]|\\\n)*)", page.read_text())
    given = set(re.findall(r"--[a-z-]+", " ".join(commands))) - {"--help", "--config", "--debug"}
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)}
    assert given <= known
    assert given or page.name != ("data.md" if job.startswith("prepare") else "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists()


@pytest.mark.parametrize(
    ("page", "settings"),
    [
        ("predicting", {PredictConfig}),
        ("evaluating", {EvaluateConfig}),
        ("data", {CheckConfig, OxfordConfig, ShardsConfig, TrainConfig}),
    ],
)
def test_every_flag_that_a_page_names_alone_exists(page: str, settings: set[type]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    flags = {flag.removeprefix("--no-").removeprefix("--") for flag in re.findall(r"--[a-z][a-z-]+", text)}
    named = flags - {"kills", "config", "debug"}
    assert named <= {field.name.replace("_", "-") for job in settings for field in dataclasses.fields(job)}


def test_the_two_commands_are_there() -> None:
    assert "pip install -e . && python jobs/train.py " in README
    assert "pip install -e '.[test]' && pytest " in README
