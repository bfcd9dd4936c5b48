"""Sections that several report pages share, the choice of sample pictures, and saving a report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from petseg import files, storage
from petseg.data import visualize
from petseg.errors import STORAGE_ERRORS
from petseg.reports.html import Bars, Confusion, Curves, Facts, Picture, Sheet
from petseg.training.run_folder import format_score

SHOWN = 12
"""Maximum number of pictures on each sheet."""

MATRIX_CLASSES = 30
"""Maximum number of classes for which a confusion matrix and curves by class are shown."""

_BY_LOSS = ("Worst predictions", "Best predictions", "Other samples")
_PANELS = "photo, truth, prediction, differences in red"
_RANKING = "Ranked by cross-entropy, because mIoU weighs a ten-pixel class like any other."


def save_report(folder: str, make: Callable[[], bytes]) -> None:
    """Write the page that `make` returns as a job's report, and print its location.

    If it cannot be made or written, prints a note instead of raising, because the job's own work is done. That is so
    for a bug in the report, too.
    """
    location = storage.join(folder, files.REPORT)
    try:
        storage.write(location, make())
    except Exception as error:
        reason = storage.reason(error) if isinstance(error, STORAGE_ERRORS) else repr(error)
        print(f"note: {location} cannot be written: {reason}")
    else:
        print(f"report: {location}")


def pick_samples(losses: Sequence[float | None]) -> dict[str, list[int]]:
    """Return the indices of the pairs to show, by the title of their sheet.

    The sheets show the pairs with the highest loss (or doubt), those with the lowest, and some spread evenly over the
    others. Each sheet shows at most `SHOWN`. A pair is shown only once, and a pair with an undefined loss is not shown.
    """
    ranked = sorted((-loss, index) for index, loss in enumerate(losses) if loss is not None)
    order = [index for _, index in ranked]
    each = min(SHOWN, -(-len(order) // 3))
    worst, best = order[:each], order[each:][::-1][:each]
    rest = sorted(set(order) - {*worst, *best})
    count = min(SHOWN, len(rest))
    others = [rest[index * len(rest) // count] for index in range(count)]
    return {title: indices for title, indices in zip(_BY_LOSS, (worst, best, others), strict=True) if indices}


def facts(title: str, values: Mapping[str, Any]) -> Facts:
    """Return settings as they are written on a command line. Unset ones are a dash."""

    def text(value: Any) -> str:
        if value is None or value in ("", (), []):
            return "–"
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return Facts(title=title, rows=[(name, text(value)) for name, value in values.items()])


def time_chart(seconds: Mapping[str, float]) -> Bars:
    """Return a bar chart of the seconds spent in each phase."""
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    return Bars(title="Where the time went", values=rounded, unit=" s", note=f"{sum(seconds.values()):.1f} s in all.")


def score_bars(title: str, scores: Mapping[str, float | None], note: str = "") -> Bars:
    """Return a bar chart of scores by class, rounded to three digits."""
    rounded = {name: value if value is None else round(value, 3) for name, value in scores.items()}
    return Bars(title=title, values=rounded, note=note)


def class_shares(names: Sequence[str], pixels: Iterable[int], note: str) -> Bars:
    """Return a bar chart of each class's percentage of all pixels."""
    counts = [int(count) for count in pixels]
    total = max(1, sum(counts))
    shares = {name: round(100 * count / total, 1) for name, count in zip(names, counts, strict=True)}
    return Bars(title="Pixels by class", values=shares, unit=" %", note=note)


def curves_over_epochs(
    title: str, y_label: str, epochs: Sequence[Mapping[str, Any]], lines: Mapping[str, str], note: str = ""
) -> Curves:
    """Return curves over the epochs. `lines` maps a line's name to the key of its values in each epoch."""
    values = {label: [epoch[key] for epoch in epochs] for label, key in lines.items()}
    numbers = list(range(1, len(epochs) + 1))
    return Curves(title=title, x_label="epoch", y_label=y_label, x=numbers, lines=values, note=note)


def confusion_matrix(names: Sequence[str], counts: Sequence[Sequence[int]], pairs: str) -> Confusion | None:
    """Return the confusion matrix over `pairs`; None for more than `MATRIX_CLASSES` classes, which nobody can read."""
    if len(names) > MATRIX_CLASSES:
        return None
    return Confusion(title=f"Confusion, {pairs}", names=names, counts=counts)


def sample_sheet(title: str, samples: Iterable[Mapping[str, Any]]) -> Sheet:
    """Return a sheet of scored samples with the keys `id`, `cross_entropy`, `miou` and `picture` (a JPEG)."""
    pictures = []
    for sample in samples:
        scores = f"cross-entropy {format_score(sample['cross_entropy'])}, mIoU {format_score(sample['miou'])}"
        caption = f"{sample['id']}: {scores}"
        content = visualize.for_report(sample["picture"])
        pictures.append(Picture(content=content, caption=caption, alt=f"{sample['id']}: {_PANELS}"))
    return Sheet(title=title, pictures=pictures, note=f"{_PANELS.capitalize()}. {_RANKING}")
