"""The wheel in a folder of its own: what `pip install petseg` gives, away from the checkout."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import petseg


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel, built from a copy of what git would send and installed without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("petseg", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)  # noqa: S607
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True)
    [wheel] = folder.glob("petseg-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    yield folder


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed / "site"), "COLUMNS": "100"}
    return subprocess.run(
        command, cwd=installed, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(params=["petseg", "python -m petseg"])
def program(request: pytest.FixtureRequest, installed: Path) -> tuple[str, list[str]]:
    """How it is typed, and the words that start it."""
    if request.param == "petseg":
        return request.param, [sys.executable, str(installed / "site" / "bin" / "petseg")]
    return request.param, [sys.executable, "-m", "petseg"]


def test_wheel_has_the_package_and_its_files(installed: Path) -> None:
    code = "import petseg; from importlib import resources; print(petseg.__file__, petseg.load)"
    done = run(installed, sys.executable, "-c", code)
    assert done.stdout.startswith(str(installed / "site"))
    there = {str(path.relative_to(installed / "site")) for path in (installed / "site" / "petseg").rglob("*")}
    expected = {path.relative_to(ROOT) for path in (ROOT / "petseg").rglob("*") if "__pycache__" not in path.parts}
    assert {str(path) for path in expected} <= there


def test_program_lists_its_commands_and_version(installed: Path, program: tuple[str, list[str]]) -> None:
    _, start = program
    shown = run(installed, *start, "--help")
    assert shown.returncode == 0, shown.stderr
    for name in ("train", "predict", "evaluate", "prepare", "export"):
        assert f"\n  {name} " in shown.stdout
    assert run(installed, *start).stdout == shown.stdout
    assert run(installed, *start, "--version").stdout == f"petseg {petseg.__version__}\n"


def test_program_on_an_unknown_command_says_the_nearest(installed: Path, program: tuple[str, list[str]]) -> None:
    _, start = program
    done = run(installed, *start, "trian")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: trian: there is no such command; ")
    assert "did you mean train?" in done.stderr


def test_help_of_a_command_names_the_program_as_it_was_started(installed: Path, program: tuple[str, list[str]]) -> None:
    typed, start = program
    shown = run(installed, *start, "train", "--help")
    assert shown.stdout.startswith(f"usage: {typed} train [FLAGS]\n")
    assert f"\n{typed} train --images photos --masks masks --name first " in shown.stdout
    shown = run(installed, *start, "prepare", "shards", "--help")
    assert shown.stdout.startswith(f"usage: {typed} prepare shards --images PLACE")


def test_bad_flag_through_the_program_is_one_line_and_exit_code_2(
    installed: Path, program: tuple[str, list[str]]
) -> None:
    _, start = program
    done = run(installed, *start, "predict", "--chekpoint", "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean --checkpoint?" in done.stderr
