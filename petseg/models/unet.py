"""The network: the Xception-style U-Net of the Keras example, in plain PyTorch. No Ray, no files, no training.

Architecture: https://keras.io/examples/vision/oxford_pets_image_segmentation/ (the version with transposed
convolutions). The modules stand in the order in which Keras creates its layers; `checkpoint.from_keras` relies on it.
"""

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BN_EPSILON = 1e-3
"""Keras's default; PyTorch's is 1e-5."""

BN_MOMENTUM = 0.01
"""Keras's 0.99 is the share of the old value that is kept, PyTorch's the share of the new one that is added."""

STRIDE = 16
"""Height and width are halved four times on the way down, and doubled as often on the way up."""

ENTRY_WIDTH = 32
DOWN_WIDTHS = (64, 128, 256)
UP_WIDTHS = (256, 128, 64, 32)


class SeparableConv2d(nn.Module):
    """A depthwise 3×3 convolution without bias, then a 1×1 convolution with one, as in Keras."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H, W)."""
        return self.pointwise(self.depthwise(x))


class DownBlock(nn.Module):
    """(N, C_in, H, W) → (N, C_out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SeparableConv2d(in_channels, out_channels)
        self.bn1 = _batch_norm(out_channels)
        self.conv2 = SeparableConv2d(out_channels, out_channels)
        self.bn2 = _batch_norm(out_channels)
        self.residual = nn.Conv2d(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H / 2, W / 2)."""
        y = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        # TensorFlow's "same" max-pool of an even size pads the right and the bottom only: that is ceil_mode.
        return F.max_pool2d(y, 3, stride=2, ceil_mode=True) + self.residual(x)


class DoubledConv2d(nn.Conv2d):
    """A 3×3 convolution with padding, of the input at twice its height and width (nearest neighbour), which is never
    made: (N, C_in, H, W) → (N, C_out, 2H, 2W).

    Of the doubled input, a window of 3×3 sees only 2×2 different pixels; which of its weights fall together depends on
    whether its middle is on an even or an odd row and column. So four kernels of 2×2, the sums of those weights, do it
    in 4/9 of the multiplications: the sub-pixel convolution of Shi et al., 2016, backwards.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, 2 H, 2 W)."""
        kernels, bias = self.summed()
        return _together(F.conv2d(input, kernels, bias, padding=1))

    def summed(self) -> tuple[Tensor, Tensor | None]:
        """The four kernels, (4 C_out, C_in, 2, 2), and their bias."""
        first, middle, last = self.weight.unbind(2)
        rows = torch.stack([first, middle + last, first + middle, last], 2)  # of even rows, then of odd ones
        first, middle, last = rows.unbind(3)
        kernels = torch.stack([first, middle + last, first + middle, last], 3)  # (C_out, C_in, 2 · 2, 2 · 2)
        kernels = kernels.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        return kernels.contiguous(memory_format=torch.channels_last), bias


