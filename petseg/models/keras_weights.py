"""Convert the weights of the Keras example's network to the same network here."""

import numpy as np
import torch
from torch import Tensor

from petseg.errors import InputError
from petseg.models.unet import UNet


def from_keras(weights: list[np.ndarray], network: UNet) -> dict[str, Tensor]:
    """Return a state dict for `network` from the `keras.Model.get_weights()` of the Keras example's network.

    Keras's layouts: convolution (kh, kw, in, out), depthwise (kh, kw, in, 1), transposed (kh, kw, out, in).
    Raises `InputError` if the number of arrays or one of their shapes does not fit `network`.
    """
    wanted = network.state_dict()
    # Keras has no batch counters.
    counters = {name: wanted.pop(name) for name in list(wanted) if name.endswith("num_batches_tracked")}
    if len(weights) != len(wanted):
        raise InputError(f"from_keras: {len(weights)} arrays given, the network has {len(wanted)}")
    state = {}
    for (name, tensor_here), array in zip(wanted.items(), weights, strict=True):
        # Copy, because PyTorch supports no negative strides and must not share memory with the caller's arrays.
        tensor = torch.from_numpy(np.array(_from_keras_layout(name, np.asarray(array, np.float32)), order="C"))
        if tensor.shape != tensor_here.shape:
            raise InputError(
                f"from_keras: {name} is {tuple(tensor_here.shape)} here, {tuple(tensor.shape)} in the weights given"
            )
        state[name] = tensor
    return state | counters


def _from_keras_layout(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 4:
        return array
    if name.endswith("depthwise.weight"):
        return array.transpose(2, 3, 0, 1)
    if name.startswith("up.") and ".conv" in name:
        # Keras uses a transposed convolution of stride 1. UNet has an ordinary one, which is equal if both axes of the
        # kernel are flipped.
        return array[::-1, ::-1].transpose(2, 3, 0, 1)
    return array.transpose(3, 2, 0, 1)
