"""`benchmarks/gpu_all.py` on the CPU with tiny sizes, so that it runs at once when there is a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_all
import pytest
import train_gpu
from conftest import call_in, connected_to_ray

SECTIONS = set("abcde")
IN_OWN_PROCESS = gpu_all.job


def results(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> int:
    """Run the script in this process, where torch is already loaded, and return its exit code."""
    command = ["gpu_all.py", "--device", "cpu", "--tiny", "--output", str(folder), *flags]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as exit:
        gpu_all.main()
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_gpu_all_fp32_compared_with_itself_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_all, "STEPS", 2)
    assert run(monkeypatch, tmp_path, "--only", "a") == 0
    found = {str(result["what"]): result for result in results(tmp_path)}
    assert {"cpu, fp32, eager", "cpu, fp32, compiled", "cpu, bf16, eager", "cpu, bf16, compiled"} <= found.keys()
    same = found["cpu, fp32, eager"]
    assert same["largest_probability_difference"] == same["largest_loss_difference"] == 0
    assert found["cpu, bf16, eager"]["largest_probability_difference"] != 0


def test_gpu_all_failed_section_is_recorded_and_the_next_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_gpu_all_no_time_left_sections_are_recorded_as_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tmp_path, "--seconds", "-1") == 0
    skipped = [result for result in results(tmp_path) if result.get("skipped") == "no time left"]
    assert {result["section"] for result in skipped} == SECTIONS


def test_gpu_all_resumed_run_is_compared_at_the_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs here only write metrics. The slow test below runs real ones."""
    losses, started = {"undisturbed": [3, 2, 1], "killed": [3, 2, 1.5]}, []

    def job(name: str, flags: list[str], folder: Path, limit_s: float, *kill_when: Callable[[], bool]) -> float:
        run = flags[flags.index("--name") + 1]
        epochs = losses[run][: 1 if kill_when else 3]
        lines = [json.dumps({"epoch": number, "train_loss": loss}) for number, loss in enumerate(epochs, 1)]
        (folder / "runs" / run).mkdir(parents=True, exist_ok=True)
        (folder / "runs" / run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        assert all(must_die() for must_die in kill_when)
        started.append((name, run, "--resume" in flags, len(kill_when)))
        return 1.0

    monkeypatch.setattr(gpu_all, "job", job)
    gpu_all.resumed(gpu_all.Results(tmp_path, 60), gpu_all.CPU, gpu_all.TINY, tmp_path)
    runs = [("undisturbed", False, 0), ("killed", False, 1), ("killed", True, 0)]
    assert started == [("train", *run) for run in runs]
    expected = {"section": "e", "what": "killed after epoch 1", "losses": [1, 1.5], "difference": 0.5}
    assert results(tmp_path) == [expected]


def call_most_jobs(name: str, flags: list[str], folder: Path, *limits: Any) -> float:
    """Replace `gpu_all.job`: run in this process, except predictions and jobs that are to be killed."""
    if name == "train":
        flags = [*flags, "--cpus-per-worker", "1"]
    if len(limits) > 1 or name == "predict":
        return IN_OWN_PROCESS(name, flags, folder, *limits)
    done = call_in(folder, name, *flags)
    assert done.returncode == 0, done.stderr
    return 1.0


@pytest.mark.ray
def test_gpu_all_step_training_and_prediction_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_all, "job", call_most_jobs)
    monkeypatch.setattr(train_gpu, "WARM_STEPS", 1)
    with connected_to_ray():
        assert run(monkeypatch, tmp_path, "--only", "b,c,d", "--seconds", "1800") == 0, results(tmp_path)
    found = results(tmp_path)
    assert {result["section"] for result in found} == {"about", "b", "c", "d"}
    assert not [result for result in found if "error" in result]
    stages = {str(result["what"]) for result in found if result["section"] == "d"}
    assert {"decode and resize", "network", "masks at the photo's size", "PNG"} < stages


@pytest.mark.slow
@pytest.mark.ray
def test_gpu_all_killed_run_resumes_to_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter tests: the comparison with jobs that only write metrics (above), and the killed worker in
    tests/integration/test_train.py."""
    monkeypatch.setattr(gpu_all, "job", call_most_jobs)
    with connected_to_ray():
        assert run(monkeypatch, tmp_path, "--only", "e", "--seconds", "1800") == 0, results(tmp_path)
    [resumed] = [result for result in results(tmp_path) if result["section"] == "e"]
    assert resumed["difference"] == 0
