"""Keep many rows outside memory: in a temporary file, in order, with a few bytes in memory for each.

    Store          rows are appended; few stay in memory as a list, many go to a file in blocks of BLOCK
    Stored         the rows of that file as a sequence; a row is read when it is asked for
    Picked         some rows of a sequence by their places, in the order of the places
    Locations      "file:line" of each row, in 12 bytes
    in_order       keys sorted, with their places
    TokenIds       the token ids of each row, in 4 bytes per id

A data set of up to KEPT rows is a plain list: reading, checking and training are then as fast as a list is. A larger
one costs about 10 bytes of memory per row, whatever its texts are. The file lies in the folder of temporary files
(TMPDIR), has no name and is gone when the process ends. Leaves out what a row means (types.py, rows.py).
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import itertools
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np

T = TypeVar("T")

KEPT = 20_000
"""Largest number of rows that stay in memory as Python objects."""
BLOCK = 64
"""Rows that are written, and read, together: large enough that reading in order costs little, small for one row."""


class _File:
    """A temporary file of pickled blocks without a name; it is closed with the last sequence that reads it."""

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile(prefix="rlhfctl-rows-")  # noqa: SIM115 - lives as long as its rows
        self.starts = array("q", [0])  # byte at which each block starts, and the end of the last one
        self._last: tuple[int, list[Any]] = (-1, [])  # one tuple, so that threads see a block with its number

    def append(self, block: list[Any]) -> None:
        """Write a block after the others."""
        data = pickle.dumps(block, protocol=pickle.HIGHEST_PROTOCOL)
        self._stream.write(data)
        self.starts.append(self.starts[-1] + len(data))

    def finish(self) -> None:
        """Make everything that was appended readable."""
        self._stream.flush()

    def between(self, first: int, end: int) -> Iterator[Any]:
        """Read the items of the blocks from `first` to before `end`, one block at a time."""
        for number in range(first, end):
            yield from self._read(number)

    def _read(self, number: int) -> list[Any]:
        begin, end = self.starts[number], self.starts[number + 1]
        rows: list[Any] = pickle.loads(os.pread(self._stream.fileno(), end - begin, begin))
        return rows

    def block(self, number: int) -> list[Any]:
        """Read a block; the last one stays in memory."""
        known, rows = self._last
        if known != number:
            rows = self._read(number)
            self._last = number, rows
        return rows


class _Sequence(Sequence[T], Generic[T]):
    """A sequence that reads its items when they are asked for, and equals every sequence of equal items."""

    def _at(self, place: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return pick(self, range(len(self))[place])
        size = len(self)
        if not -size <= place < size:
            raise IndexError(place)
        return self._at(place % size)

    def __iter__(self) -> Iterator[T]:
        return (self._at(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Stored(_Sequence[T]):
    """Items in a temporary file. Each reading makes new objects, so that no item is known by its identity."""

    def __init__(self, file: _File, count: int) -> None:
        self._file, self._count = file, count

    def __len__(self) -> int:
        return self._count

    def _at(self, place: int) -> T:
        return cast(T, self._file.block(place // BLOCK)[place % BLOCK])

    def __iter__(self) -> Iterator[T]:
        return self._file.between(0, len(self._file.starts) - 1)


class Store(Generic[T]):
    """Collect items one by one, and return them as a sequence: a list of up to KEPT items, else from a file."""

    def __init__(self) -> None:
        self._items: list[T] = []  # all of them, or those of the block that is not written yet
        self._file: _File | None = None
        self._count = 0

    def append(self, item: T) -> None:
        """Add an item."""
        self._items.append(item)
        self._count += 1
        if self._file is None:
            if self._count > KEPT:
                self._file = _File()
                self._write(self._file)
        elif len(self._items) == BLOCK:
            self._write(self._file)

    def extend(self, items: Iterable[T]) -> None:
        """Add several items."""
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return self._count

    def items(self) -> Sequence[T]:
        """Return what was added; nothing may be added later."""
        if self._file is None:
            return self._items
        if self._items:
            self._file.append(self._items)
            self._items = []
        self._file.finish()
        return Stored(self._file, self._count)

    def _write(self, file: _File) -> None:
        whole = len(self._items) - len(self._items) % BLOCK
        for begin in range(0, whole, BLOCK):
            file.append(self._items[begin : begin + BLOCK])
        del self._items[:whole]


class Picked(_Sequence[T]):
    """The items of `source` at `places`, in their order."""

    def __init__(self, source: Sequence[T], places: Sequence[int]) -> None:
        self._source, self._places = source, places

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, place: int) -> T:
        return self._source[self._places[place]]


def pick(source: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """Return the items of `source` at `places`: up to KEPT as a list, more as a sequence that reads them when asked."""
    return [source[place] for place in places] if len(places) <= KEPT else Picked(source, places)


class Chained(_Sequence[T]):
    """Several sequences one after the other."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self._parts = parts
        self._ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _at(self, place: int) -> T:
        part = bisect.bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[T]:
        for part in self._parts:
            yield from part


