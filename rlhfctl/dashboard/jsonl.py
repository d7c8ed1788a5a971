"""Write and read a run's `events.jsonl`: one strict JSON object per line.

Appends to the file and flushes each line, so that another process can follow it and a kill loses at most the line being
written. Reads the same file. Strict JSON has no NaN: a number that is not finite becomes null.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rlhfctl.events import Event


class JsonlWriter:
    """Append each event to `path` as one line. This is a listener; it opens the file at the first event."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None

    def __call__(self, event: Event, /) -> None:
        if self._file is None:
            self._file = _open_for_append(self.path)
        line = json.dumps(_strict(event.to_record()), ensure_ascii=False, allow_nan=False)
        # backslashreplace writes a lone surrogate as \udXXX, which inside a JSON string is the right escape for it
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later event opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of an `events.jsonl` in order. A torn line (a writer killed in the middle of it) is skipped."""
    with Path(path).open("rb") as lines:  # as bytes: only \n ends a line, and a torn line may end inside a character
        yield from records(lines)


def records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the records of whole lines. A line that is not a JSON object is skipped."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # JSONDecodeError and UnicodeDecodeError
            continue
        if isinstance(record, dict):
            yield record


def _open_for_append(path: Path) -> BinaryIO:
    """Open a file for append. A torn last line is ended first, so that the next event starts a new line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+")
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _strict(value: Any) -> Any:
    """Convert a value to strict JSON: a non-finite number becomes null, a NumPy number a number, anything else text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_strict(item) for item in value), key=str)
    return str(value)
