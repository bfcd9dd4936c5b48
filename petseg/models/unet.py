"""The network: the Xception-style U-Net of the Keras example, in plain PyTorch. No Ray, no files, no training.

Architecture: https://keras.io/examples/vision/oxford_pets_image_segmentation/ (the version with transposed
convolutions). The modules are defined in the order in which Keras creates its layers; `from_keras` relies on it.

In shapes, N is the number of photos, C the number of channels, and H and W are height and width in pixels.
"""

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from petseg.models.network import Network

BN_EPSILON = 1e-3
"""Keras's default epsilon of a batch norm; PyTorch's is 1e-5."""

BN_MOMENTUM = 0.01
"""PyTorch's momentum, the weight of the new value. It equals Keras's momentum 0.99, the weight of the old value."""

STRIDE = 16
"""The factor by which the blocks reduce height and width: they halve them four times, and double them four times."""

ENTRY_WIDTH = 32
DOWN_WIDTHS = (64, 128, 256)
UP_WIDTHS = (256, 128, 64, 32)


class SeparableConv2d(nn.Module):
    """A depthwise 3×3 convolution without bias, followed by a 1×1 convolution with bias, as in Keras."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        return self.pointwise(self.depthwise(x))


class DownBlock(nn.Module):
    """A block of the way down, with a residual connection: (N, C_in, H, W) → (N, C_out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SeparableConv2d(in_channels, out_channels)
        self.bn1 = _batch_norm(out_channels)
        self.conv2 = SeparableConv2d(out_channels, out_channels)
        self.bn2 = _batch_norm(out_channels)
        self.residual = nn.Conv2d(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H/2, W/2); H and W must be even."""
        y = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        # TensorFlow's "same" max-pooling of an even size pads the right and the bottom only; ceil_mode does the same.
        return F.max_pool2d(y, 3, stride=2, ceil_mode=True) + self.residual(x)


class DoubledConv2d(nn.Conv2d):
    """A padded 3×3 convolution of the doubled input (nearest neighbour): (N, C_in, H, W) → (N, C_out, 2H, 2W).

    The doubled input is never computed. A 3×3 window of it covers only 2×2 different pixels. Several weights apply to
    the same pixel; which ones depends on whether the window's centre is on an even or odd row and column. So four 2×2
    kernels, with the sums of those weights, give the same result with 4/9 of the multiplications. This is the sub-pixel
    convolution of Shi et al., 2016, in reverse.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, 2H, 2W)."""
        kernels, bias = self.summed()
        return _interleave_phases(F.conv2d(input, kernels, bias, padding=1))

    def summed(self) -> tuple[Tensor, Tensor | None]:
        """Return the four summed kernels, (4 C_out, C_in, 2, 2), and their bias, (4 C_out,) or None."""
        first, middle, last = self.weight.unbind(2)
        rows = torch.stack(
            [first, middle + last, first + middle, last], 2
        )  # two for even output rows, then two for odd ones
        first, middle, last = rows.unbind(3)
        kernels = torch.stack([first, middle + last, first + middle, last], 3)  # (C_out, C_in, 2 · 2, 2 · 2)
        kernels = kernels.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        return kernels.contiguous(memory_format=torch.channels_last), bias


class _SummedConv2d(nn.Conv2d):
    """A `DoubledConv2d` for inference, whose kernels are summed only once, when it is made."""

    def __init__(self, conv: DoubledConv2d) -> None:
        super().__init__(conv.in_channels, 4 * conv.out_channels, 2, padding=1)
        kernels, bias = conv.summed()
        self.weight = nn.Parameter(kernels.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        return _interleave_phases(super().forward(input))


def _interleave_phases(by_phase: Tensor) -> Tensor:
    """Interleave the phases: (N, 4C, H + 1, W + 1) → (N, C, 2H, 2W).

    The channels of the input are ordered by phase: even or odd output row, then even or odd output column.
    """
    if not torch.compiler.is_exporting():
        return _Interleave.apply(by_phase)
    # This computes the same with operations that ONNX has, but slower.
    rows, columns = by_phase.shape[2] - 1, by_phase.shape[3] - 1
    phases = zip(by_phase.chunk(4, 1), _PHASES, strict=True)
    cropped = [phase[:, :, y : y + rows, x : x + columns] for phase, (y, x) in phases]
    return F.pixel_shuffle(torch.stack(cropped, 2).flatten(1, 2), 2)


class _Interleave(torch.autograd.Function):
    """Implement `_interleave_phases` and its gradient.

    Output row 2i + y (y = 0, 1) is read from window i + y; columns likewise. Window k covers input rows k - 1 and k:

        input row           0     1     2
        window           0     1     2     3
        phase y          0    1 0   1 0    1
        output row       0    1 2   3 4    5

    PyTorch's own gradient of the four slices would allocate four zero tensors, fill one slice of each, and sum them.
    """

    @staticmethod
    def forward(ctx: Any, by_phase: Tensor) -> Tensor:
        n, channels, rows, columns = by_phase.shape
        split_phases = by_phase.permute(0, 2, 3, 1).unflatten(3, (2, 2, channels // 4))
        interleaved = split_phases.new_empty(n, rows - 1, 2, columns - 1, 2, channels // 4)
        for y, x in _PHASES:
            interleaved[:, :, y, :, x] = split_phases[:, y : y + rows - 1, x : x + columns - 1, y, x]
        return interleaved.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        n, channels, height, width = gradient.shape
        rows, columns = height // 2, width // 2
        interleaved = gradient.permute(0, 2, 3, 1).unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
        split_phases = gradient.new_zeros(n, rows + 1, columns + 1, 2, 2, channels)
        for y, x in _PHASES:
            split_phases[:, y : y + rows, x : x + columns, y, x] = interleaved[:, :, y, :, x]
        return split_phases.flatten(3).permute(0, 3, 1, 2)


_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


class UpBlock(nn.Module):
    """A block of the way up, with a residual connection: (N, C_in, H, W) → (N, C_out, H, W).

    With `doubles`, it doubles its input's height and width first: (N, C_in, H, W) → (N, C_out, 2H, 2W).

    Keras has transposed convolutions of stride 1 here. They equal ordinary convolutions with the kernel flipped and its
    channel axes swapped, which PyTorch trains faster. Keras doubles height and width at the end of a block, in both
    branches. Here the next block doubles them. A ReLU and a 1×1 convolution give the same numbers before doubling, for
    a quarter of the work, so only the 3×3 convolution needs the doubled input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, doubles: bool) -> None:
        super().__init__()
        self.conv1 = (DoubledConv2d if doubles else _conv3x3)(in_channels, out_channels)
        self.bn1 = _batch_norm(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = _batch_norm(out_channels)
        self.residual = nn.Conv2d(in_channels, out_channels, 1)
        self.doubles = doubles

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W), or to (N, C_out, 2H, 2W) if the block doubles."""
        y = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        residual = self.residual(x)
        return y + (F.interpolate(residual, scale_factor=2, mode="nearest") if self.doubles else residual)


class UNet(Network):
    """The U-Net, from pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W).

    The network's input is `pixel * input_scale + input_offset`; the defaults are the Keras example's, which feeds
    0..255. If 16 does not divide the height or the width, the input is padded at the right and the bottom by repeating
    the edge, and the logits are cropped.
    """

    def __init__(self, num_classes: int, *, input_scale: float = 1.0, input_offset: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.entry = nn.Conv2d(3, ENTRY_WIDTH, 3, stride=2)
        self.entry_bn = _batch_norm(ENTRY_WIDTH)
        widths = (ENTRY_WIDTH, *DOWN_WIDTHS)
        self.down = nn.ModuleList(map(DownBlock, widths[:-1], widths[1:]))
        widths = (DOWN_WIDTHS[-1], *UP_WIDTHS)
        self.up = nn.ModuleList(
            UpBlock(*pair, doubles=number > 0) for number, pair in enumerate(itertools.pairwise(widths))
        )
        self.head = DoubledConv2d(UP_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _init_like_keras(module)

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W), for any height and width."""
        height, width = pixels_nchw.shape[2:]
        x = self.narrowest_features(pixels_nchw)
        for block in self.up:
            x = block(x)
        logits = self.head(x)
        if not torch.compiler.is_exporting():
            return logits[:, :, :height, :width]
        bottom, right = (_round_up_to_stride(side) - side for side in (height, width))
        return F.pad(logits, (0, -right, 0, -bottom))

    def narrowest_features(self, pixels_nchw: Tensor) -> Tensor:
        """Return the narrowest feature map (N, F, h, w) for pixels (N, 3, H, W)."""
        x = pixels_nchw.to(self.entry.weight.dtype) * self.input_scale + self.input_offset
        bottom, right = (_round_up_to_stride(side) - side for side in x.shape[2:])
        # In an export, one example size must not decide for all sizes.
        if torch.compiler.is_exporting() or bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        # TensorFlow's "same" padding at stride 2 and an even size pads the right and the bottom only.
        x = F.relu(self.entry_bn(self.entry(F.pad(x, (0, 1, 0, 1)))))
        for block in self.down:
            x = block(x)
        return x

    def for_inference(self) -> "UNet":
        """Return a copy with each batch norm folded into the convolution before it: the same within rounding."""
        return fold_batch_norms(self)


def fold_batch_norms(model: UNet) -> UNet:
    """Return a copy for inference, with each batch norm folded into the convolution before it.

    The outputs are the same within rounding. The summed kernels of each `DoubledConv2d` are computed once, too.
    """
    model = copy.deepcopy(model).eval()
    model.entry = fuse_conv_bn_eval(model.entry, model.entry_bn)
    model.entry_bn = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    for block in (*model.down, *model.up):
        for number in "12":
            conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
            if isinstance(conv, SeparableConv2d):
                conv.pointwise = fuse_conv_bn_eval(conv.pointwise, norm)
            else:
                setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{number}", nn.Identity())
        if isinstance(block.conv1, DoubledConv2d):
            block.conv1 = _SummedConv2d(block.conv1)
    model.head = _SummedConv2d(model.head)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _round_up_to_stride(side: int) -> int:
    """Round a side up to a multiple of `STRIDE`, in a form in which `torch.export` can do it for unknown sizes."""
    return (side + STRIDE - 1) // STRIDE * STRIDE


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)


def _init_like_keras(conv: nn.Conv2d) -> None:
    """Set a Glorot-uniform kernel and a zero bias: Keras's defaults for every convolution of the example."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
