"""Count images that were used in another form than they are stored in, so that a job can say so once."""

from collections.abc import Iterable, Sequence

from petseg.data.image_file import OpenImage

FIRST_PAGE = "of several pages or frames, only the first is used"
WIDE_VALUES = "more than 8 bits per channel are scaled to 8, by the range of the values"

Notes = dict[str, list[int | str]]
"""Maps a note to [number of images, id of the first one], as JSON holds it."""


def notes_of(opened: OpenImage) -> tuple[str, ...]:
    """Return the notes on an open photo."""
    return (FIRST_PAGE,) * (opened.num_pages > 1) + (WIDE_VALUES,) * opened.has_wide_values


def count_notes(ids: Iterable[str], notes: Iterable[Sequence[str] | None]) -> Notes:
    """Count the notes of images, given each image's id and notes in the same order."""
    return add_notes({note: [1, row_id]} for row_id, of_row in zip(ids, notes, strict=True) for note in of_row or ())


def add_notes(parts: Iterable[Notes]) -> Notes:
    """Return the sum of several counts. The first of their ids is kept."""
    total: Notes = {}
    for part in parts:
        for note, (count, row_id) in part.items():
            before, first = total.get(note, [0, row_id])
            total[note] = [int(before) + int(count), first]
    return total


def note_lines(notes: Notes) -> list[str]:
    """Return a line for each note, such as "3 images, such as a/b: of several pages …"."""
    return [f"{count} image{'s' * (count != 1)}, such as {row_id}: {note}" for note, (count, row_id) in notes.items()]
