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
from test_kill_train import TRAIN_WORKER
from torch import nn

from petseg.config.base import ModelConfig
from petseg.config.train import TrainConfig
from petseg.data import labels, manifest, splits
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.errors import InputError
from petseg.evaluation import metrics
from petseg.models import checkpoint
from petseg.models.unet import UNet
from petseg.pipelines.decode import Decoded, decode
from petseg.training import loop, recipes, run_folder, trainer
from petseg.training.rank_data import Share

CPU = torch.device("cpu")
EPOCHS = 12
MODEL = ModelConfig(
    num_classes=3,
    image_size=(32, 32),
    class_names=labels.class_names(3),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)


def test_validate_divides_sums_once() -> None:
    """Batches of 4 and 1, and ignored pixels: neither may weigh more than its pixels."""
    torch.manual_seed(0)
    model = UNet(3, input_scale=1 / 127.5, input_offset=-1)
    photos = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 2, (5, 32, 32), dtype=torch.uint8)
    masks[4] = IGNORE_ID
    masks[4, 0, 0] = 1
    batches = [(photos[:4], masks[:4]), (photos[4:], masks[4:])]
    scores = trainer.validate(model, iter(batches), MODEL, "fp32", CPU)
    with torch.no_grad():
        logits = model(photos)
    expected = nn.functional.cross_entropy(logits, masks.long(), ignore_index=IGNORE_ID)
    confusion = metrics.confusion_matrix(logits.argmax(1), masks, 3)
    assert scores["val_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert scores["val_pixel_accuracy"] == pytest.approx(metrics.pixel_accuracy(confusion), abs=1e-3)
    assert scores["val_miou"] == pytest.approx(metrics.mean_iou(confusion), abs=1e-3)
    assert list(scores["val_iou"]) == ["pet", "background", "border"]


def test_a_score_that_is_not_defined_is_null() -> None:
    model = UNet(3)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([100.0, 0, 0]))  # pyright: ignore[reportOptionalMemberAccess]
        model.head.weight.zero_()
    masks = torch.zeros((1, 32, 32), dtype=torch.uint8)
    scores = trainer.validate(model, iter([(torch.zeros(1, 3, 32, 32), masks)]), MODEL, "fp32", CPU)
    assert scores["val_iou"] == {"pet": 1, "background": None, "border": None}
    assert scores["val_miou"] == 1
    scores = trainer.validate(model, iter([(torch.zeros(1, 3, 32, 32), masks + IGNORE_ID)]), MODEL, "fp32", CPU)
    assert scores["val_loss"] is None and scores["val_miou"] is None


@pytest.fixture(scope="module")
def decoded(local_ray: None, drawn: tuple[Path, Path]) -> list[Decoded]:
    rows = manifest.discover(*map(str, drawn))
    return decode(list(splits.split(rows, seed=1, val_count=7)), (32, 32), LabelMap.parse("", 3))


@pytest.fixture
def fit(decoded: list[Decoded], tmp_path: Path) -> Callable[..., Path]:
    def fit(name: str, say: Callable[[str], None] = print, **settings: Any) -> Path:
        given: dict[str, Any] = {"batch_size": 4} | settings
        config = recipes.resolve(TrainConfig(storage=str(tmp_path), name=name, **given))
        setup = loop.WorkerSetup(
            config=config, model=MODEL, run=run_folder.folder(config), cpus=1, train=decoded[0], val=decoded[1]
        )
        loop.fit(setup, say)
        return tmp_path / name

    return fit


@pytest.mark.ray
def test_the_same_seed_and_worker_count_give_the_same_numbers_though_a_worker_is_killed(
    fit: Callable[..., Path], decoded: list[Decoded], tmp_path: Path
) -> None:
    """And seven rows that two ranks validate count once each, with the averaged statistics that the checkpoint has."""
    settings: dict[str, Any] = {"num_workers": (2,), "epochs": EPOCHS, "precision": "fp32"}
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
    share = Share(decoded[1], 0, 1, CPU, 1e9)
    scores = trainer.validate(checkpoint.load_model(last), share.eval_batches(3), MODEL, "fp32", CPU)
    assert last.history[-1]["val_loss"] == pytest.approx(scores["val_loss"], rel=1e-4)
    assert last.history[-1]["val_pixel_accuracy"] == pytest.approx(scores["val_pixel_accuracy"], abs=1e-3)


def _kill_a_worker(run: Path) -> None:
    """Once there is a checkpoint to go on from."""
    deadline = time.monotonic() + 120
    while not run_folder.read_metrics(str(run)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(kill_predict.matching(os.getpid(), TRAIN_WORKER)[0], signal.SIGKILL)


@pytest.mark.ray
def test_a_loss_that_is_no_number_is_one_line(fit: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"the training loss of epoch \d is nan; lower --learning-rate"):
        fit("run", epochs=3, learning_rate=1e30)


@pytest.mark.ray
def test_a_run_goes_on_from_its_last_checkpoint(fit: Callable[..., Path]) -> None:
    run = fit("run", epochs=1)
    first = run_folder.read_metrics(str(run))
    (run / "metrics.jsonl").unlink()  # as after a kill between checkpoint and metrics
    fit("run", epochs=2)
    history = run_folder.read_metrics(str(run))
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert history[0] == first[0]
    assert history[1]["train_loss"] < history[0]["train_loss"]
