"""Steps that are prepared ahead of their turn. Knows no model."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prepared(items: Iterable[Item], prepare: Callable[[Item], Result], ahead: bool) -> Iterator[tuple[Item, Result]]:
    """Each item with what `prepare` makes of it, in order; with `ahead` a thread makes the next one meanwhile.

    An error of `prepare` or of `items` is raised at the item's own turn.
    """
    if not ahead:
        yield from ((item, prepare(item)) for item in items)
        return
    source = iter(items)

    def next_one() -> tuple[Item, Result] | None:
        for item in source:
            return item, prepare(item)
        return None

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next_one)
        while (found := future.result()) is not None:
            future = pool.submit(next_one)
            yield found
