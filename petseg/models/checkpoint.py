"""Save and load the checkpoints of a training run.

A checkpoint is a folder with four files:
- `model.pt`: plain state dict of the weights.
- `train_state.pt`: optimizer state. If `model.pt` has averaged weights, also the raw weights.
- `config.json`: `ModelConfig`.
- `metrics.json`: metrics of all finished epochs. It is written last, so a folder without it is not a checkpoint.

A run's folder keeps two checkpoints: the one with the lowest validation loss, and the last. Their names are
`checkpoints/epoch-0001` and so on. A checkpoint written on a preemption notice may lie within an epoch:
`epoch-0001-step-000250` was written after epoch 1 and 250 steps of epoch 2.
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

from petseg import files, storage
from petseg.config.base import from_json, to_json
from petseg.config.model import ModelConfig
from petseg.errors import InputError
from petseg.models.best import order
from petseg.models.build import build
from petseg.models.network import Network

History = list[dict[str, Any]]
"""One dictionary of metrics per epoch, in order. `metrics.jsonl` has the same, one line per epoch."""

_COMMIT = "metrics.json"
"""Name of the file that is written last. A folder without it is not a checkpoint."""

_RENAMED = {"moved": "raw_weights", "arithmetic": "dtype"}
"""Map from field names in earlier checkpoints to the current names in `TrainState`."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on storage."""

    location: str
    model: ModelConfig
    history: History
    step: int
    """Steps done in the unfinished epoch; 0 if the checkpoint was written at the end of an epoch."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs, which is also the number of the last one."""
        return len(self.history)

    @property
    def order(self) -> float:
        """Result of `best.order` for the last finished epoch; infinite if there is none."""
        return order(self.history[-1]) if self.history else math.inf


@dataclass(frozen=True)
class TrainState:
    """State that is needed to resume training, in addition to the weights in `model.pt`."""

    optimizer: dict[str, Any]
    """State dict of the optimizer."""
    raw_weights: dict[str, Tensor] | None = None
    """State dict of the weights that the optimizer updates, if `model.pt` holds their average; else None."""
    sums: tuple[float, float] = (0.0, 0.0)
    """(Sum of the training loss, sum of the pixel weights) of the unfinished epoch, over all ranks."""
    dtype: str = ""
    """Numeric precision of the training: "bf16" or "fp32"."""
    epoch_steps: int = 0
    """Total number of steps of the unfinished epoch; 0 at the end of an epoch."""


def save(run: str, model: Network, state: TrainState, config: ModelConfig, history: History, step: int = 0) -> None:
    """Write a checkpoint, then delete all others except the best.

    It contains the epochs of `history` and `step` steps of the next one. Raises `OSError` or `UnavailableError` if
    storage fails.
    """
    contents = {
        "model.pt": _to_bytes(model.state_dict()),
        "train_state.pt": _to_bytes({field.name: getattr(state, field.name) for field in dataclasses.fields(state)}),
        files.CONFIG: to_json(config).encode(),
        _COMMIT: json.dumps(history).encode(),
    }
    location = _location(run, len(history), step)
    storage.remove_folder(location)  # an incomplete checkpoint of a killed process
    storage.write_folder(location, contents)
    checkpoints = _list_complete(run)
    best = _best(checkpoints)
    for checkpoint in checkpoints:
        if checkpoint != best and checkpoint.location != location:
            storage.remove_folder(checkpoint.location, first=_COMMIT)


def last(run: str) -> Checkpoint | None:
    """Return the latest complete checkpoint of a run, or None."""
    return max(_list_complete(run), key=lambda checkpoint: (checkpoint.epoch, checkpoint.step), default=None)


def best(run: str) -> Checkpoint | None:
    """Return the best complete checkpoint by `best.order`, or None; of equal ones, the earlier.

    Only checkpoints written at the end of an epoch count.
    """
    return _best(_list_complete(run))


def _best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    validated = [checkpoint for checkpoint in checkpoints if not checkpoint.step]
    return min(validated, key=lambda checkpoint: (checkpoint.order, checkpoint.epoch), default=None)


def _list_complete(run: str) -> list[Checkpoint]:
    folder = storage.join(run, files.CHECKPOINTS_FOLDER)
    checkpoints = []
    for location in (storage.join(folder, name) for name in storage.list_names(folder)):
        if _COMMIT not in storage.list_names(location):
            continue
        try:
            checkpoints.append(open_checkpoint(location))
        except InputError:
            if _COMMIT in storage.list_names(location):
                raise
            # Otherwise a running job has just deleted it.
    return checkpoints


def find(location: str, flag: str = "--checkpoint") -> Checkpoint:
    """Return the best checkpoint if `location` is a run's folder, or the checkpoint that `location` itself is.

    Raises `InputError`, naming `flag`, if `location` is neither of them or the run has no finished epoch.
    """
    names = storage.list_names(location)
    if files.CHECKPOINTS_FOLDER in names:
        checkpoint = best(location)
        if checkpoint is None:
            raise InputError(
                f"{flag} {location}: this run has not finished its first epoch yet; wait for it, or "
                "continue the run with --resume"
            )
        return checkpoint
    if _COMMIT not in names or "model.pt" not in names:
        raise InputError(
            f"{flag} {location}: neither a run's folder nor a complete checkpoint; give the folder that "
            "training printed, or one below its checkpoints/"
        )
    return open_checkpoint(location)


