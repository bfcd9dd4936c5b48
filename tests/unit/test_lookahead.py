import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from petseg import storage
from petseg.lookahead import map_ahead


def test_map_ahead_yields_in_order_and_reads_within_the_limit() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda number: number * 2, items(), ahead=5)
        assert [next(results) for _ in range(3)] == [0, 2, 4]
        assert len(taken) == 3 + 5
        assert list(results) == [2 * number for number in range(3, 100)]


def test_reader_that_is_dropped_half_way_ends_its_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    for number in range(40):
        (tmp_path / str(number)).touch()
    contents = storage.read_each(str(tmp_path / str(number)) for number in range(40))
    next(contents)
    assert threading.active_count() > before
    del contents
    assert threading.active_count() == before


def test_map_ahead_items_run_while_the_consumer_has_a_result() -> None:
    begun = [threading.Event() for _ in range(3)]

    def work(number: int) -> int:
        begun[number].set()
        return number

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, work, range(3), ahead=1)
        assert next(results) == 0
        assert begun[1].wait(10)
        assert not begun[2].is_set()
        assert list(results) == [1, 2]


def test_map_ahead_weights_limit_waiting_items() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for weight in (4, 4, 4, 50, 1):
            taken.append(weight)
            yield weight

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda weight: weight, items(), ahead=9, weight=lambda weight: weight)
        assert next(results) == 4 and taken == [4, 4, 4]
        assert next(results) == 4 and taken == [4, 4, 4, 50]
        assert next(results) == 4 and next(results) == 50 and taken == [4, 4, 4, 50]
        assert list(results) == [1]


def test_map_ahead_failed_item_raises_in_its_place() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda number: 1 // number, [1, 0, 1], ahead=4)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


class Picture:
    """Stands for a large object."""


def test_map_ahead_keeps_no_reference_to_yielded_results() -> None:
    items: list[weakref.ref[Picture]] = []

    def make(_: int) -> Picture:
        picture = Picture()
        items.append(weakref.ref(picture))
        return picture

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, lambda picture: Picture(), map(make, range(3)), ahead=0)
        first = weakref.ref(next(results))
        pool.submit(int).result()  # the pool's thread has let go of its last item
        gc.collect()
        assert items[0]() is None and first() is None
