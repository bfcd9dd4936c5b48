"""What a training run leaves: checkpoints on storage, written whole, and how a network comes back from them.

A checkpoint is a folder: `model.pt` (plain state dict), `train_state.pt` (optimizer), `config.json` (`ModelConfig`)
and `metrics.json` (the epochs so far; written last, so a folder without it is not a checkpoint). A run's folder holds
`checkpoints/epoch-0001`, …: the best by validation loss and the last.
"""

import hashlib
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petseg import storage
from petseg.config import InputError, ModelConfig, from_json, to_json
from petseg.unet import UNet

History = list[dict[str, Any]]
"""One dictionary of metrics per epoch, in order; what `metrics.jsonl` has line by line."""

_COMMIT = "metrics.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on storage."""

    location: str
    model: ModelConfig
    history: History

    @property
    def epoch(self) -> int:
        """The number of the last epoch it has seen, from 1."""
        return len(self.history)

    @property
    def val_loss(self) -> float:
        """Validation loss after that epoch; infinite where it was not a number, so that it is never the best."""
        loss = self.history[-1]["val_loss"]
        return math.inf if loss is None else loss


def save(run: str, model: UNet, optimizer: torch.optim.Optimizer, config: ModelConfig, history: History) -> None:
    """Write the checkpoint of the last epoch of `history`, then drop those that are neither the best nor the last.

    The previous ones are deleted only after the new one is complete. Raises `OSError` where storage refuses.
    """
    files = {
        "model.pt": _to_bytes(model.state_dict()),
        "train_state.pt": _to_bytes({"optimizer": optimizer.state_dict()}),
        "config.json": to_json(config).encode(),
        _COMMIT: json.dumps(history).encode(),
    }
    location = _location(run, len(history))
    storage.remove_folder(location)  # half a one, of a process that was killed
    storage.write_folder(location, files)
    checkpoints = _complete(run)
    kept = (_best(checkpoints), _last(checkpoints))
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            storage.remove_folder(checkpoint.location, first=_COMMIT)


def last(run: str) -> Checkpoint | None:
    """The complete checkpoint of a run that has seen the most epochs."""
    return _last(_complete(run))


def best(run: str) -> Checkpoint | None:
    """The complete checkpoint of a run with the lowest validation loss, the earlier one of equals."""
    return _best(_complete(run))


def _last(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda checkpoint: checkpoint.epoch, default=None)


def _best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return min(checkpoints, key=lambda checkpoint: (checkpoint.val_loss, checkpoint.epoch), default=None)


def _complete(run: str) -> list[Checkpoint]:
    folder = storage.join(run, "checkpoints")
    found = []
    for location in (storage.join(folder, name) for name in storage.list_names(folder)):
        if _COMMIT not in storage.list_names(location):
            continue
        try:
            found.append(open_checkpoint(location))
        except InputError:
            if _COMMIT in storage.list_names(location):
                raise
            # Else a training run that is going on has just deleted it.
    return found


def find(location: str) -> Checkpoint:
    """The checkpoint that `--checkpoint` names: the best of a run's folder, or the folder itself.

    Raises `InputError` where it is neither.
    """
    names = storage.list_names(location)
    if "checkpoints" in names:
        checkpoint = best(location)
        if checkpoint is None:
            raise InputError(f"--checkpoint {location}: this run has not finished its first epoch yet")
        return checkpoint
    if _COMMIT not in names or "model.pt" not in names:
        raise InputError(
            f"--checkpoint {location}: neither a run's folder nor a complete checkpoint; give the folder that "
            "jobs/train.py printed, or one below its checkpoints/"
        )
    return open_checkpoint(location)


def open_checkpoint(location: str) -> Checkpoint:
    """The settings and history of the checkpoint in this folder, without its weights."""
    config_file, commit_file = storage.join(location, "config.json"), storage.join(location, _COMMIT)
    model = from_json(ModelConfig, _read(config_file), config_file)
    history = storage.read_json(commit_file)
    if not (isinstance(history, list) and history and isinstance(history[-1], dict) and "val_loss" in history[-1]):
        raise InputError(f"{commit_file}: a list with the metrics of each epoch is expected; was it edited?")
    return Checkpoint(location, model, history)


