"""Read text files: JSONL, JSON, CSV and TSV, plain lines; each row with its location "file:line".

Reads JSONL and CSV line by line: an error names the broken line, and a file may be larger than memory. JSON and plain
text are read whole. Checks that a file is readable text with columns. Leaves out the meaning of columns (rows.py), and
binary tables, folders and the Hub (sources.py, which chooses the reader by a file's ending).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from rlhfctl.data.columns import INDEX_NOTE
from rlhfctl.data.store import Locations, Store
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import DATA_SUFFIXES

Found = tuple[Sequence[Row], Sequence[str]]  # rows, and the location of each: "file:line"

PAIR = "pair"  # not a column: a line of plain text cannot hold chosen and rejected
_SHOWN_BAD_ROWS = 5
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_LARGEST_CELL = 1 << 27
_PIECE = 1 << 20  # bytes
_NOT_UTF8 = "not UTF-8 text"
_QUOTE = 'put cells that hold commas, quotes or line breaks in "double quotes"'
_CONVERT = "convert it: iconv -f LATIN1 -t UTF-8 OLD > NEW (or whatever it is written in)"


def is_file_name(name: str) -> bool:
    return name.removesuffix(".gz").endswith(DATA_SUFFIXES)


def require_file(path: Path) -> None:
    """Raise DataError if the file does not exist; the message names the data files beside it."""
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if is_file_name(p.name)] if path.parent.is_dir() else []
        near = [name for name in beside if name.endswith(path.suffix)] or beside
        hint = (
            f"in that folder: {', '.join(sorted(near)[:6])}"
            if near
            else "check the path; it is read relative to the recipe"
        )
        raise DataError("the data file does not exist", where=str(path), fix=hint)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes, unpacked where its name ends in .gz; DataError where it is no gzip file."""
    if not path.name.endswith(".gz"):
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with gzip.open(path, "rb") as unpacked:
            yield cast(BinaryIO, unpacked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            "the file cannot be unpacked: it is truncated or no gzip file", where=str(path), fix="fetch it again"
        ) from error


def _count_lines(path: Path, *, text: bool) -> int:
    """Count the lines of a file, piece by piece; `text`: DataError where it is not UTF-8."""
    count, last, decoder = 0, b"", codecs.getincrementaldecoder("utf-8")()
    try:
        with _opened(path) as stream:
            while piece := stream.read(_PIECE):
                count, last = count + piece.count(b"\n"), piece
                if text:
                    decoder.decode(piece)
        if text:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        text_of(path)  # raises, and names the line
    return count + (not last.endswith(b"\n"))


def text_of(path: Path) -> str:
    """The text of a file, unpacked where its name ends in .gz; DataError where it is not UTF-8."""
    try:
        with _opened(path) as stream:
            data = stream.read()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"not UTF-8 text: byte {error.object[error.start]:#04x} in line {line}",
            where=str(path),
            fix=_CONVERT,
        ) from error


