import dataclasses
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONFIG, history, save, trained

from petseg import storage
from petseg.data import labels
from petseg.errors import InputError
from petseg.models import best, checkpoint
from petseg.models.checkpoint import TrainState


def test_save_weights_and_optimizer_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    raw_weights, _ = trained(2)
    state = TrainState(optimizer.state_dict(), raw_weights.state_dict(), (3.0, 4.0), "bf16", 7)
    checkpoint.save(str(tmp_path), model, state, CONFIG, history(0.5))
    found = checkpoint.last(str(tmp_path))
    assert found is not None
    assert (found.epoch, found.order, found.model) == (1, 0.5, CONFIG)

    loaded = checkpoint.load_model(found)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    found_state = checkpoint.load_train_state(found)
    assert (found_state.sums, found_state.dtype, found_state.epoch_steps) == ((3.0, 4.0), "bf16", 7)
    assert found_state.raw_weights is not None
    assert all(torch.equal(tensor, found_state.raw_weights[name]) for name, tensor in raw_weights.state_dict().items())
    restored = torch.optim.AdamW(loaded.parameters())
    restored.load_state_dict(found_state.optimizer)
    for before, after in zip(optimizer.state.values(), restored.state.values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_save_best_and_last_checkpoints_are_kept(tmp_path: Path) -> None:
    losses = [0.9, 0.5, 0.7, None, 0.6]
    for count in range(1, 6):
        save(tmp_path, *losses[:count])
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["epoch-0002", "epoch-0005"]
    best, last = checkpoint.best(str(tmp_path)), checkpoint.last(str(tmp_path))
    assert best is not None and last is not None
    assert (best.epoch, last.epoch) == (2, 5)


def test_best_nan_loss_is_never_the_best(tmp_path: Path) -> None:
    save(tmp_path, 5.0)
    save(tmp_path, 5.0, None)
    best = checkpoint.best(str(tmp_path))
    assert best is not None and best.epoch == 1


@pytest.mark.parametrize(("by", "expected"), [("val_loss", 2), ("miou", 1), ("iou:cat", 3), ("iou:dog", 1)])
def test_best_is_chosen_by_the_value_that_the_run_names(by: str, expected: int, tmp_path: Path) -> None:
    """An undefined value, here the IoU of dog in epochs 2 and 3, is never the best."""
    values = [(0.5, 0.9, 0.2, 0.1), (0.3, 0.8, 0.5, None), (0.4, 0.7, 0.6, None)]
    epochs: checkpoint.History = []
    for number, (loss, miou, cat, dog) in enumerate(values, 1):
        epoch = {"epoch": number, "val_loss": loss, "val_miou": miou, "val_iou": {"cat": cat, "dog": dog}}
        epochs.append(epoch if by == "val_loss" else epoch | {best.KEY: by})
        model, optimizer = trained(0)
        checkpoint.save(str(tmp_path), model, TrainState(optimizer.state_dict()), CONFIG, list(epochs))
    assert checkpoint.find(str(tmp_path)).epoch == expected
    assert storage.list_names(str(tmp_path / "checkpoints")) == sorted({f"epoch-000{expected}", "epoch-0003"})


def test_save_full_disk_previous_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 0.5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_folder", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 0.5, 0.4)
    last = checkpoint.last(str(tmp_path))
    assert last is not None and last.epoch == 1


FULL_DISK = """
import resource, signal, sys
import torch
from petseg.models import checkpoint
from petseg.models.unet import UNet

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
last = checkpoint.last(sys.argv[1])
try:
    checkpoint.save(sys.argv[1], UNet(3), checkpoint.TrainState({}), last.model, [*last.history, {"val_loss": 0.1}])
except OSError as error:
    print("refused", error.errno)
"""


def test_save_truncated_write_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    """A file size limit of one megabyte simulates a disk that becomes full during a write."""
    save(tmp_path, 0.5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("refused"), done.stderr
    last = checkpoint.last(str(tmp_path))
    assert last is not None and last.epoch == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    save(tmp_path, 0.5, 0.4)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["epoch-0002"]


def test_last_checkpoint_within_an_epoch_is_never_the_best(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    state = TrainState(optimizer.state_dict(), epoch_steps=9)
    checkpoint.save(str(tmp_path), model, state, CONFIG, [], step=5)
    last = checkpoint.last(str(tmp_path))
    assert last is not None and (last.epoch, last.step, checkpoint.load_train_state(last).epoch_steps) == (0, 5, 9)
    with pytest.raises(InputError, match="has not finished its first epoch"):
        checkpoint.find(str(tmp_path))
    save(tmp_path, 0.5)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["epoch-0001"]
    checkpoint.save(str(tmp_path), model, state, CONFIG, history(0.5), step=3)
    last, best = checkpoint.last(str(tmp_path)), checkpoint.best(str(tmp_path))
    assert last is not None and best is not None and (last.step, best.step, last.epoch) == (3, 0, 1)


def test_load_pretrained_other_classes_drops_the_last_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(tmp_path / "other", 0.5)
    same, weights = checkpoint.load_pretrained(str(tmp_path / "other"), CONFIG)
    assert same == CONFIG and set(weights) == set(model.state_dict()) and not capsys.readouterr().out
    other = dataclasses.replace(
        CONFIG, num_classes=2, class_names=("a", "b"), palette=labels.palette(2), input_scale=1.0, image_size=(64, 64)
    )
    found, weights = checkpoint.load_pretrained(str(tmp_path / "other"), other)
    assert found == dataclasses.replace(other, input_scale=CONFIG.input_scale)
    assert set(model.state_dict()) - set(weights) == {"head.weight", "head.bias"}
    assert (
        "has the classes pet, background, border, not a, b; the last layer starts from random weights"
        in capsys.readouterr().out
    )


def test_find_incomplete_checkpoint_is_ignored_and_replaced(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / "epoch-0001"
    half.mkdir(parents=True)
    (half / "model.pt").write_bytes(b"half")
    assert checkpoint.last(str(tmp_path)) is None
    with pytest.raises(InputError, match="has not finished its first epoch"):
        checkpoint.find(str(tmp_path))
    save(tmp_path, 0.5)
    assert checkpoint.find(str(tmp_path)).location == str(half)


def test_last_partly_deleted_checkpoint_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill during deletion leaves a folder without metrics.json, which is removed first."""
    save(tmp_path, 0.5)
    save(tmp_path, 0.5, 0.4)
    save(tmp_path, 0.5, 0.4, 0.6)

    def killed_after_the_first(location: str, first: str | None = None) -> None:
        if first:
            (Path(location) / first).unlink()

    monkeypatch.setattr(storage, "remove_folder", killed_after_the_first)
    save(tmp_path, 0.5, 0.4, 0.6, 0.7)
    assert storage.list_names(str(tmp_path / "checkpoints" / "epoch-0003")) == [
        "config.json",
        "model.pt",
        "train_state.pt",
    ]
    last = checkpoint.last(str(tmp_path))
    assert last is not None and last.epoch == 4


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[1]"])
def test_find_edited_history_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    save(tmp_path, 0.5)
    (tmp_path / "checkpoints" / "epoch-0001" / "metrics.json").write_bytes(content)
    with pytest.raises(InputError, match=r"epoch-0001/metrics\.json: "):
        checkpoint.find(str(tmp_path))


def test_find_accepts_a_run_or_a_checkpoint_folder(tmp_path: Path) -> None:
    save(tmp_path, 0.5)
    save(tmp_path, 0.5, 0.8)
    assert checkpoint.find(str(tmp_path)).epoch == 1
    assert checkpoint.find(str(tmp_path / "checkpoints" / "epoch-0002")).epoch == 2
    for other in (tmp_path / "checkpoints", tmp_path / "missing"):
        with pytest.raises(InputError, match="neither a run's folder nor a complete checkpoint"):
            checkpoint.find(str(other))


def rewrite(location: Path, change: dict[str, Any]) -> None:
    state = torch.load(location / "model.pt", weights_only=True)
    torch.save({key: value for key, value in (state | change).items() if value is not None}, location / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": torch.zeros(5, 32, 3, 3)}, r"head.weight is \(5, 32, 3, 3\) in model.pt, but \(3, 32, 3, 3\)"),
        ({"head.bias": None}, "model.pt lacks the parameter head.bias"),
        ({"tail.bias": torch.zeros(1)}, "model.pt has an unknown parameter tail.bias"),
    ],
)
def test_read_weights_of_another_network_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(tmp_path, 0.5)
    found = checkpoint.find(str(tmp_path))
    rewrite(Path(found.location), change)
    with pytest.raises(InputError, match=message):
        checkpoint.read_weights(found)


class Planted:
    """Object whose pickle would run code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code from storage was run",))


def test_load_model_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    save(tmp_path, 0.5)
    found = checkpoint.find(str(tmp_path))
    buffer = io.BytesIO()
    torch.save({"head.bias": Planted()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Planted()), b"", b"no weights"):
        (Path(found.location) / "model.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"epoch-0001/model.pt: not a valid checkpoint file"):
            checkpoint.load_model(found)


def test_find_edited_config_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 0.5)
    file = tmp_path / "checkpoints" / "epoch-0001" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": 1}))
    with pytest.raises(InputError, match=r"epoch-0001/config.json: unknown setting colour"):
        checkpoint.find(str(tmp_path))


def test_fingerprint_depends_on_weights_and_settings_only(tmp_path: Path) -> None:
    save(tmp_path / "a", 0.5, seed=1)
    save(tmp_path / "b", 0.7, seed=1)
    save(tmp_path / "c", 0.5, seed=2)
    prints = []
    for name in "abc":
        found = checkpoint.find(str(tmp_path / name))
        prints.append(checkpoint.fingerprint(found, checkpoint.read_weights(found)))
    assert prints[0] == prints[1] != prints[2]


def test_load_train_state_of_an_earlier_version_keeps_its_weights(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    weights = trained(2)[0].state_dict()
    checkpoint.save(
        str(tmp_path), model, TrainState(optimizer.state_dict(), weights, dtype="bf16"), CONFIG, history(0.5)
    )
    found = checkpoint.last(str(tmp_path))
    assert found is not None
    file = Path(found.location) / "train_state.pt"
    state = torch.load(file, weights_only=True)
    state["moved"], state["arithmetic"] = state.pop("raw_weights"), state.pop("dtype")
    torch.save(state, file)
    loaded = checkpoint.load_train_state(found)
    assert loaded.dtype == "bf16" and loaded.raw_weights is not None
    assert all(torch.equal(tensor, loaded.raw_weights[name]) for name, tensor in weights.items())
