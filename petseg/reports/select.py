"""Build the pages of a selection: the chosen photos under their predicted masks."""

import dataclasses
from collections.abc import Sequence

from petseg.config.labelling import SelectConfig
from petseg.inference.finished import FinishedPrediction
from petseg.reports import html, sections
from petseg.reports.gallery import Gallery, GalleryItem

_WHY = {
    "unsure": "The photos with the largest fraction of unsure pixels, outlines left out.",
    "spread": "Of the photos with many unsure pixels, those that differ most from labelled ones and from each other.",
    "class-share": "The photos with most of the rarest classes.",
}


def selection_pages(
    prediction: FinishedPrediction, items: Sequence[GalleryItem], config: SelectConfig
) -> list[tuple[str, bytes]]:
    """Return the pages, each with its file name. `items` are the chosen photos in the order of choice."""
    colours = dict(zip(prediction.class_names, prediction.palette, strict=True))
    note = f"{_WHY[config.by]} They are in the order of choice."
    summary = [("photos", f"{len(items):,}"), ("of", f"{prediction.rows.num_rows:,}"), ("chosen by", config.by)]
    shown = [
        Gallery(title="Photos", items=items, score_name="unsure", note=note, colours=colours),
        sections.facts("Settings", {name.rstrip("_"): value for name, value in dataclasses.asdict(config).items()}),
        html.versions(),
        html.rerun("prepare"),
    ]
    return html.pages(title="Photos to label", summary=summary, sections=shown)
