import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kill_predict
import pytest
import torch
from checkpoints import CONFIG
from test_kill_train import TRAIN_WORKER

import petseg.training.fit
from petseg.config.train import RecipeName, TrainConfig
from petseg.data import manifest, splits
from petseg.data.labels import LabelMap
from petseg.errors import InputError
from petseg.models import checkpoint
from petseg.models.encoder_weights import DEFAULT_ENCODER, with_encoder
from petseg.pipelines.decode import Decoded, decode
from petseg.training import loop, recipes, run_folder, trainer
from petseg.training.rank_data import RankData

CPU = torch.device("cpu")
EPOCHS = 12


@pytest.fixture(scope="module")
def decoded(local_ray: None, drawn: tuple[Path, Path]) -> list[Decoded]:
    rows = manifest.discover(*map(str, drawn))
    train, val = splits.split(rows, seed=1, val_count=7)
    return decode({"training": train, "validation": val}, (32, 32), LabelMap.parse("", 3))


@pytest.fixture
def fit(decoded: list[Decoded], tmp_path: Path) -> Callable[..., Path]:
    def fit(name: str, say: Callable[[str], None] = print, **settings: Any) -> Path:
        given: dict[str, Any] = {"batch_size": 4} | settings
        config = recipes.resolve(TrainConfig(storage=str(tmp_path), name=name, **given))
        model = with_encoder(CONFIG, DEFAULT_ENCODER) if config.recipe == "pretrained" else CONFIG
        setup = loop.WorkerSetup(
            config=config, model=model, run=run_folder.folder(config), cpus=1, train=decoded[0], val=decoded[1]
        )
        petseg.training.fit.fit(setup, say)
        return tmp_path / name

    return fit


@pytest.mark.ray
@pytest.mark.parametrize("recipe", ["pretrained", pytest.param("best", marks=pytest.mark.slow)])
def test_fit_worker_killed_same_seed_gives_the_same_numbers(
    recipe: RecipeName, fit: Callable[..., Path], decoded: list[Decoded], tmp_path: Path
) -> None:
    """Also: two ranks validate seven rows once each, with the averaged statistics that the checkpoint has."""
    settings: dict[str, Any] = {"recipe": recipe, "num_workers": (2,), "epochs": EPOCHS, "precision": "fp32"}
    first, said = fit("first", **settings), []
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(_kill_a_worker, tmp_path / "again")
        again = fit("again", say=said.append, **settings)
        killed.result()
    assert [line.partition(" (")[0] for line in said] == ["a worker has died"]
    timing = {"seconds", "train_images_per_s"}
    histories = [
        [{k: v for k, v in epoch.items() if k not in timing} for epoch in run_folder.read_metrics(str(run))]
        for run in (first, again)
    ]
    assert len(histories[0]) == EPOCHS and histories[0] == histories[1]
    assert [path.name for path in first.iterdir() if path.name.startswith(".")] == []
    states = []
    for run in (first, again):
        last = checkpoint.last(str(run))
        assert last is not None and last.epoch == EPOCHS
        states.append(checkpoint.load_model(last).state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    last = checkpoint.last(str(first))
    assert last is not None
    share = RankData(decoded[1], 0, 1, CPU, 1e9)
    scores = trainer.validate(checkpoint.load_model(last), share.eval_batches(3), CONFIG, "fp32", CPU)
    assert last.history[-1]["val_loss"] == pytest.approx(scores["val_loss"], rel=1e-4)
    assert last.history[-1]["val_pixel_accuracy"] == pytest.approx(scores["val_pixel_accuracy"], abs=1e-3)


def _kill_a_worker(run: Path) -> None:
    """Kill a worker once there is a checkpoint to continue from."""
    deadline = time.monotonic() + 120
    while not run_folder.read_metrics(str(run)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(kill_predict.matching(os.getpid(), TRAIN_WORKER)[0], signal.SIGKILL)


@pytest.mark.ray
def test_fit_nan_loss_is_refused_in_one_line(fit: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"the training loss of epoch \d is nan; lower --learning-rate"):
        fit("run", epochs=3, learning_rate=1e30)


@pytest.mark.ray
def test_fit_second_call_continues_from_the_last_checkpoint(fit: Callable[..., Path]) -> None:
    run = fit("run", epochs=1)
    first = run_folder.read_metrics(str(run))
    (run / "metrics.jsonl").unlink()  # as after a kill between checkpoint and metrics
    fit("run", epochs=2)
    history = run_folder.read_metrics(str(run))
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert history[0] == first[0]
    assert history[1]["train_loss"] < history[0]["train_loss"]
