"""U-Net on an encoder of timm, which may start from weights that were trained on ImageNet."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from petseg.errors import InputError
from petseg.models.network import Network

DECODER_WIDTHS = (128, 64, 48, 32, 32)
"""Channels of the decoder's blocks, from the narrowest feature map up, for encoders of up to six levels."""


class EncoderUNet(Network):
    """U-Net with a light decoder, from pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W).

    The encoder's input is `pixel * input_scale + input_offset`. If its stride does not divide the height or the width,
    the input is padded at the right and the bottom by repeating the edge, and the logits are cropped. The decoder
    enlarges by nearest pixels, joins the encoder's features, and applies a 3 × 3 convolution. The logits are
    those of the encoder's first level, enlarged bilinearly.
    """

    def __init__(self, num_classes: int, encoder: str, *, input_scale: float, input_offset: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.encoder = _create(encoder)
        for module in self.encoder.modules():
            if isinstance(module, Conv2dSame):
                module.__class__ = _PaddedConv2d
            if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                module.__class__ = _trained_in_fp32(type(module))
        info: Any = self.encoder.feature_info
        channels, reductions = info.channels(), info.reduction()
        self.stride = reductions[-1]
        widths = (channels[-1], *DECODER_WIDTHS)
        self.up = nn.ModuleList(
            DecoderBlock(widths[number], skip, widths[number + 1]) for number, skip in enumerate(channels[-2::-1])
        )
        self.head = nn.Conv2d(widths[len(self.up)], num_classes, 3, padding=1)

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W), for any height and width."""
        height, width = pixels_nchw.shape[2:]
        x = self._padded(pixels_nchw)
        *skips, features = self.encoder(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            features = block(features, skip)
        logits = F.interpolate(self.head(features), size=x.shape[2:], mode="bilinear", align_corners=False)
        if not torch.compiler.is_exporting():
            return logits[:, :, :height, :width]
        return F.pad(logits, (0, width - x.shape[3], 0, height - x.shape[2]))

    def narrowest_features(self, pixels_nchw: Tensor) -> Tensor:
        """Return the narrowest feature map (N, F, h, w) for pixels (N, 3, H, W)."""
        return self.encoder(self._padded(pixels_nchw))[-1]

    def _padded(self, pixels_nchw: Tensor) -> Tensor:
        """Return the encoder's input, of a height and width that its stride divides."""
        x = pixels_nchw.to(self.head.weight.dtype) * self.input_scale + self.input_offset
        bottom, right = ((side + self.stride - 1) // self.stride * self.stride - side for side in x.shape[2:])
        # In an export, one example size must not decide for all sizes.
        if torch.compiler.is_exporting() or bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return x

    @property
    def pretrained_part(self) -> nn.Module:
        """The encoder."""
        return self.encoder

    def for_inference(self) -> nn.Module:
        """Return a copy with each batch norm folded into the convolution before it: the same within rounding."""
        return fold_batch_norms(self)


class DecoderBlock(nn.Module):
    """Enlarge a feature map to the size of an encoder's feature map, join the two, and convolve."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels + skip_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) and (N, skip_channels, H, W) to (N, out_channels, H, W)."""
        x = F.interpolate(x, size=skip.shape[2:], mode="nearest")
        return F.relu(self.bn(self.conv(torch.cat([x, skip], 1))))


class _PaddedConv2d(nn.Conv2d):
    """TensorFlow's "same" convolution at stride 2 for even sizes, which are the only ones here.

    timm computes the padding from each input's size. `torch.export` then tries to solve equations of unknown sizes.
    """

    def forward(self, input: Tensor) -> Tensor:
        assert self.stride == (2, 2) and self.dilation == (1, 1)
        total = self.kernel_size[0] - 2
        before, after = total // 2, total - total // 2
        padded = F.pad(input, (before, after, before, after))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@functools.cache
def _trained_in_fp32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """Return a subclass of a convolution that computes in fp32 in training, also under autocast.

    On a CPU, the gradient of a depthwise convolution takes twice as long in bf16: a training step of 8 pairs of
    160 × 160 took 275 ms instead of 211 on two cores.
    """

    class TrainedInFp32(kind):
        def forward(self, input: Tensor) -> Tensor:
            if not self.training or input.device.type != "cpu":
                return super().forward(input)
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())

    return TrainedInFp32


def _create(name: str) -> nn.Module:
    """Return timm's encoder of this name, with random weights.

    Raises `InputError` if timm cannot build it, or if it does not give smaller and smaller feature maps (N, C, h, w).
    """
    try:
        encoder = timm.create_model(name, features_only=True, pretrained=False)
        info: Any = encoder.feature_info
        channels, reductions = info.channels(), info.reduction()
        side = 2 * reductions[-1]
        with torch.inference_mode():
            shapes = [tuple(features.shape) for features in encoder.eval()(torch.zeros(1, 3, side, side))]
    except Exception as error:  # timm raises RuntimeError, TypeError and others, depending on the network
        reason = " ".join(str(error).split())
        raise InputError(
            f"--network {name}: timm {timm.__version__} cannot build an encoder with features of this name ({reason}); "
            "give unet, or a convolutional network that `timm.list_models()` lists"
        ) from error
    expected = [(1, width, side // by, side // by) for width, by in zip(channels, reductions, strict=True)]
    if shapes != expected or any(one >= other for one, other in itertools.pairwise(reductions)):
        raise InputError(f"--network {name}: its feature maps do not get smaller; give a convolutional network")
    return encoder.train()


def fold_batch_norms(model: EncoderUNet) -> EncoderUNet:
    """Return a copy for inference, with each batch norm that follows a convolution folded into it.

    A short run finds which batch norm follows which convolution, as the names differ from encoder to encoder.
    """
    model = copy.deepcopy(model).eval()
    names = {module: name for name, module in model.named_modules()}
    made_by: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    kept: list[Tensor] = []  # so that no id is given to a second tensor

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.extend((inputs[0], output))
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])], module))

    hooks = [
        module.register_forward_hook(cast(Callable[..., None], after))
        for module in names
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 3, model.stride, model.stride))
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        model.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        # timm's batch norms apply their activation, too.
        model.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    return model
