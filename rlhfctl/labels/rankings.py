"""Turn labels into training data: rankings of whole groups, pairs of chosen and rejected, a majority of annotators.

    ranking   {"prompt", "responses", "ranks", "item", "annotator", ...}: one row per label; rlhfctl reads it as it is
    pair      {"prompt", "chosen", "rejected"}: TRL's preference format; one row per pair that is not tied

Pure. "All bad" says nothing about which response is better, so it makes a ranking of equals and no pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, Literal

from rlhfctl.labels.answers import LONGEST_THOUGHT_S
from rlhfctl.labels.items import Item
from rlhfctl.labels.store import Event

Combine = Literal["all", "majority"]
MAJORITY = "majority"  # the annotator of combined rows

Row = dict[str, Any]


def ranks_of(event: Event, item: Item) -> tuple[int, ...]:
    """Return the ranks that an answer gives, per response of the item; equal ones for "all bad"."""
    return (0,) * len(item.responses) if event.kind == "bad" or event.ranks is None else event.ranks


def rankings(events: Iterable[Event], items: Mapping[str, Item], combine: Combine = "all") -> list[Row]:
    """Return one row per label, or with `majority` one row per item.

    Each pair of responses goes to the one that more annotators prefer, and a majority's ranks count the responses that
    are preferred to each: with more than two responses a circle (a over b over c over a) becomes a tie.
    """
    by_item: dict[str, list[Event]] = {}
    for event in events:
        by_item.setdefault(event.item, []).append(event)
    rows = []
    for name, given in by_item.items():
        item = items[name]
        if combine == "all":
            rows += [_row(item, ranks_of(event, item), event.annotator, event) for event in given]
        else:
            rows.append(_row(item, _majority([ranks_of(event, item) for event in given]), MAJORITY))
    return rows


def _row(item: Item, ranks: Sequence[int], annotator: str, event: Event | None = None) -> Row:
    row: Row = {"prompt": item.prompt, "responses": list(item.responses), "ranks": list(ranks)}
    row |= {} if item.tools is None else {"tools": item.tools}
    row |= {"item": item.id, "annotator": annotator, "origins": list(item.origins)}
    if event is None:
        return row
    more = {"shown": event.shown and list(event.shown), "seconds": event.seconds, "note": event.note}
    row |= {key: value for key, value in more.items() if value is not None}
    return row | ({"bad": True} if event.kind == "bad" else {}) | ({"judge": event.judge, "time": event.time})


def _majority(given: Sequence[Sequence[int]]) -> tuple[int, ...]:
    count = len(given[0])
    beaten = [0] * count
    for one, other in combinations(range(count), 2):
        lead = sum((ranks[other] > ranks[one]) - (ranks[one] > ranks[other]) for ranks in given)
        if lead:
            beaten[other if lead > 0 else one] += 1
    levels = sorted(set(beaten))
    return tuple(levels.index(level) for level in beaten)


def pairs(rows: Iterable[Row]) -> list[Row]:
    """Return the pairs of rankings in TRL's preference format, those of one ranking best first."""
    found = []
    for row in rows:
        ranks = row["ranks"]
        tools = {"tools": row["tools"]} if "tools" in row else {}
        for better, worse in ordered_pairs(ranks):
            chosen, rejected = row["responses"][better], row["responses"][worse]
            found.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected} | tools)
    return found


def ordered_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """List the pairs (better, worse) of responses that are not tied, those of the best first."""
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    return [(one, other) for one, other in combinations(order, 2) if ranks[one] < ranks[other]]


def right_on_gold(events: Iterable[Event], items: Mapping[str, Item]) -> tuple[int, int]:
    """Count the answers to questions with a known answer: (right, all). Right: every pair ordered as it should be."""
    judged = [(ranks_of(event, items[event.item]), items[event.item].gold) for event in events]
    known = [(ranks, gold) for ranks, gold in judged if gold is not None]
    right = sum(ordered_pairs(gold) == [two for two in ordered_pairs(gold) if two in ordered_pairs(ranks)]
                for ranks, gold in known)  # fmt: skip
    return right, len(known)


def first_chosen(events: Iterable[Event]) -> tuple[int, int]:
    """Count how often the response that stood first on the screen was chosen: (first, all), pairs without ties only."""
    first = total = 0
    for event in events:
        if event.ranks is None or event.shown is None or len(event.ranks) != 2 or len(set(event.ranks)) == 1:
            continue
        total += 1
        first += event.ranks[event.shown[0]] == 0
    return first, total


def between_origins(events: Iterable[Event], items: Mapping[str, Item]) -> dict[tuple[str, str], list[float]]:
    """Return who is preferred to whom: for each pair of models, one number per answer that compares them, 0 to 1.

    It is the mean over the pairs of their responses: 1 if that of the first model is better, 0 if it is worse, 0.5 for
    a tie, also where all are bad. The models of a pair are in the order of their names.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        item = items[event.item]
        ranks, names = ranks_of(event, item), item.origins
        own: dict[tuple[str, str], list[float]] = {}
        for first, second in permutations(range(len(ranks)), 2):
            if names[first] < names[second]:
                value = 0.5 + (ranks[first] < ranks[second]) / 2 - (ranks[first] > ranks[second]) / 2
                own.setdefault((names[first], names[second]), []).append(value)
        for pair, values in own.items():
            found.setdefault(pair, []).append(statistics.fmean(values))
    return found


def median_seconds(events: Iterable[Event]) -> float | None:
    """Return the median time per answer, in seconds; None where no answer has a time."""
    spent = [one for event in events if (one := event.seconds) is not None and one <= LONGEST_THOUGHT_S]
    return statistics.median(spent) if spent else None
