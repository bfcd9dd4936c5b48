"""Read a table of photos or masks, in CSV or Parquet, that is given instead of a folder."""

import csv
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from petseg import storage
from petseg.data.ids import OUTPUT_EXTENSIONS, require_no_nested_outputs, safe_id
from petseg.errors import InputError

_OWN_COLUMNS = {"--images": "image", "--masks": "mask", "--labelled": "mask"}
"""Column of the locations in tables that petseg writes, such as the manifest.parquet of a run."""

_CHUNK = 2**16


def is_table(location: str) -> bool:
    """Return True if a location is a file of a table."""
    return location.lower().endswith((".csv", ".parquet")) and storage.is_file(location)


def place_to_share(location: str, files: pa.ChunkedArray) -> str:
    """Return the place that all machines must reach to read `files`, which a folder or a table has given.

    Only the driver reads the table. So this is the folder of a local file of it, if there is one, else any other file.
    """
    if not is_table(location):
        return location
    local = pc.index(pc.match_substring(files, "://"), False).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if local < 0:
        return files[0].as_py()
    folder = files[local].as_py().rpartition("/")[0]
    return folder if Path(folder).is_dir() else location  # a missing file is an error of its row


def read_table(location: str, flag: str) -> pa.Table:
    """Return the columns `id` and `image` (absolute locations) of a table, in its order.

    The table has the columns `id` and `uri`. A URI is absolute, or relative to the folder of the table. Instead of
    `uri`, the column may be called as in petseg's own tables: `image` for --images, `mask` for --masks. Ids become safe
    as those of files do.

    Raises `InputError`, naming `flag`, if the table cannot be read, lacks a column, has an empty cell, or has an id
    twice.
    """
    with storage.as_input_error(f"{flag} {location}: cannot be read"):
        try:
            rows = (_read_parquet if location.lower().endswith(".parquet") else _read_csv)(location, flag)
        except pa.ArrowException as error:
            raise InputError(f"{flag} {location}: not a table that can be read: {storage.reason(error)}") from error
    if not rows.num_rows:
        raise InputError(f"{flag} {location}: it has no rows; give a table with a row for each file")
    for name in rows.column_names:
        empty = pc.index(pc.equal(pc.utf8_length(pc.fill_null(rows[name], "")), 0), True).as_py()  # pyright: ignore[reportAttributeAccessIssue]
        if empty >= 0:
            raise InputError(f"{flag} {location}: row {empty + 1} has no {name}; fill it, or remove the row")
    ids = pa.array([safe_id(row_id) for row_id in rows["id"].to_pylist()], pa.string())
    files = pa.table({"id": ids, "image": _absolute(rows.column(1), location, flag)})
    counts = pc.value_counts(ids)  # pyright: ignore[reportAttributeAccessIssue]
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")  # pyright: ignore[reportAttributeAccessIssue]
    if len(twice):
        more = f" (also {', '.join(twice[1:5].to_pylist())})" if len(twice) > 1 else ""
        raise InputError(f"{flag} {location}: the id {twice[0]} is in several rows{more}; an id must be unique")
    nested = [row_id for row_id in ids.to_pylist() if any(f"{output}/" in row_id for output in OUTPUT_EXTENSIONS)]
    require_no_nested_outputs(files, location, nested)
    return files


def _read_csv(location: str, flag: str) -> pa.Table:
    content = storage.read(location)
    first = re.split(rb"\r\n|\r|\n", content, maxsplit=1)[0].decode("utf-8-sig", "replace").strip()
    try:
        names = next(csv.reader([first]), [])
    except csv.Error as error:
        raise InputError(f"{flag} {location}: its first line is not a list of columns: {error}") from error
    chosen = _chosen(names, location, flag)
    read_options = pyarrow.csv.ReadOptions(column_names=names, skip_rows=1)
    convert_options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), include_columns=list(chosen), strings_can_be_null=False
    )
    return pyarrow.csv.read_csv(io.BytesIO(content), read_options, convert_options=convert_options)


def _read_parquet(location: str, flag: str) -> pa.Table:
    with storage.open_file(location) as file:
        table = pq.ParquetFile(file)
        chosen = _chosen(table.schema_arrow.names, location, flag)
        rows = table.read(columns=list(chosen)).select(list(chosen))
    return rows.cast(pa.schema([(name, pa.string()) for name in chosen]))


def _chosen(names: list[str], location: str, flag: str) -> tuple[str, str]:
    """Return the names of the two columns."""
    of_locations = next((name for name in ("uri", _OWN_COLUMNS[flag]) if name in names), None)
    if of_locations is None or names.count("id") != 1 or names.count(of_locations) != 1:
        shown = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
        raise InputError(
            f"{flag} {location}: its columns are {shown}; id and uri are needed once, with a comma between"
        )
    return "id", of_locations


def _absolute(uris: pa.ChunkedArray, location: str, flag: str) -> pa.ChunkedArray:
    """Return absolute locations. Raises `InputError` if one has no bucket, or contains credentials."""
    folder = location.rpartition("/")[0]
    chunks = []
    for start in range(0, len(uris), _CHUNK):  # millions of Python strings at once would take gigabytes
        places = []
        for row, uri in enumerate(uris.slice(start, _CHUNK).to_pylist(), start + 1):
            try:
                places.append(storage.absolute(uri if uri.startswith("/") or "://" in uri else f"{folder}/{uri}"))
            except ValueError as error:  # an InputError, or a URI that Python cannot split
                raise InputError(f"{flag} {location}: row {row}: {error}") from error
        chunks.append(pa.array(places, pa.string()))
    return pa.chunked_array(chunks)