def open_checkpoint(location: str) -> Checkpoint:
    """Return the checkpoint in this folder, with its settings and history, but without its weights."""
    config_file, commit_file = storage.join(location, files.CONFIG), storage.join(location, _COMMIT)
    model = from_json(ModelConfig, storage.read_input(config_file), config_file)
    history = storage.read_json(commit_file)
    within = re.search(r"-step-(\d+)$", location)
    step = int(within[1]) if within else 0
    epochs: list[Any] = history if isinstance(history, list) else [None]
    if not (all(isinstance(epoch, dict) and "val_loss" in epoch for epoch in epochs) and (epochs or step)):
        raise InputError(f"{commit_file}: not a list of metrics by epoch; restore the file, or use another checkpoint")
    return Checkpoint(location, model, epochs, step)


def load_pretrained(location: str, config: ModelConfig) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return (settings, weights) to start training from another run or checkpoint.

    The settings are `config` with the input scaling that the weights expect. If the classes differ, the last layer
    is left out and a note is printed. Raises `InputError` as `find` and `build_model` do, and if the networks differ.
    """
    other = find(location, "--init-from")
    theirs, ours = (model.encoder or model.network for model in (other.model, config))
    if theirs != ours:
        raise InputError(
            f"--init-from {location}: its network is {theirs}, but this run trains {ours}; give one of a {ours}"
        )
    model = load_model(other)
    state = model.state_dict()
    if other.model.class_names != config.class_names:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{model.last_layer}.")}
        print(
            f"--init-from: {location} has the classes {', '.join(other.model.class_names)}, not "
            f"{', '.join(config.class_names)}; the last layer starts from random weights"
        )
    scaling = {"input_scale": other.model.input_scale, "input_offset": other.model.input_offset}
    return dataclasses.replace(config, **scaling), state


def read_weights(checkpoint: Checkpoint) -> bytes:
    """Return the content of `model.pt`. Raises `InputError` as `build_model` does if it does not fit the settings."""
    content = storage.read_input(storage.join(checkpoint.location, "model.pt"))
    build_model(checkpoint.model, content, checkpoint.location)
    return content


def load_model(checkpoint: Checkpoint) -> Network:
    """Return the network with its weights, on the CPU, in training mode. Raises `InputError` as `build_model` does."""
    return build_model(
        checkpoint.model, storage.read_input(storage.join(checkpoint.location, "model.pt")), checkpoint.location
    )


def fingerprint(checkpoint: Checkpoint, weights: bytes) -> str:
    """Return the SHA-256 of the model's settings (as JSON) and `weights`, which together determine a prediction."""
    # Omit the defaults that older versions did not store: their unfinished predictions can then continue.
    model = to_json(checkpoint.model)
    for defaults in (',\n  "scale": null', ',\n  "network": "unet",\n  "encoder": "",\n  "encoder_library": ""'):
        model = model.replace(defaults, "")
    return hashlib.sha256(model.encode() + weights).hexdigest()


def build_model(config: ModelConfig, weights: bytes, source: str) -> Network:
    """Return the network of `config` with the weights of a `model.pt`, on the CPU, in training mode.

    Raises `InputError`, naming `source`, if the file is broken, a parameter is missing or unknown, or a shape differs.
    """
    model = build(config)
    state = from_bytes(weights, f"{source}/model.pt")
    _require_matching_weights(state, model.state_dict(), source)
    model.load_state_dict(state)
    return model


def load_train_state(checkpoint: Checkpoint) -> TrainState:
    """Return the state that was passed to `save`. Raises `InputError` if the file is broken."""
    location = storage.join(checkpoint.location, "train_state.pt")
    state = from_bytes(storage.read_input(location), location)
    state = {_RENAMED.get(name, name): value for name, value in state.items()}
    expected = {field.name for field in dataclasses.fields(TrainState)}
    if set(state) != expected:
        missing, unknown = ", ".join(sorted(expected - set(state))), ", ".join(sorted(set(state) - expected))
        raise InputError(
            f"{location}: written by another petseg version (missing fields: {missing or 'no'}; unknown fields: "
            f"{unknown or 'no'}); resume with that version"
        )
    return TrainState(**state)


def _require_matching_weights(state: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Raise `InputError` unless `state` has the parameter names and shapes of `expected`."""
    for name, tensor in expected.items():
        if name not in state:
            raise InputError(f"{source}: model.pt lacks the parameter {name}; use the petseg version that wrote it")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{source}: {name} is {tuple(state[name].shape)} in model.pt, but {tuple(tensor.shape)} in the network "
                "that its config.json describes; use a config.json and a model.pt of one checkpoint"
            )
    extra = sorted(set(state) - set(expected))
    if extra:
        raise InputError(
            f"{source}: model.pt has an unknown parameter {extra[0]}; use the petseg version that wrote it"
        )


def _location(run: str, epoch: int, step: int) -> str:
    return storage.join(run, files.CHECKPOINTS_FOLDER, f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else ""))


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes, source: str) -> dict[str, Any]:
    """Return the dictionary in a file. Only tensors and plain values are loaded: a file must not run code."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, … on broken files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: not a valid checkpoint file: {reason}; copy it again") from error
    if not isinstance(state, dict):
        raise InputError(f"{source}: contains a {type(state).__name__}, not a dictionary; copy the checkpoint again")
    return state
