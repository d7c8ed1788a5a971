"""Write labels in the formats of other tools, and read them back: TRL, rankings, Label Studio, Argilla.

    pairs         JSONL, TRL's preference format
    rankings      JSONL, one row per label, with annotator, time and origin of each response
    label-studio  JSON, tasks with annotations; `label_studio_config` is the labelling configuration they belong to
    argilla       JSON, records with responses, as rg.Dataset's records.to_json writes them

Ties and "all bad" survive all but pairs, which cannot hold them. Pure.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from rlhfctl import fs
from rlhfctl.labels import rankings
from rlhfctl.labels.items import Item, item_of, make_item
from rlhfctl.labels.rankings import Combine, Row
from rlhfctl.labels.store import IMPORTED, Event, Kind
from rlhfctl.labels.texts import plain

Format = Literal["pairs", "rankings", "label-studio", "argilla"]

ALL_BAD, TIE, SKIP = "all bad", "tie", "skip"  # choices beside the ranking in Label Studio
_SPACE = uuid.UUID("5a7d0f6e-6c55-4c0e-9f3b-1d8d3f5b8c11")  # of the ids that Argilla knows annotators by


@dataclass(frozen=True)
class Imported:
    """Labels read from a file: the items, and events about them without numbers."""

    items: list[Item]
    events: list[Event]


# ---------------------------------------------------------------- writing


def exported(form: Format, events: Sequence[Event], items: Mapping[str, Item], combine: Combine = "all") -> str:
    """Return the text of a file of labels in the format `form`."""
    if form in ("pairs", "rankings"):
        rows = rankings.rankings(events, items, combine)
        return _lines(rankings.pairs(rows) if form == "pairs" else rows)
    by_item: dict[str, list[Event]] = {}
    for event in events:
        by_item.setdefault(event.item, []).append(event)
    write = _label_studio_task if form == "label-studio" else _argilla_record
    found = [write(items[name], given) for name, given in by_item.items()]
    return json.dumps(found, ensure_ascii=False, indent=2) + "\n"


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def label_studio_config(responses: int) -> str:
    """Return the labelling configuration for items with so many responses: paste it into a Label Studio project."""
    choices = "".join(f'<Choice value="{name}"/>' for name in (TIE, ALL_BAD, SKIP))
    if responses == 2:
        return (
            '<View>\n  <Text name="prompt" value="$prompt"/>\n'
            '  <Pairwise name="preference" toName="response_1,response_2"/>\n'
            '  <Text name="response_1" value="$response_1"/>\n  <Text name="response_2" value="$response_2"/>\n'
            f'  <Choices name="answer" toName="prompt" choice="single">{choices}</Choices>\n</View>\n'
        )
    buckets = "".join(f'<Bucket name="{rank}" title="place {rank}"/>' for rank in range(1, responses + 1))
    return (
        '<View>\n  <Text name="prompt" value="$prompt"/>\n  <List name="responses" value="$responses"/>\n'
        f'  <Ranker name="ranking" toName="responses">{buckets}</Ranker>\n'
        f'  <Choices name="answer" toName="prompt" choice="single">{choices}</Choices>\n</View>\n'
    )


def _label_studio_task(item: Item, events: Sequence[Event]) -> dict[str, Any]:
    texts = [plain(response) for response in item.responses]
    data: dict[str, Any] = {"prompt": plain(item.prompt)}
    if len(texts) == 2:
        data |= {f"response_{place}": text for place, text in enumerate(texts, 1)}
    else:
        data["responses"] = [{"id": str(place), "title": "", "body": text} for place, text in enumerate(texts, 1)]
    return {
        "data": data | {"item": item.as_row()},  # the item as it is: texts alone cannot tell turns apart
        "annotations": [_label_studio_annotation(item, event) for event in events],
    }


def _label_studio_annotation(item: Item, event: Event) -> dict[str, Any]:
    when = datetime.fromtimestamp(event.time, UTC).isoformat()
    return {
        "completed_by": {"email": event.annotator},
        "created_at": when,
        "lead_time": event.seconds,
        "was_cancelled": event.kind == "skip",
        "result": _label_studio_result(item, event),
    }


def _label_studio_result(item: Item, event: Event) -> list[dict[str, Any]]:
    ranks = event.ranks or ()
    choice = ALL_BAD if event.kind == "bad" else TIE if ranks and len(set(ranks)) == 1 else None
    if choice is not None:
        value = {"choices": [choice]}
        return [{"from_name": "answer", "to_name": "prompt", "type": "choices", "value": value}]
    if not ranks:
        return []
    if len(item.responses) == 2:
        chosen = {"selected": "left" if ranks[0] < ranks[1] else "right"}
        return [{"from_name": "preference", "to_name": "response_1", "type": "pairwise", "value": chosen}]
    buckets: dict[str, list[str]] = {}
    for place, rank in enumerate(ranks):
        buckets.setdefault(str(rank + 1), []).append(str(place + 1))
    return [{"from_name": "ranking", "to_name": "responses", "type": "ranker", "value": {"ranker": buckets}}]


def _argilla_record(item: Item, events: Sequence[Event]) -> dict[str, Any]:
    names = [f"response-{place}" for place in range(1, len(item.responses) + 1)]
    fields = {"prompt": plain(item.prompt)}
    fields |= {name: plain(response) for name, response in zip(names, item.responses, strict=True)}
    responses: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        user = str(uuid.uuid5(_SPACE, event.annotator))
        ranks = rankings.ranks_of(event, item)
        value = [{"value": name, "rank": rank + 1} for name, rank in zip(names, ranks, strict=True)]
        responses.setdefault("ranking", []).append({"value": value, "user_id": user})
        if event.kind == "bad":
            responses.setdefault("answer", []).append({"value": ALL_BAD, "user_id": user})
    annotators = {str(uuid.uuid5(_SPACE, event.annotator)): event.annotator for event in events}
    metadata = {
        "item": json.dumps(item.as_row(), ensure_ascii=False),
        "annotators": json.dumps(annotators, ensure_ascii=False),
        "seconds": json.dumps({event.annotator: event.seconds for event in events}, ensure_ascii=False),
    }
    return {
        "id": item.id,
        "status": "completed",
        "fields": fields,
        "metadata": metadata,
        "suggestions": {},
        "responses": responses,
        "vectors": {},
    }


# ---------------------------------------------------------------- reading


def imported(text: str, annotator: str) -> Imported:
    """Read labels from the text of a file in any of the formats; ValueError with a sentence if it is none of them.

    `annotator` is the name for labels that have none. Texts that were not exported by rlhfctl make new items.
    """
    rows = _rows(text)
    reader = _reader(rows[0])
    items: dict[str, Item] = {}
    events: list[Event] = []
    for number, row in enumerate(rows, 1):
        try:
            item, given = reader(row, annotator)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
            raise ValueError(f"record {number}: {missing}") from error
        items.setdefault(item.id, item)
        events += given
    return Imported(list(items.values()), events)


def _rows(text: str) -> list[Any]:
    stripped = text.lstrip("\ufeff \t\r\n")
    try:
        rows = json.loads(stripped) if stripped.startswith("[") else _json_lines(stripped)
    except ValueError as error:
        raise ValueError(f"neither a JSON list nor JSON lines: {error}") from error
    if not rows:
        raise ValueError("it holds no records")
    return list(rows)


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


Reader = Callable[[Mapping[str, Any], str], tuple[Item, list[Event]]]


def _reader(first: Any) -> Reader:
    if isinstance(first, dict):
        if {"data", "annotations"} <= first.keys():
            return _from_label_studio
        if {"fields", "responses"} <= first.keys():
            return _from_argilla
        if {"prompt", "responses", "ranks"} <= first.keys():
            return _from_ranking
        if {"prompt", "chosen", "rejected"} <= first.keys():
            return _from_pair
    raise ValueError("no known format: rows of rlhfctl or TRL, tasks of Label Studio, records of Argilla")


def _from_pair(row: Mapping[str, Any], annotator: str) -> tuple[Item, list[Event]]:
    """Read a pair; its texts are put into an order of their own, so that equal pairs are one question."""
    texts = sorted((row["chosen"], row["rejected"]), key=lambda text: json.dumps(text, sort_keys=True))
    item = make_item(row["prompt"], texts, ["imported"] * 2, tools=row.get("tools"))
    ranks = (0, 1) if texts[0] == row["chosen"] else (1, 0)
    return item, [_event(item, annotator, "label", ranks)]


def _from_ranking(row: Mapping[str, Any], annotator: str) -> tuple[Item, list[Event]]:
    responses = row["responses"]
    origins = row.get("origins", ["imported"] * len(responses))
    item = make_item(row["prompt"], responses, origins, tools=row.get("tools"))
    kind: Kind = "bad" if row.get("bad") else "label"
    who = row.get("annotator", annotator)
    event = _event(item, who, kind, None if kind == "bad" else _ranks(row["ranks"], item), row.get("seconds"))
    shown = tuple(row["shown"]) if row.get("shown") else None
    judge = row.get("judge", "people")
    return item, [replace(event, note=row.get("note"), shown=shown, time=row.get("time", 0.0), judge=judge)]


def _from_label_studio(row: Mapping[str, Any], annotator: str) -> tuple[Item, list[Event]]:
    data = row["data"]
    item = item_of(data["item"]) if "item" in data else _item_of_label_studio(data)
    events = []
    for place, annotation in enumerate(row["annotations"], 1):
        by = annotation.get("completed_by")
        who = by.get("email") or by.get("username") if isinstance(by, dict) else None if by is None else f"user {by}"
        who = who or (annotator if len(row["annotations"]) == 1 else f"{annotator} {place}")
        kind, ranks = _label_studio_answer(annotation, item)
        if kind is not None:
            events.append(_event(item, who, kind, ranks, annotation.get("lead_time")))
    return item, events


def _item_of_label_studio(data: Mapping[str, Any]) -> Item:
    """Make an item from the texts of a task that was not exported by rlhfctl."""
    if isinstance(data.get("responses"), list):
        texts = [one["body"] if isinstance(one, dict) else one for one in data["responses"]]
    else:
        texts = [data[key] for key in sorted(key for key in data if key not in ("prompt", "id"))]
    return make_item(data["prompt"], texts, ["imported"] * len(texts))


def _label_studio_answer(annotation: Mapping[str, Any], item: Item) -> tuple[Kind | None, tuple[int, ...] | None]:
    count = len(item.responses)
    if annotation.get("was_cancelled"):
        return "skip", None
    for result in annotation["result"]:
        value = result["value"]
        if result["type"] == "choices":
            choice = value["choices"][0]
            known: dict[str, tuple[Kind, tuple[int, ...] | None]] = {
                ALL_BAD: ("bad", None), TIE: ("label", (0,) * count), SKIP: ("skip", None),
            }  # fmt: skip
            if choice in known:
                return known[choice]
        if result["type"] == "pairwise":
            return "label", (0, 1) if value["selected"] == "left" else (1, 0)
        if result["type"] == "ranker":
            return "label", _ranks_of_buckets(value["ranker"], count)
    return None, None


def _ranks_of_buckets(ranker: Mapping[str, Sequence[str]], count: int) -> tuple[int, ...]:
    """Read buckets that are numbered by rank, or one list in order, best first."""
    listed = list(ranker.values())
    groups = [[one] for one in listed[0]] if len(listed) == 1 and len(listed[0]) == count else []
    groups = groups or [list(ranker[name]) for name in sorted(ranker, key=int)]
    ranks = {int(name) - 1: rank for rank, group in enumerate(group for group in groups if group) for name in group}
    if sorted(ranks) != list(range(count)):
        raise ValueError(f"the ranking names {len(ranks)} of {count} responses")
    return tuple(ranks[place] for place in range(count))


def _from_argilla(row: Mapping[str, Any], annotator: str) -> tuple[Item, list[Event]]:
    metadata = row.get("metadata") or {}
    fields = row["fields"]
    if "item" in metadata:
        item = item_of(json.loads(metadata["item"]))
    else:
        texts = [fields[key] for key in fields if key != "prompt"]
        item = make_item(fields["prompt"], texts, ["imported"] * len(texts))
    names = json.loads(metadata.get("annotators", "{}"))
    seconds = json.loads(metadata.get("seconds", "{}"))
    bad = {one.get("user_id") for one in row["responses"].get("answer", ()) if one["value"] == ALL_BAD}
    order = [key for key in fields if key != "prompt"]
    events = []
    for one in row["responses"].get("ranking", ()):
        user = one.get("user_id")
        who = names.get(user, user or annotator)
        kind: Kind = "bad" if user in bad else "label"
        found = {value["value"]: value["rank"] for value in one["value"]}
        ranks = None if kind == "bad" else _ranks([found[name] for name in order], item)
        events.append(_event(item, who, kind, ranks, seconds.get(who)))
    return item, events


def _ranks(values: Sequence[Any], item: Item) -> tuple[int, ...]:
    """Return ranks from 0 on without gaps: only their order counts."""
    if len(values) != len(item.responses):
        raise ValueError(f"{len(values)} ranks for {len(item.responses)} responses")
    levels = sorted(set(values))
    return tuple(levels.index(value) for value in values)


def _event(
    item: Item, annotator: str, kind: Kind, ranks: tuple[int, ...] | None, seconds: float | None = None
) -> Event:
    """Make the event of a label that was given elsewhere; the same label read twice has one key and counts once."""
    key = fs.hash_json(["imported", item.id, annotator, kind, ranks])[:32]
    return Event(key, kind, item.id, annotator, IMPORTED, ranks, None, item.origins, seconds)
