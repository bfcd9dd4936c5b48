"""What a training run leaves: checkpoints on storage, written whole, and how a network comes back from them.

A checkpoint is a folder: `model.pt` (plain state dict), `train_state.pt` (optimizer; the weights that it moves, where
`model.pt` has their average), `config.json` (`ModelConfig`) and `metrics.json` (the epochs so far; written last, so a
folder without it is not a checkpoint). A run's folder holds `checkpoints/epoch-0001`, …: the best by validation loss
and the last. One that was written on a notice of preemption is from within an epoch: `epoch-0001-step-000250` has the
first epoch and 250 steps of the second.
"""

import dataclasses
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from petseg import storage
from petseg.config.base import ModelConfig, from_json, to_json
from petseg.errors import InputError, UnavailableError
from petseg.models.build import build
from petseg.models.network import Network

History = list[dict[str, Any]]
"""One dictionary of metrics per epoch, in order; what `metrics.jsonl` has line by line."""

_COMMIT = "metrics.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on storage."""

    location: str
    model: ModelConfig
    history: History
    step: int
    """Steps of the following epoch that it has seen, too; 0 where it is from an epoch's end."""

    @property
    def epoch(self) -> int:
        """The number of the last epoch it has seen, from 1."""
        return len(self.history)

    @property
    def val_loss(self) -> float:
        """Validation loss after that epoch; infinite where it was not a number, so that it is never the best."""
        loss = self.history[-1]["val_loss"]
        return math.inf if loss is None else loss


@dataclass(frozen=True)
class TrainState:
    """What training goes on from, beside the weights that are validated."""

    optimizer: dict[str, Any]
    """State dict of the optimizer."""
    moved: dict[str, Tensor] | None = None
    """State dict of the network whose average `model.pt` is; None where there is no average."""
    sums: tuple[float, float] = (0.0, 0.0)
    """Within an epoch, of all ranks: the training loss, and the weight of the pixels it is of."""
    arithmetic: str = ""
    """What the network was trained in: "bf16" or "fp32"."""
    epoch_steps: int = 0
    """Within an epoch: the steps that it has in all."""


def save(run: str, model: Network, state: TrainState, config: ModelConfig, history: History, step: int = 0) -> None:
    """Write the checkpoint of the last epoch of `history`, or of `step` steps more, then drop those that are neither
    the best nor this one.

    The previous ones are deleted only after the new one is complete. Raises `OSError` where storage refuses.
    """
    files = {
        "model.pt": _to_bytes(model.state_dict()),
        "train_state.pt": _to_bytes({found.name: getattr(state, found.name) for found in dataclasses.fields(state)}),
        "config.json": to_json(config).encode(),
        _COMMIT: json.dumps(history).encode(),
    }
    location = _location(run, len(history), step)
    storage.remove_folder(location)  # half a one, of a process that was killed
    storage.write_folder(location, files)
    checkpoints = _complete(run)
    best = _best(checkpoints)
    for checkpoint in checkpoints:
        if checkpoint != best and checkpoint.location != location:
            storage.remove_folder(checkpoint.location, first=_COMMIT)


def last(run: str) -> Checkpoint | None:
    """The complete checkpoint of a run that has seen the most epochs."""
    return _last(_complete(run))


def best(run: str) -> Checkpoint | None:
    """The complete checkpoint of a run with the lowest validation loss, the earlier one of equals."""
    return _best(_complete(run))


def _last(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step), default=None)


def _best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    validated = [checkpoint for checkpoint in checkpoints if not checkpoint.step]
    return min(validated, key=lambda checkpoint: (checkpoint.val_loss, checkpoint.epoch), default=None)


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


