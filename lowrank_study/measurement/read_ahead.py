"""Read the next item of an iterator in another thread."""

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_END: Any = object()


class ReadAhead(Generic[Item]):
    """An iterator over the items of another one, with the next item already being read."""

    def __init__(self, source: Iterator[Item], reader: Executor) -> None:
        """Start to read the first item."""
        self._source = source
        self._reader = reader
        self._next = reader.submit(next, source, _END)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item: Any = self._next.result()
        if item is _END:
            raise StopIteration
        self._next = self._reader.submit(next, self._source, _END)
        found: Item = item
        return found