def read_weights(checkpoint: Checkpoint) -> bytes:
    """The content of `model.pt`, once it is known to fit: raises `InputError` as `build_model` does."""
    content = _read(storage.join(checkpoint.location, "model.pt"))
    build_model(checkpoint.model, content, checkpoint.location)
    return content


def load_model(checkpoint: Checkpoint) -> UNet:
    """The network with its weights, on the CPU, in training mode. Raises `InputError` as `build_model` does."""
    return build_model(checkpoint.model, _read(storage.join(checkpoint.location, "model.pt")), checkpoint.location)


def fingerprint(checkpoint: Checkpoint, weights: bytes) -> str:
    """SHA-256 of all that a prediction follows from: the weights and the model's settings."""
    return hashlib.sha256(to_json(checkpoint.model).encode() + weights).hexdigest()


def build_model(config: ModelConfig, weights: bytes, source: str) -> UNet:
    """The network of `config` with the weights of a `model.pt`, on the CPU, in training mode.

    Raises `InputError`, naming `source`, the parameter and both shapes, where the weights are another network's.
    """
    model = UNet(config.num_classes, input_scale=config.input_scale, input_offset=config.input_offset)
    state = _from_bytes(weights, f"{source}/model.pt")
    _refuse_misfit(state, model.state_dict(), source)
    model.load_state_dict(state)
    return model


def load_train_state(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer in place."""
    location = storage.join(checkpoint.location, "train_state.pt")
    optimizer.load_state_dict(_from_bytes(_read(location), location)["optimizer"])


def from_keras(weights: list[np.ndarray], num_classes: int) -> dict[str, Tensor]:
    """State dict of `UNet(num_classes)` from what `keras.Model.get_weights()` gives for the Keras example's network.

    Keras's layouts: convolution (kh, kw, in, out), depthwise (kh, kw, in, 1), transposed (kh, kw, out, in).
    Raises `InputError` where the number of arrays, or the shape of one of them, is another network's.
    """
    target = {
        name: tensor
        for name, tensor in UNet(num_classes).state_dict().items()
        if not name.endswith("num_batches_tracked")  # Keras counts no batches
    }
    if len(weights) != len(target):
        raise InputError(f"from_keras: {len(weights)} arrays given, the network has {len(target)}")
    state = {}
    for (name, wanted), array in zip(target.items(), weights, strict=True):
        # Copied, since PyTorch takes no negative strides and must not share memory with the caller's arrays.
        tensor = torch.from_numpy(np.array(_from_keras_layout(name, np.asarray(array, np.float32)), order="C"))
        if tensor.shape != wanted.shape:
            raise InputError(
                f"from_keras: {name} is {tuple(wanted.shape)} here, {tuple(tensor.shape)} in the weights given"
            )
        state[name] = tensor
    counters = {
        name: tensor for name, tensor in UNet(num_classes).state_dict().items() if name.endswith("num_batches_tracked")
    }
    return state | counters


def _from_keras_layout(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 4:
        return array
    if name.endswith("depthwise.weight"):
        return array.transpose(2, 3, 0, 1)
    if name.startswith("up.") and ".conv" in name:
        # A transposed convolution of stride 1, as the ordinary one that UNet has in its place.
        return array[::-1, ::-1].transpose(2, 3, 0, 1)
    return array.transpose(3, 2, 0, 1)


def _refuse_misfit(state: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    for name, tensor in wanted.items():
        if name not in state:
            raise InputError(f"{source}: the parameter {name} is missing; was it written by another network?")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{source}: {name} is {tuple(state[name].shape)} in model.pt, but {tuple(tensor.shape)} in the network "
                "that its config.json describes"
            )
    extra = sorted(set(state) - set(wanted))
    if extra:
        raise InputError(f"{source}: model.pt has a parameter {extra[0]} that this network does not know")


def _location(run: str, epoch: int) -> str:
    return storage.join(run, "checkpoints", f"epoch-{epoch:04d}")


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes, source: str) -> dict[str, Any]:
    """Unpickle tensors and nothing else (`weights_only`): storage is not trusted to run code."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, … on broken files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be loaded as weights: {reason}") from error
    if not isinstance(state, dict):
        raise InputError(f"{source}: a dictionary of parameters is expected, not {type(state).__name__}")
    return state


def _read(location: str) -> bytes:
    try:
        return storage.read(location)
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
