"""The wheel, installed in a folder of its own, away from the checkout."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused

import petseg


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with the wheel, built from a copy of the sources and installed without dependencies."""
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
    """The command as a user types it, and the words that start it here."""
    if request.param == "petseg":
        return request.param, [sys.executable, str(installed / "site" / "bin" / "petseg")]
    return request.param, [sys.executable, "-m", "petseg"]


def test_wheel_has_all_files_of_the_package(installed: Path) -> None:
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


def test_program_unknown_command_suggests_the_nearest(installed: Path, program: tuple[str, list[str]]) -> None:
    _, start = program
    done = run(installed, *start, "trian")
    assert_refused(done, "error: unknown command trian; ", "did you mean train?")


def test_help_program_name_is_the_one_typed(installed: Path, program: tuple[str, list[str]]) -> None:
    typed, start = program
    shown = run(installed, *start, "train", "--help")
    assert shown.stdout.startswith(f"usage: {typed} train [FLAGS]\n")
    assert f"\n{typed} train --images photos --masks masks --name first " in shown.stdout
    shown = run(installed, *start, "prepare", "shards", "--help")
    assert shown.stdout.startswith(f"usage: {typed} prepare shards --images PATH")


def test_program_unknown_flag_is_refused_in_one_line(installed: Path, program: tuple[str, list[str]]) -> None:
    _, start = program
    done = run(installed, *start, "predict", "--chekpoint", "x")
    assert_refused(done, "did you mean --checkpoint?")
