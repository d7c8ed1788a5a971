"""Labels in the formats of other tools: what is written, that all of it comes back, and what is no label."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from rlhfctl.labels import formats
from rlhfctl.labels.items import Item, make_item
from rlhfctl.labels.store import Event

PAIR = make_item("q & <b>", ["left\n", "right"], ["sft", "ppo"])
CHAT = make_item(
    [{"role": "user", "content": "hi"}],
    [[{"role": "assistant", "content": text}] for text in ("a", "b")],
    ["sft", "sft"],
    tools=[{"name": "add"}],
)
FOUR = make_item("p", ["a", "b", "c", "d"], ["m"] * 4)
ITEMS = {item.id: item for item in (PAIR, CHAT, FOUR)}


def event(item: Item, annotator: str, ranks: tuple[int, ...] | None, kind: str = "label", **more: Any) -> Event:
    return Event(f"{item.id} {annotator}", kind, item.id, annotator, ranks=ranks, origins=item.origins, **more)  # type: ignore[arg-type]


EVENTS = [
    event(PAIR, "ana", (1, 0), seconds=3.5, note="why", shown=(1, 0), time=1.0),
    event(PAIR, "bo", (0, 0), seconds=1.0),
    event(PAIR, "cy", None, "bad"),
    event(CHAT, "ana", (0, 1)),
    event(FOUR, "ana", (2, 0, 1, 1), seconds=9.0),
    event(FOUR, "bo", None, "bad"),
]


def said(events: list[Event]) -> list[tuple[str, str, str, object, object]]:
    return sorted((one.item, one.annotator, one.kind, one.ranks, one.seconds) for one in events)


@pytest.mark.parametrize("form", ["rankings", "label-studio", "argilla"])
def test_all_that_was_said_comes_back(form: formats.Format) -> None:
    text = formats.exported(form, EVENTS, ITEMS)
    back = formats.imported(text, "nobody")
    assert said(back.events) == said(EVENTS)
    assert {item.id: item for item in back.items} == ITEMS
    keys = [one.key for one in back.events]
    assert len(set(keys)) == len(keys) and keys == [one.key for one in formats.imported(text, "nobody").events]


def test_rankings_keep_note_order_origin_and_time() -> None:
    first = json.loads(formats.exported("rankings", EVENTS, ITEMS).split("\n")[0])
    assert first["prompt"] == PAIR.prompt and first["ranks"] == [1, 0] and first["origins"] == ["sft", "ppo"]
    assert (first["note"], first["shown"], first["time"], first["annotator"]) == ("why", [1, 0], 1.0, "ana")
    (back,) = list(formats.imported(json.dumps(first), "x").events)
    assert (back.note, back.shown, back.time, back.judge) == ("why", (1, 0), 1.0, "people")


def test_pairs_are_trls_rows_and_hold_no_ties() -> None:
    rows = [json.loads(line) for line in formats.exported("pairs", EVENTS, ITEMS).splitlines()]
    assert rows[0] == {"prompt": PAIR.prompt, "chosen": "right", "rejected": "left\n"}
    assert rows[1] == {"prompt": CHAT.prompt, "chosen": CHAT.responses[0], "rejected": CHAT.responses[1]} | {
        "tools": [{"name": "add"}]
    }
    assert [(row["chosen"], row["rejected"]) for row in rows[2:]] == [
        ("b", "c"), ("b", "d"), ("b", "a"), ("c", "a"), ("d", "a"),
    ]  # fmt: skip


def test_pairs_of_a_file_are_judged_items_whatever_side_stood_first() -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "b", "rejected": "a"}]
    back = formats.imported("\n".join(map(json.dumps, rows)), "me")
    assert len(back.items) == 1 and [one.ranks for one in back.events] == [(0, 1), (1, 0)]
    assert {one.annotator for one in back.events} == {"me"}


def test_the_majority_counts_pairs_and_a_circle_is_a_tie() -> None:
    three = make_item("t", ["a", "b", "c"], ["m"] * 3)
    known = {three.id: three, PAIR.id: PAIR}

    def ranks(*given: tuple[int, ...]) -> object:
        events = [event(three, str(place), one) for place, one in enumerate(given)]
        (row,) = formats.exported("rankings", events, known, "majority").splitlines()
        return json.loads(row)["ranks"]

    assert ranks((0, 1, 2), (0, 1, 2), (2, 1, 0)) == [0, 1, 2]
    assert ranks((0, 1, 2), (1, 2, 0), (2, 0, 1)) == [0, 0, 0]
    assert ranks((0, 0, 1), (1, 1, 0), (0, 1, 1)) == [0, 1, 1]
    one_each = [event(PAIR, "ana", (0, 1)), event(PAIR, "bo", (1, 0))]
    assert formats.exported("pairs", one_each, known, "majority") == ""
    assert len(formats.exported("pairs", one_each, known).splitlines()) == 2


@pytest.mark.parametrize("responses", [2, 5])
def test_the_configuration_of_label_studio_fits_its_tasks(responses: int) -> None:
    item = make_item("p", [str(n) for n in range(responses)], ["m"] * responses)
    events = [
        event(item, "ana", tuple(range(responses))),
        event(item, "bo", (0,) * responses),
        event(item, "cy", None, "bad"),
    ]
    (task,) = json.loads(formats.exported("label-studio", events, {item.id: item}))
    tree = ElementTree.fromstring(formats.label_studio_config(responses))
    names = {one.get("name"): one for one in tree.iter() if one.get("name")}
    shown = {one.get("value", "")[1:] for one in tree.iter() if one.get("value", "").startswith("$")}
    assert shown | {"item"} == task["data"].keys()
    for annotation in task["annotations"]:
        (result,) = annotation["result"]
        control = names[result["from_name"]]
        assert result["to_name"] in (control.get("toName") or "").split(",")
        assert result["type"] == control.tag.lower()
        if "choices" in result["value"]:
            assert result["value"]["choices"][0] in [one.get("value") for one in control.iter("Choice")]
        if "ranker" in result["value"]:
            buckets = {one.get("name") for one in control.iter("Bucket")}
            assert result["value"]["ranker"].keys() <= buckets


def test_tasks_and_records_that_other_tools_made_are_read() -> None:
    ranker = {
        "data": {"prompt": "p", "responses": [{"id": str(n), "body": text} for n, text in enumerate("abc", 1)]},
        "annotations": [
            {"completed_by": 7, "result": [
                {"type": "ranker", "from_name": "r", "to_name": "l", "value": {"ranker": {"r": ["3", "1", "2"]}}}]},
            {"completed_by": 8, "was_cancelled": True, "result": []},
        ],
    }  # fmt: skip
    pairwise = {
        "data": {"prompt": "p", "text1": "a", "text2": "b"},
        "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "right"}}], "lead_time": 2.5}],
    }
    back = formats.imported(json.dumps([ranker, pairwise]), "me")
    assert [(one.annotator, one.kind, one.ranks) for one in back.events] == [
        ("user 7", "label", (1, 2, 0)), ("user 8", "skip", None), ("me", "label", (1, 0)),
    ]  # fmt: skip
    record = {
        "fields": {"prompt": "p", "one": "a", "two": "b"},
        "responses": {
            "ranking": [{"user_id": "u", "value": [{"value": "two", "rank": 1}, {"value": "one", "rank": 3}]}]
        },
    }
    (told,) = formats.imported(json.dumps([record]), "me").events
    assert (told.annotator, told.ranks) == ("u", (1, 0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no records"),
        ("[]", "holds no records"),
        ("not json", "neither a JSON list nor JSON lines"),
        ('{"a": 1}', "no known format"),
        ("[3]", "no known format"),
        ('{"prompt": "p", "responses": ["a", "b"], "ranks": [0]}', "record 1: 1 ranks for 2 responses"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a"}', "2: rejected is missing"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a"}', "record 1: two of its responses are equal"),
        ('[{"data": {"prompt": "p", "a": "x", "b": "y"}, "annotations": [{"result": [{"type": "ranker", "value": '
         '{"ranker": {"1": ["1"]}}}]}]}]', "record 1: the ranking names 1 of 2 responses"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        formats.imported(text, "me")
