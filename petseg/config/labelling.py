"""Settings of the commands of `petseg prepare` that deal with annotation tools."""

from dataclasses import dataclass
from typing import Literal

from petseg.config.base import require

LabelFormat = Literal["coco", "cvat", "label-studio", "labelme", "voc", "yolo"]


@dataclass(frozen=True, kw_only=True)
class MasksConfig:
    """Draw the labels of an annotation tool as masks, with a classes.json that the other commands use."""

    from_: LabelFormat
    """Format of the labels: coco (a .json file), cvat (CVAT for images 1.1, an .xml file), label-studio (its JSON
    export), labelme (a folder of .json files), voc (a folder with SegmentationClass/), or yolo (a folder of .txt files
    and data.yaml)."""

    images: str
    """Folder or URI of the photos, or a table: .csv or .parquet with the columns id and uri."""

    labels: str
    """File, folder or URI of the labels."""

    output: str
    """Folder or URI for the masks. Created if missing."""

    unlabelled: str = ""
    """Class of the pixels without a label: a class of the labels, a new one such as background, or ignore. Required for
    all formats but voc, whose masks label each pixel."""

    classes: str = ""
    """Names of the classes in order of their ids, such as "background,cat,dog". Objects of other classes are left out.
    Default: all classes of the labels, after a new class of --unlabelled."""

    order: Literal["file", "area", "classes"] = "file"
    """Which object covers another. file: the later one in the file. area: the smaller one. classes: the one of the
    higher class id."""

    annotator: str = ""
    """E-mail address or number of a person, for label-studio: use only this person's annotations. Default: of each
    task, the annotation that was submitted last."""

    all_photos: bool = False
    """Write a mask, all of it unlabelled, for each photo without an object; with --merge, for each such photo that the
    labels list. Default: such photos are left out, unless a file of labelme or yolo, or a task of label-studio, says
    that somebody found no object in them."""

    merge: bool = False
    """Keep the masks in --output that an earlier start has drawn: add those of these labels, and replace those that
    differ. The classes stay, and changes.csv lists what changed."""

    overwrite: bool = False
    """Replace the masks in --output."""

    def __post_init__(self) -> None:
        require(
            self.unlabelled == self.unlabelled.strip(),
            f"--unlabelled {self.unlabelled!r}: give the name without outer spaces",
        )
        require(
            bool(self.unlabelled) or self.from_ == "voc",
            "--unlabelled is required: give the class of the pixels without a label, such as background, or ignore",
        )
        require(
            not (self.unlabelled and self.from_ == "voc"),
            "--unlabelled: the masks of voc label each pixel; leave it out",
        )
        require(
            not self.annotator or self.from_ == "label-studio",
            "--annotator: only the labels of label-studio name the annotator; leave it out",
        )
        require(
            not (self.all_photos and self.from_ == "voc"),
            "--all-photos: voc has no class for photos without a mask; leave it out",
        )
        require(not (self.merge and self.overwrite), "--merge, --overwrite: give one of them")
        require(not (self.merge and self.classes), "--classes: --merge keeps the classes of --output; leave it out")


Tool = Literal["coco", "label-studio", "labelme"]


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Choose the photos of a finished prediction that are worth labelling next, and write them with their masks."""

    from_: str
    """Folder or URI of the prediction: its --output."""

    output: str
    """Folder or URI for the photos, their masks, and a page to look at them. Created if missing."""

    count: int = 100
    """Number of photos."""

    by: Literal["unsure", "spread", "class-share"] = "unsure"
    """unsure: the photos with the largest fraction of unsure pixels. spread: of ten times as many unsure photos, those
    that differ most from labelled ones and from each other. class-share: those with most of the rarest classes."""

    labelled: str = ""
    """Folder or URI of the masks that there are already, or a table of them. Their photos are not chosen."""

    tool: Tool | None = None
    """Write the masks as labels to correct, too: coco (also for CVAT), label-studio or labelme."""

    unlabelled: str = ""
    """Class that stays unpainted in the labels of --tool, such as background. Default: all classes are painted."""

    checkpoint: str = ""
    """Path or URI of the run whose network compares photos, for --by spread. Default: that of the prediction."""

    def __post_init__(self) -> None:
        require(self.count >= 1, f"--count {self.count}: give at least 1")
        require(self.tool is not None or not self.unlabelled, "--unlabelled needs --tool, whose labels leave it out")
        require(self.by == "spread" or not self.checkpoint, "--checkpoint is only for --by spread; leave it out")