class _SummedConv2d(nn.Conv2d):
    """A `DoubledConv2d` for inference, its kernels summed once."""

    def __init__(self, conv: DoubledConv2d) -> None:
        super().__init__(conv.in_channels, 4 * conv.out_channels, 2, padding=1)
        kernels, bias = conv.summed()
        self.weight = nn.Parameter(kernels.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        return _together(super().forward(input))


def _together(by_phase: Tensor) -> Tensor:
    """(N, 4C, H + 1, W + 1), by phase (even or odd row, even or odd column) → (N, C, 2H, 2W)."""
    if not torch.compiler.is_exporting():
        return _Interleave.apply(by_phase)
    # The same of operations that ONNX has; slower here.
    rows, columns = by_phase.shape[2] - 1, by_phase.shape[3] - 1
    phases = zip(by_phase.chunk(4, 1), _PHASES, strict=True)
    cut = [phase[:, :, y : y + rows, x : x + columns] for phase, (y, x) in phases]
    return F.pixel_shuffle(torch.stack(cut, 2).flatten(1, 2), 2)


class _Interleave(torch.autograd.Function):
    """`_together`, and its gradient.

    What a window between two pixels gives belongs to the odd one before it and to the even one after. PyTorch's own
    gradient of four slices would be four tensors of zeros with a slice filled in, and their sum.
    """

    @staticmethod
    def forward(ctx: Any, by_phase: Tensor) -> Tensor:
        n, channels, rows, columns = by_phase.shape
        apart = by_phase.permute(0, 2, 3, 1).unflatten(3, (2, 2, channels // 4))
        together = apart.new_empty(n, rows - 1, 2, columns - 1, 2, channels // 4)
        for y, x in _PHASES:
            together[:, :, y, :, x] = apart[:, y : y + rows - 1, x : x + columns - 1, y, x]
        return together.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        n, channels, height, width = gradient.shape
        rows, columns = height // 2, width // 2
        together = gradient.permute(0, 2, 3, 1).unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
        apart = gradient.new_zeros(n, rows + 1, columns + 1, 2, 2, channels)
        for y, x in _PHASES:
            apart[:, y : y + rows, x : x + columns, y, x] = together[:, :, y, :, x]
        return apart.flatten(3).permute(0, 3, 1, 2)


_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


class UpBlock(nn.Module):
    """(N, C_in, H, W) → (N, C_out, H, W), or, with `doubles`, of the doubled input: (N, C_out, 2H, 2W).

    Keras has transposed convolutions of stride 1 here. Such a one is an ordinary convolution with the kernel flipped
    and its channel axes swapped, which PyTorch trains faster. And Keras doubles height and width at a block's end, for
    both of its branches. Nothing up to the next 3×3 convolution needs that: a ReLU and a 1×1 convolution give the same
    numbers before it, for a quarter of the work.
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
        """(N, C_in, H, W) → (N, C_out, H, W), of a block that doubles (N, C_out, 2 H, 2 W)."""
        y = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        residual = self.residual(x)
        return y + (F.interpolate(residual, scale_factor=2, mode="nearest") if self.doubles else residual)


class UNet(nn.Module):
    """Pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W).

    The network sees `pixel * input_scale + input_offset`; the defaults are the Keras example's, which feeds 0..255.
    Heights and widths that 16 does not divide are padded at the right and the bottom by repeating the edge, and the
    logits are cropped.
    """

    def __init__(self, num_classes: int, *, input_scale: float = 1.0, input_offset: float = 0.0) -> None:
        super().__init__()
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
        """Pixels 0..255, of any type, (N, 3, H, W) → logits (N, num_classes, H, W); any height and width."""
        height, width = pixels_nchw.shape[2:]
        x = pixels_nchw.to(self.entry.weight.dtype) * self.input_scale + self.input_offset
        bottom, right = (_multiple_from(side) - side for side in (height, width))
        exporting = torch.compiler.is_exporting()  # then one example must not decide for all sizes
        if exporting or bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        # TensorFlow's "same" padding at stride 2 and an even size: none at the left and the top.
        x = F.relu(self.entry_bn(self.entry(F.pad(x, (0, 1, 0, 1)))))
        for block in (*self.down, *self.up):
            x = block(x)
        logits = self.head(x)
        return F.pad(logits, (0, -right, 0, -bottom)) if exporting else logits[:, :, :height, :width]


def fold_batch_norms(model: UNet) -> UNet:
    """A copy for inference, each batch norm folded into the convolution before it: the same numbers within rounding.

    What follows from the weights alone is computed here once, too.
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


def _multiple_from(side: int) -> int:
    """The next that `STRIDE` divides, written so that `torch.export` sees it of sizes that it does not know."""
    return (side + STRIDE - 1) // STRIDE * STRIDE


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)


def _init_like_keras(conv: nn.Conv2d) -> None:
    """Glorot-uniform kernel and zero bias: Keras's defaults for every convolution of the example."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_seeded(num_classes: int, seed: int, *, input_scale: float, input_offset: float) -> UNet:
    """A new network whose weights follow from `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(num_classes, input_scale=input_scale, input_offset=input_offset)