def digest(text: str) -> bytes:
    """Return 16 bytes that stand for a text; the chance that any two of 10^9 texts share theirs is below 10^-20."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Digests:
    """Count distinct texts, in 16 bytes per text."""

    def __init__(self) -> None:
        self._found = bytearray()

    def add(self, text: str) -> None:
        """Add a text."""
        self._found += digest(text)

    def distinct(self) -> int:
        """Count the different texts that were added."""
        return len(np.unique(np.frombuffer(self._found, dtype=[("high", "u8"), ("low", "u8")])))


_RUN = 256 * BLOCK  # keys that are sorted in memory


def in_order(keys: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield (key, its place) in the order of the keys, equal ones by place; many are sorted in runs on disk."""
    numbered = ((key, place) for place, key in enumerate(keys))
    run = sorted(itertools.islice(numbered, KEPT))
    if len(run) < KEPT:
        yield from run
        return
    file, ends = _File(), [0]
    while run:
        for begin in range(0, len(run), BLOCK):
            file.append(run[begin : begin + BLOCK])
        ends.append(len(file.starts) - 1)
        run = sorted(itertools.islice(numbered, _RUN))
    file.finish()
    yield from heapq.merge(*(file.between(*pair) for pair in itertools.pairwise(ends)))


class Locations(_Sequence[str]):
    """Locations such as "file:12" or "file row 12", each in 12 bytes: what stands before the number is kept once."""

    def __init__(self, locations: Iterable[str] = ()) -> None:
        self._begins: dict[str, int] = {}
        self._names: list[str] = []
        self._begin, self._number = array("i"), array("q")
        for location in locations:
            self.append(location)

    def append(self, location: str) -> None:
        """Add a location."""
        begin = location.rstrip("0123456789")
        digits = location[len(begin) :]
        zeros = len(digits) - len(digits.lstrip("0"))
        if zeros or not digits or len(digits) > 18:  # no number that reads back as it was written
            begin, digits = location, "-1"
        if begin not in self._begins:
            self._begins[begin] = len(self._names)
            self._names.append(begin)
        self._begin.append(self._begins[begin])
        self._number.append(int(digits))

    def __len__(self) -> int:
        return len(self._number)

    def _at(self, place: int) -> str:
        begin, number = self._names[self._begin[place]], self._number[place]
        return begin if number < 0 else f"{begin}{number}"


class TokenIds(_Sequence[list[int]]):
    """Lists of token ids, in 4 bytes per id."""

    def __init__(self) -> None:
        self._ids, self._ends = array("i"), array("q", [0])

    def append(self, ids: Sequence[int]) -> None:
        """Add the ids of a row."""
        self._ids.extend(ids)
        self._ends.append(len(self._ids))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _at(self, place: int) -> list[int]:
        return self._ids[self._ends[place] : self._ends[place + 1]].tolist()
