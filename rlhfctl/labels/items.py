"""Define the items of a labelling set: one prompt with two to sixteen responses, which people or judges compare.

A labelling set is a JSONL file with one item per line (`sample` writes it), or any file of preferences, whose rows then
are judged anew. An item is identified by the hash of its texts, so a label stays valid in every set that holds the same
item. Pure but for reading and writing files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.data.types import PreferenceGroup, Prompt
from rlhfctl.errors import DataError

FEWEST, MOST = 2, 16  # responses of an item
KEYS = ("id", "prompt", "responses", "origins", "gold", "disagreement", "tools")

_ID = 16  # hexadecimal digits: no two of a billion items share one, but by a chance below one in ten


@dataclass(frozen=True)
class Item:
    """One question to people: which of these responses to the prompt is better.

    `origins` names the model that wrote each response; annotators never see it. `gold` holds the right ranks (0 is
    best) of a question with a known answer. `disagreement` tells how far the members of a reward ensemble differ.
    """

    id: str
    prompt: Prompt
    responses: tuple[Prompt, ...]
    origins: tuple[str, ...]
    gold: tuple[int, ...] | None = None
    disagreement: float | None = None
    tools: list[dict[str, Any]] | None = None

    def as_row(self) -> dict[str, Any]:
        """Return the item as a row of a labelling set; what it does not have is left out."""
        row: dict[str, Any] = {"id": self.id, "prompt": self.prompt, "responses": list(self.responses)}
        row["origins"] = list(self.origins)
        more = {"gold": self.gold and list(self.gold), "disagreement": self.disagreement, "tools": self.tools}
        return row | {key: value for key, value in more.items() if value is not None}


def make_item(
    prompt: Prompt,
    responses: Sequence[Prompt],
    origins: Sequence[str],
    *,
    gold: Sequence[int] | None = None,
    disagreement: float | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> Item:
    """Make an item, with its id; ValueError with a sentence if these texts are no question to people."""
    if not FEWEST <= len(responses) <= MOST:
        raise ValueError(f"an item has {FEWEST} to {MOST} responses, not {len(responses)}")
    if len(origins) != len(responses):
        raise ValueError(f"{len(responses)} responses need as many origins, not {len(origins)}")
    texts = [json.dumps(response, sort_keys=True) for response in responses]
    if len(set(texts)) < len(texts):
        raise ValueError("two of its responses are equal")
    if gold is not None and (len(gold) != len(responses) or not all(type(rank) is int for rank in gold)):
        raise ValueError("gold holds one whole rank per response, 0 for the best")
    content = {"prompt": prompt, "responses": list(responses)} | ({} if tools is None else {"tools": tools})
    return Item(
        fs.hash_json(content)[:_ID],
        prompt,
        tuple(responses),
        tuple(origins),
        None if gold is None else tuple(gold),
        disagreement,
        tools,
    )


def item_of(row: Mapping[str, Any]) -> Item:
    """Read an item from a row of a labelling set; ValueError with a sentence if it is none, or was altered."""
    unknown = [key for key in row if key not in KEYS]
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}; an item has {', '.join(KEYS)}")
    missing = [key for key in ("prompt", "responses") if key not in row]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing")
    responses = row["responses"]
    if not isinstance(responses, list):
        raise ValueError("responses: expected a list")
    for name, value in (("prompt", row["prompt"]), *(("responses", one) for one in responses)):
        _require_text(name, value)
    origins = row.get("origins", ["unknown"] * len(responses))
    disagreement = row.get("disagreement")
    if disagreement is not None and not (isinstance(disagreement, int | float) and math.isfinite(disagreement)):
        raise ValueError("disagreement: expected a number")
    made = make_item(
        row["prompt"],
        responses,
        origins,
        gold=row.get("gold"),
        disagreement=disagreement,
        tools=row.get("tools"),
    )
    if row.get("id", made.id) != made.id:
        raise ValueError(f"id {row['id']}: its texts have the id {made.id}; were they edited? Remove the id then")
    return made


def _require_text(name: str, value: Any) -> None:
    is_conversation = isinstance(value, list) and all(isinstance(one, dict) and "role" in one for one in value)
    if not isinstance(value, str) and not (is_conversation and value):
        raise ValueError(f"{name}: expected text, or a list of messages with role and content")


def read_items(path: Path) -> list[Item]:
    """Read a labelling set; DataError names the line that is no item. Equal items count once."""
    found: dict[str, Item] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            item = item_of(row) if isinstance(row, dict) else _no_object()
        except ValueError as error:
            raise DataError(
                f"not an item of a labelling set: {error}",
                where=f"{path}:{number}",
                fix="make the set with `rlhfctl sample`, or give a file of preferences (.csv, .parquet, ...)",
            ) from error
        found.setdefault(item.id, item)
    if not found:
        raise DataError("the labelling set has no items", where=str(path), fix="make one: rlhfctl sample RUN --n 2")
    return list(found.values())


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the labelling set cannot be read: {error}", where=str(path), fix="check the path") from error


def _no_object() -> Item:
    raise ValueError("expected one JSON object per line")


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write a labelling set, one item per line, in one step."""
    fs.write_atomic(path, "".join(json.dumps(item.as_row(), ensure_ascii=False) + "\n" for item in items))


def is_labelling_set(path: Path) -> bool:
    """Tell whether a JSONL file is a labelling set: its first row has an id and origins."""
    if path.suffix != ".jsonl":
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and {"id", "origins", "responses"} <= row.keys()


def items_of_groups(groups: Iterable[PreferenceGroup]) -> tuple[list[Item], list[str]]:
    """Return the items of preferences to judge anew, and sentences about groups that cannot be judged.

    The ranks of the file are not kept as gold: what people say now may differ. `origins` are the places in the file.
    """
    found: dict[str, Item] = {}
    left_out: dict[str, int] = {}
    for group in groups:
        origins = [f"response {place + 1} of the file" for place in range(len(group.responses))]
        try:
            item = make_item(group.prompt, group.responses, origins, tools=group.tools)
        except ValueError as error:
            left_out[str(error)] = left_out.get(str(error), 0) + 1
            continue
        found.setdefault(item.id, item)
    return list(found.values()), [f"{count} rows are left out: {why}" for why, count in left_out.items()]
