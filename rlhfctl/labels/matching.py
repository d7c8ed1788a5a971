"""Match labels from a file with the items of a labelling set: equal texts are one question, in whatever order. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rlhfctl import fs
from rlhfctl.data.types import Prompt
from rlhfctl.labels.formats import Imported
from rlhfctl.labels.items import Item
from rlhfctl.labels.store import Event


def matched(found: Imported, items: Iterable[Item]) -> tuple[list[Event], list[Item]]:
    """Return the events about `items`, and the items of the file that are none of them.

    Ranks are brought into the order of the item, and origins are those of the item.
    """
    known = {_key(item): item for item in items}
    theirs = {item.id: item for item in found.items}
    events = []
    for event in found.events:
        own, other = known.get(_key(theirs[event.item])), theirs[event.item]
        if own is not None:
            events.append(_moved(event, other, own))
    return events, [item for item in found.items if _key(item) not in known]


def _key(item: Item) -> tuple[str, frozenset[str]]:
    return _text(item.prompt), frozenset(map(_text, item.responses))


def _text(content: Prompt) -> str:
    return json.dumps(content, sort_keys=True)


def _moved(event: Event, other: Item, own: Item) -> Event:
    """Return an event about `other` as one about `own`, which has the same texts."""
    texts = [_text(response) for response in other.responses]
    places = [texts.index(_text(response)) for response in own.responses]
    ranks = None if event.ranks is None else tuple(event.ranks[place] for place in places)
    shown = None if event.shown is None else _renamed(event.shown, places)
    key = fs.hash_json([event.key, own.id])[:32]
    return replace(event, key=key, item=own.id, ranks=ranks, shown=shown, origins=own.origins)


def _renamed(shown: Sequence[int], places: Sequence[int]) -> tuple[int, ...]:
    return tuple(places.index(place) for place in shown)
