"""Find the rows of a data source (files of every common kind, folders, the Hub) and read them, each with its location.

Reads one `source` of the recipe's data, and checks that it is readable and has columns. Leaves out the meaning of
columns (rows.py). text_files.py reads text files; pyarrow and datasets read the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.data.store import Locations, Store
from rlhfctl.data.tally import Tally
from rlhfctl.data.text_files import (
    PAIR,
    Found,
    broken,
    is_file_name,
    read_csv,
    read_json,
    read_jsonl,
    read_text,
    require_file,
)
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import DATA_SUFFIXES, Source

TEXT_COLUMNS = {  # the column for plain text
    "demonstrations": "text", "preferences": PAIR, "pretraining": "text", "prompts": "prompt",
}  # fmt: skip
_KINDS = ", ".join(DATA_SUFFIXES)
_BATCH = 1_000  # rows of a table that become Python objects together
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")  # files that datasets' save_to_disk writes


def read(section: Source, text_column: str, tally: Tally | None = None) -> tuple[Sequence[Row], Sequence[str], str]:
    """Return (rows, locations, fingerprint) of a source that is not built in. Plain text gives rows of `text_column`.

    `tally` counts rows that are left out or read in an unusual way; without one a line that gives no row is an error.
    """
    counted = tally or Tally()
    with Work(f"reading {Path(section.source).name}"):
        rows, locations, fingerprint = _read(section, Path(section.source), text_column, counted)
    if tally is None and counted.unreadable:
        raise broken(counted.unreadable, counted.unreadable_fix)
    if not rows:
        raise DataError("there are no rows", where=section.source, fix="name data with at least one row")
    return rows, locations, fingerprint


def _read(section: Source, path: Path, text_column: str, tally: Tally) -> tuple[Sequence[Row], Sequence[str], str]:
    if path.is_dir():
        rows, locations = _read_folder(path, section, text_column, tally)
        fingerprint = fs.hash_json([[str(file.relative_to(path)), fs.hash_file(file)] for file in _files_below(path)])
    elif path.is_file() or is_file_name(section.source) or path.is_absolute():
        rows, locations = read_file(path, text_column, tally)
        fingerprint = fs.hash_file(path)
        _refuse_split(section)
    else:
        rows, locations = _read_hub(section)
        fingerprint = fs.hash_json_list(json.dumps(row, sort_keys=True, default=str) for row in rows)
    return rows, locations, fingerprint


def is_path(source: str) -> bool:
    """Tell whether a source is a file or a folder here, not an id on the Hub or a built-in task."""
    return Path(source).is_absolute() or is_file_name(source)


def read_file(path: Path, text_column: str = "text", tally: Tally | None = None) -> Found:
    """Read the rows of one file by its ending; DataError if it is missing, empty, or does not match its ending."""
    require_file(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers: dict[str, Callable[[Path], Found]] = {
        ".jsonl": lambda file: read_jsonl(file, tally),
        ".ndjson": lambda file: read_jsonl(file, tally),
        ".json": read_json,
        ".csv": lambda file: read_csv(file, ",", tally),
        ".tsv": lambda file: read_csv(file, "\t", tally),
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
        ".txt": lambda file: read_text(file, text_column),
    }
    if suffix not in readers:
        raise DataError(f"the ending {suffix or '(none)'} is of no known kind", where=str(path), fix=f"one of {_KINDS}")
    if path.stat().st_size == 0:
        raise DataError("the data file is empty", where=str(path), fix="name a file with at least one row")
    return readers[suffix](path)


def _refuse_split(section: Source) -> None:
    for key in ("subset", "split", "revision"):
        if getattr(section, key) is not None:
            raise DataError(
                f"{key} is of data on the Hub or in a folder, but this is one file",
                where=section.source,
                fix=f"remove {key}",
            )


# ---------------------------------------------------------------- tables


def _read_parquet(path: Path) -> Found:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = _in_batches(file.iter_batches(batch_size=_BATCH))
    except (ArrowException, OSError) as error:
        raise _no_table(path, "Parquet", error) from error
    return rows, _numbered(path, len(rows))


def _read_arrow(path: Path) -> Found:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()  # views of the mapped file, no copy
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_file(source).read_all()
            rows = _in_batches(table.to_batches(max_chunksize=_BATCH))
    except (pa.ArrowException, OSError) as error:
        raise _no_table(path, "Arrow", error) from error
    return rows, _numbered(path, len(rows))


def _in_batches(batches: Iterable[Any]) -> Sequence[Row]:
    """Collect the rows of a table's record batches, one batch after the other."""
    return _without_nulls(row for batch in batches for row in batch.to_pylist())


def _without_nulls(rows: Iterable[Row]) -> Sequence[Row]:
    """Collect rows without the nulls that tables put into objects for keys that only other objects have."""
    kept: Store[Row] = Store()
    kept.extend({key: _without_null(value) for key, value in row.items()} for row in rows)
    return kept.items()


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _no_table(path: Path, kind: str, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    reason = reason.removeprefix(f"Could not open Parquet input source '{path}': ")
    return DataError(f"not a whole {kind} file: {reason}", where=str(path), fix="fetch or write it again")


def _numbered(path: Path | str, count: int) -> Sequence[str]:
    return Locations(f"{path} row {number}" for number in range(1, count + 1))


# ---------------------------------------------------------------- folders and the Hub


def _files_below(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))


def _read_folder(folder: Path, section: Source, text_column: str, tally: Tally) -> Found:
    """Read a data set that datasets saved, or all files of known kinds; `split` is then part of the file names."""
    if any((folder / name).is_file() for name in _SAVED):
        from datasets import DatasetDict, load_from_disk

        try:
            saved = load_from_disk(str(folder))
        except Exception as error:
            raise _no_table(folder, "data set of a", error) from error
        table = _split(saved, section) if isinstance(saved, DatasetDict) else saved
        rows = _in_batches(table.with_format("arrow").iter(batch_size=_BATCH))
        return rows, _numbered(folder, len(rows))
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and is_file_name(file.name)]
    if section.split is not None:
        named = [file for file in files if section.split in file.name]
        if not named:
            have = ", ".join(file.name for file in files[:6]) or "none"
            raise DataError(
                f"no file is of the split {section.split!r}", where=str(folder), fix=f"its data files are: {have}"
            )
        files = named
    if not files:
        raise DataError("the folder holds no data files", where=str(folder), fix=f"known kinds are {_KINDS}")
    found: Store[Row] = Store()
    places = Locations()
    for file in files:
        read_rows, locations = read_file(file, text_column, tally)
        found.extend(read_rows)
        for location in locations:
            places.append(location)
    return found.items(), places


def _split(saved: Any, section: Source) -> Any:
    split = section.split or ("train" if "train" in saved or len(saved) > 1 else next(iter(saved)))
    if split not in saved:
        raise DataError(f"there is no split {split!r}", where=section.source, fix=f"splits: {', '.join(saved)}")
    return saved[split]


def _read_hub(section: Source) -> Found:
    from datasets import load_dataset

    try:
        table = load_dataset(
            section.source, name=section.subset, split=section.split or "train", revision=section.revision
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"neither a file or folder here nor a data set that can be fetched from the Hub: {reason}",
            where=section.source,
            fix="check the name, split and subset; without network, name a file or a folder",
        ) from error
    rows = _in_batches(table.with_format("arrow").iter(batch_size=_BATCH))
    return rows, _numbered(section.source, len(rows))
