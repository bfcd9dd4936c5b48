"""Description of a network, saved with every checkpoint."""

from dataclasses import dataclass

from petseg.config.base import Resize, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Description of a network and of its input and output. Every checkpoint contains it, and prediction follows it."""

    num_classes: int
    """Number of classes."""

    image_size: tuple[int, int]
    """Height and width in pixels of the network's input. Photos, or crops of them (see `scale`), are resized to it."""

    class_names: tuple[str, ...]
    """One name per class id."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""

    label_map: str
    """Mapping from raw mask values to class ids, such as "1:0,2:1,3:2"."""

    input_scale: float = 1 / 127.5
    """Scale of the input: the network receives `pixel * input_scale + input_offset`, with pixel in 0..255."""

    input_offset: float = -1.0
    """Offset of the input, see `input_scale`. The two defaults map 0..255 to -1..1."""

    scale: float | None = None
    """Scale of crops: pixels of the network's input per pixel of the photo. None: photos are resized as a whole."""

    resize: Resize = "antialias"
    """Method that resizes photos to `image_size`."""

    network: str = "unet"
    """Name of the network in `models.build.NETWORKS`. Checkpoints without this field hold the Keras example's U-Net."""

    encoder: str = ""
    """Name of the encoder of an `EncoderUNet`; "" for other networks."""

    encoder_library: str = ""
    """Library and version that built the encoder, such as "timm 1.0.31"."""

    def __post_init__(self) -> None:
        require(len(self.class_names) == self.num_classes, "class_names: one name per class is needed")
        require(len(self.palette) == self.num_classes, "palette: one colour per class is needed")