def find(location: str, flag: str = "--checkpoint") -> Checkpoint:
    """The checkpoint that `flag` names: the best of a run's folder, or the folder itself.

    Raises `InputError` where it is neither.
    """
    names = storage.list_names(location)
    if "checkpoints" in names:
        checkpoint = best(location)
        if checkpoint is None:
            raise InputError(f"{flag} {location}: this run has not finished its first epoch yet")
        return checkpoint
    if _COMMIT not in names or "model.pt" not in names:
        raise InputError(
            f"{flag} {location}: neither a run's folder nor a complete checkpoint; give the folder that "
            "training printed, or one below its checkpoints/"
        )
    return open_checkpoint(location)


def open_checkpoint(location: str) -> Checkpoint:
    """The settings and history of the checkpoint in this folder, without its weights."""
    config_file, commit_file = storage.join(location, "config.json"), storage.join(location, _COMMIT)
    model = from_json(ModelConfig, _read(config_file), config_file)
    history = storage.read_json(commit_file)
    within = re.search(r"-step-(\d+)$", location)
    step = int(within[1]) if within else 0
    epochs: list[Any] = history if isinstance(history, list) else [None]
    if not (all(isinstance(epoch, dict) and "val_loss" in epoch for epoch in epochs) and (epochs or step)):
        raise InputError(f"{commit_file}: a list with the metrics of each epoch is expected; was it edited?")
    return Checkpoint(location, model, epochs, step)


def begin_from(location: str, config: ModelConfig) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The weights of another run or checkpoint to begin a network with, and the network's settings: `config` with the
    scaling of the input that those weights expect.

    Where the classes are others, the last layer is not among the weights, which a line says.
    Raises `InputError` as `find` and `build_model` do.
    """
    other = find(location, "--init-from")
    state = load_model(other).state_dict()
    if other.model.class_names != config.class_names:
        for name in [name for name in state if name.startswith("head.")]:
            del state[name]
        print(
            f"--init-from: {location} knows {', '.join(other.model.class_names)}, not "
            f"{', '.join(config.class_names)}; the last layer is made anew"
        )
    scaling = {"input_scale": other.model.input_scale, "input_offset": other.model.input_offset}
    return dataclasses.replace(config, **scaling), state


def read_weights(checkpoint: Checkpoint) -> bytes:
    """The content of `model.pt`, once it is known to fit: raises `InputError` as `build_model` does."""
    content = _read(storage.join(checkpoint.location, "model.pt"))
    build_model(checkpoint.model, content, checkpoint.location)
    return content


def load_model(checkpoint: Checkpoint) -> Network:
    """The network with its weights, on the CPU, in training mode. Raises `InputError` as `build_model` does."""
    return build_model(checkpoint.model, _read(storage.join(checkpoint.location, "model.pt")), checkpoint.location)


def fingerprint(checkpoint: Checkpoint, weights: bytes) -> str:
    """Return the SHA-256 of all that a prediction follows from: the weights and the model's settings."""
    # A prediction that began before checkpoints named their network must go on: the first network stays unnamed.
    model = to_json(checkpoint.model).replace(',\n  "network": "unet"', "")
    return hashlib.sha256(model.encode() + weights).hexdigest()


def build_model(config: ModelConfig, weights: bytes, source: str) -> Network:
    """The network of `config` with the weights of a `model.pt`, on the CPU, in training mode.

    Raises `InputError`, naming `source`, the parameter and both shapes, where the weights are another network's.
    """
    model = build(config)
    state = _from_bytes(weights, f"{source}/model.pt")
    _refuse_misfit(state, model.state_dict(), source)
    model.load_state_dict(state)
    return model


def load_train_state(checkpoint: Checkpoint) -> TrainState:
    """What `save` was given. Raises `InputError` where the file is broken."""
    location = storage.join(checkpoint.location, "train_state.pt")
    state = _from_bytes(_read(location), location)
    if set(state) != {found.name for found in dataclasses.fields(TrainState)}:
        raise InputError(f"{location}: it has {', '.join(sorted(state))}; was it written by another petseg?")
    return TrainState(**state)


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


def _location(run: str, epoch: int, step: int) -> str:
    return storage.join(run, "checkpoints", f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else ""))


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
    except UnavailableError:
        raise
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