def first_of(bad: Sequence[str]) -> str:
    """List the first sentences about bad rows, indented, one per line, and how many more there are."""
    more = len(bad) - _SHOWN_BAD_ROWS
    shown = [*bad[:_SHOWN_BAD_ROWS], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n    {sentence}" for sentence in shown)


def broken(bad: Sequence[tuple[str, str]], fix: str) -> DataError:
    """Make the error about lines that give no row: (file:line, reason) each."""
    sentences = [f"{location}: {reason}" for location, reason in bad]
    return DataError(f"{len(bad)} line{'s' if len(bad) > 1 else ''} cannot be read:{first_of(sentences)}", fix=fix)


def _keep(bad: Sequence[tuple[str, str]], fix: str, rows: int, tally: Tally | None) -> None:
    """Record lines that give no row in the tally; raise an error without a tally, or if no other line gives a row."""
    if not bad:
        return
    if tally is None or not rows:
        raise broken(bad, fix)
    tally.unreadable += bad
    tally.unreadable_fix = fix


def read_jsonl(path: Path, tally: Tally | None = None) -> Found:
    """Return (objects, their locations "file:line") of a JSONL file; DataError names every line that is not an object.

    With a `tally` such lines are recorded there, for `bad_rows`.
    """
    require_file(path)
    with _opened(path) as stream:
        lines = Work(f"reading {path.name}", _count_lines(path, text=False), "line").through(stream)
        return _jsonl_rows(path, lines, tally)


def _jsonl_rows(path: Path, lines: Iterator[bytes], tally: Tally | None) -> Found:
    rows: Store[Row] = Store()
    locations = Locations()
    bad: list[tuple[str, str]] = []
    torn = False
    for number, raw in enumerate(lines, 1):
        location = f"{path}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if not line.strip():
                continue
            value = json.loads(line)
            _check_surrogates(line, value)
        except UnicodeDecodeError:
            bad.append((location, _NOT_UTF8))
            continue
        except UnicodeEncodeError as error:
            bad.append((location, f"\\u{ord(error.object[error.start]):04x} is half a surrogate pair, not a character"))
            continue
        except json.JSONDecodeError as error:
            bad.append((location, f"not a JSON object ({error.msg.removesuffix(' at')} at character {error.pos + 1})"))
            torn = not raw.endswith(b"\n")
            continue
        except RecursionError:
            bad.append((location, "nested too deeply"))
            continue
        if not isinstance(value, dict):
            bad.append((location, f"expected a JSON object, got {type_name(value)}"))
            continue
        rows.append(value)
        locations.append(location)
    fix = "one JSON object per line, in UTF-8"
    if all(reason == _NOT_UTF8 for _, reason in bad):
        fix = _CONVERT
    elif torn:
        fix += "; the file ends within its last line, so it may have been cut: fetch or write it again"
    _keep(bad, fix, len(rows), tally)
    if not len(rows):
        raise DataError("the data file is empty", where=str(path), fix="one JSON object per line, in UTF-8")
    return rows.items(), locations


def _check_surrogates(text: str, value: object) -> None:
    """Raise UnicodeEncodeError for half a surrogate pair: JSON accepts it, tokenizers do not."""
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def read_json(path: Path) -> Found:
    """Read a JSON file: a list of objects, or an object whose only list holds them."""
    text = text_of(path)
    try:
        value = json.loads(text)
        _check_surrogates(text, value)
    except json.JSONDecodeError as error:
        fix = "correct it"
        if error.msg == "Extra data":
            fix = "one object a line is JSONL: name the file .jsonl"
        raise DataError(
            f"not JSON: {error.msg.removesuffix(' at')} in line {error.lineno}", where=str(path), fix=fix
        ) from error
    except UnicodeEncodeError as error:
        fix = "write whole characters: a \\ud800 to \\udfff stands in a pair, as an emoji does, or is left out"
        raise DataError("it holds half a surrogate pair, which is no character", where=str(path), fix=fix) from error
    except RecursionError as error:
        fix = "give a flat list of objects, one per row"
        raise DataError("nested too deeply", where=str(path), fix=fix) from error
    lists = [inner for inner in value.values() if isinstance(inner, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise DataError(
            f"expected a list of objects, got {type_name(value)}", where=str(path), fix='like [{"prompt": "..."}, ...]'
        )
    for number, item in enumerate(lists[0], 1):
        if not isinstance(item, dict):
            fix = 'write each item as an object, like {"prompt": "..."}'
            raise DataError(f"item {number} is {type_name(item)}, not an object", where=str(path), fix=fix)
    return lists[0], [f"{path} item {number}" for number in range(1, len(lists[0]) + 1)]


def read_csv(path: Path, delimiter: str, kept: Tally | None) -> Found:
    """Read a CSV file with column names in its first line.

    An empty cell is no value. Empty rows are counted and left out. A row's location is the line that it begins in.
    """
    tally = kept or Tally()
    csv.field_size_limit(_LARGEST_CELL)
    count = _count_lines(path, text=True)
    with _opened(path) as stream:
        delimiter = _delimiter(stream.readline().decode("utf-8-sig"), delimiter, tally)
    with _opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        lines = Work(f"reading {path.name}", count, "line").through(text)
        rows, locations, bad = _csv_rows(path, lines, delimiter, tally)
    tally.made += Counter()  # removes counts of 0
    _keep(bad, _QUOTE, len(rows), kept)
    return rows, locations


def _csv_rows(
    path: Path, lines: Iterator[str], delimiter: str, tally: Tally
) -> tuple[Sequence[Row], Locations, list[tuple[str, str]]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: Store[Row] = Store()
    locations = Locations()
    bad: list[tuple[str, str]] = []
    header: list[str] = []
    begins = ends = 0
    try:
        for cells in reader:
            begins, ends = ends + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                tally.made["rows of empty cells are left out"] += bool(header and cells)
                continue
            if not header:
                header = _header(cells, path)
                continue
            location = f"{path}:{begins}"
            if len(cells) != len(header):
                bad.append((location, f"{len(cells)} cells, but the first line names {len(header)} columns"))
                continue
            named = [(name, cell) for name, cell in zip(header, cells, strict=True) if name]
            tally.made[INDEX_NOTE] += len(named) < len(header)
            rows.append({name: cell if cell != "" else None for name, cell in named})
            locations.append(location)
    except csv.Error as error:  # the rest of the file cannot be split into rows
        raise broken([*bad, (f"{path}:{reader.line_num}", str(error))], _QUOTE) from error
    return rows.items(), locations, bad


def _delimiter(first_line: str, usual: str, tally: Tally) -> str:
    """Find the delimiter of columns: the usual one, or another if the first line does not contain it."""
    delimiter = next((sign for sign in (usual, *_DELIMITERS) if sign in first_line), usual)
    if delimiter != usual:
        tally.examples["columns are set apart by"] = _DELIMITERS[delimiter]
    return delimiter


def _header(cells: Sequence[str], path: Path) -> list[str]:
    """Read the names of the columns; empty names before the first one are an index, as pandas writes it."""
    header = [cell.strip() for cell in cells]
    named = [name for name in header if name]
    first = header.index(named[0])
    if len(set(named)) < len(named) or not all(header[first:]):
        raise DataError(
            f"the first line names its columns badly: {', '.join(header)}",
            where=str(path),
            fix="give every column a name of its own in the first line",
        )
    return header


def read_text(path: Path, column: str) -> Found:
    """Read a text file with one row per line."""
    if column == PAIR:
        raise DataError(
            "plain text holds no pairs of responses", where=str(path), fix="use .jsonl, .csv or .parquet with columns"
        )
    lines = [(number, line) for number, line in enumerate(text_of(path).splitlines(), 1) if line.strip()]
    return [{column: line} for _, line in lines], [f"{path}:{number}" for number, _ in lines]


def type_name(value: object) -> str:
    """Name the type of a JSON value in words."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
