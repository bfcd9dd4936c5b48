"""`benchmarks/gpu_all.py` on the CPU with tiny sizes: the day there is a GPU, it must run at once."""

import json
from pathlib import Path

import gpu_all
import pytest
from conftest import ROOT

SECTIONS = set("abcde")


def results(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> int:
    """Run the script in this process, where torch is loaded already; return its exit code."""
    command = ["gpu_all.py", "--device", "cpu", "--tiny", "--output", str(folder), *flags]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as exit:
        gpu_all.main()
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_parity_of_fp32_with_itself_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tmp_path, "--only", "a") == 0
    found = {str(result["what"]): result for result in results(tmp_path)}
    assert {"cpu, fp32, eager", "cpu, fp32, compiled", "cpu, bf16, eager", "cpu, bf16, compiled"} <= found.keys()
    same = found["cpu, fp32, eager"]
    assert same["largest_probability_difference"] == same["largest_loss_difference"] == 0
    assert found["cpu, bf16, eager"]["largest_probability_difference"] != 0


def test_failed_section_is_a_result_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    def works(found: gpu_all.Results, *_: object) -> None:
        found.add("b", "works", value=1)

    monkeypatch.setattr(gpu_all, "SECTIONS", gpu_all.SECTIONS | {"a": broken, "b": works})
    assert run(monkeypatch, tmp_path, "--only", "a,b") == 1
    about, failed, after = results(tmp_path)
    assert about["section"] == "about"
    assert failed["error"] == "ZeroDivisionError: planted" and "in broken" in str(failed["at"])
    assert after == {"section": "b", "what": "works", "value": 1}


def test_sections_without_time_are_said_to_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tmp_path, "--seconds", "-1") == 0
    skipped = [result for result in results(tmp_path) if result.get("skipped") == "no time left"]
    assert {result["section"] for result in skipped} == SECTIONS


@pytest.mark.ray
@pytest.mark.own_ray
def test_jobs_are_measured_and_a_killed_run_is_resumed_to_the_same_loss(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_all.py"), "--device", "cpu", "--tiny"]
    done = subprocess.run([*script, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    assert {result["section"] for result in found} == SECTIONS | {"about"}
    assert not [result for result in found if "error" in result]
    stages = {str(result["what"]) for result in found if result["section"] == "d"}
    assert {"decode and resize", "network", "masks at the photo's size", "PNG"} < stages
    [resumed] = [result for result in found if result["section"] == "e"]
    assert resumed["difference"] == 0
