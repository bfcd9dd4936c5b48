"""Work ahead of a consumer, in order and within a limit: the one way in which petseg overlaps stages."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    weight: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, while `pool` works on the items that follow.

    At most `ahead` items, or items with the total `weight` of `ahead`, are in the pool while the consumer has a result.
    `items` is read as far ahead as that, in the consumer's thread. No reference to an item or a result is kept.

    Raises the exception of the first item that fails, in its place.
    """
    running: deque[tuple[int, Future[Result]]] = deque()
    total = 0
    for item in items:
        running.append((weight(item), pool.submit(work, item)))
        total += running[-1][0]
        del item  # may be large
        while total > ahead:
            total -= running[0][0]
            yield running.popleft()[1].result()
    while running:
        yield running.popleft()[1].result()
