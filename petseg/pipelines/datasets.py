"""Helpers of all Ray Data pipelines: settings of a dataset, whole tables as blocks, storage errors as tables."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray.data

from petseg.errors import UnavailableError

WHOLE_BLOCKS: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
"""Arguments of `map_batches` for a function from one block, as an Arrow table, to another."""

_UNAVAILABLE = "petseg unavailable"
"""Column name that marks a table which carries a storage error instead of data."""


@contextlib.contextmanager
def data_context(**settings: Any) -> Iterator[ray.data.DataContext]:
    """Change settings of Ray Data for the datasets that are created in the `with` block, and for no others.

    A dataset keeps the settings with which it was created. A block is never split, however large it is.
    """
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None
    for name, value in settings.items():
        assert hasattr(context, name)
        setattr(context, name, value)
    with ray.data.DataContext.current(context):
        yield context


def catch_unavailable(work: Callable[[], pa.Table]) -> pa.Table:
    """Return the table from `work`, or, if storage does not answer, a table with the error.

    Ray Data wraps an exception of a function that it calls in a long text, from which the driver cannot recover the
    original message.
    """
    try:
        return work()
    except UnavailableError as error:
        return pa.table({_UNAVAILABLE: [str(error)]})


def unavailable_reason(table: pa.Table) -> str | None:
    """Return the storage error in a table from `catch_unavailable`, or None if the table holds data."""
    return table[_UNAVAILABLE][0].as_py() if table.column_names == [_UNAVAILABLE] else None
