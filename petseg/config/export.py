"""Settings of an export."""

from dataclasses import dataclass
from typing import Literal

from petseg.config.base import require

ExportFormat = Literal["onnx", "torch"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a network to ONNX and torch.export, for programs that use neither Ray nor petseg."""

    checkpoint: str
    """Path or URI of a run (its best checkpoint is used), or of one checkpoint in it."""

    output: str
    """Folder or URI for the models, their settings and their model card. Created if missing."""

    formats: tuple[ExportFormat, ...] = ("onnx", "torch")
    """Formats to write. onnx: model.onnx. torch: model.pt2, for torch.export.load."""

    licence: str = "not stated"
    """Licence of the weights, for the model card. You must decide it: it depends on the training photos."""

    overwrite: bool = False
    """Replace the export in --output."""

    def __post_init__(self) -> None:
        require(
            0 < len(self.formats) == len(set(self.formats)),
            f"--formats {' '.join(self.formats)}: give onnx, torch or both",
        )
