"""Layers: imports go only one way in an ordered list, and --help loads neither torch nor Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = [
    ["background", "errors", "files", "lookahead", "progress"],
    ["config"],
    ["storage"],
    ["status"],
    ["cli", "cluster", "models"],
    ["data"],
    ["inference"],
    ["evaluation", "api"],
    ["pipelines"],
    ["training"],
    ["reports"],
    ["jobs"],
]
"""A module imports from its own package and from those in rows above."""

HEAVY = {"ray", "torch", "torchvision", "pandas", "matplotlib"}

PACKAGE = ROOT / "petseg"
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
)


def part_of(path: Path) -> str:
    """Return the package or top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "petseg":
            parts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petseg."):
            parts.add(str(node.module).split(".")[1])
    return parts


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(str(node.module).split(".")[0])
    return packages


def test_layers_every_package_is_listed() -> None:
    assert {part_of(path) for path in FILES} == {part for layer in LAYERS for part in layer}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_imports_go_only_to_rows_above(path: Path) -> None:
    part = part_of(path)
    [number] = [number for number, layer in enumerate(LAYERS) if part in layer]
    lower = {lower for layer in LAYERS[:number] for lower in layer}
    assert imported_parts(path) <= lower | {part}


@pytest.mark.parametrize("path", sorted((PACKAGE / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_layers_jobs_do_not_import_one_another(path: Path) -> None:
    assert "jobs" not in imported_parts(path)


def test_layers_only_three_packages_import_ray() -> None:
    assert {part_of(path) for path in FILES if "ray" in imported_packages(path)} == {
        "cluster",
        "pipelines",
        "training",
    }
    assert [path.stem for path in FILES if "import ray.train" in path.read_text()] == ["fit", "loop"]


@pytest.mark.parametrize(
    "job", ["train", "predict", "evaluate", "export", "status", "prepare", "prepare oxford-pets", "prepare shards"]
)
def test_help_loads_neither_torch_nor_ray(job: str) -> None:
    job, *words = job.split()
    code = f"""
import runpy, sys
sys.argv = ["{job}.py", *{words!r}, "--help"]
try:
    runpy.run_path({str(ROOT / "jobs" / f"{job}.py")!r}, run_name="__main__")
except SystemExit as exit:
    assert exit.code == 0
print(sorted(set(sys.modules) & {HEAVY!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
