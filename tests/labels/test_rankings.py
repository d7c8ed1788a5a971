"""What labels amount to: accuracy on gold questions, position bias."""

from __future__ import annotations

from rlhfctl.labels import rankings
from rlhfctl.labels.items import make_item
from rlhfctl.labels.store import Event

GOLD = make_item("g", ["a", "b", "c"], ["m"] * 3, gold=[0, 1, 1])
PAIR = make_item("p", ["a", "b"], ["m", "n"])


def event(item: str, annotator: str, ranks: tuple[int, ...] | None, number: int = 1, **more: object) -> Event:
    return Event(f"{number}", "label", item, annotator, ranks=ranks, number=number, **more)  # type: ignore[arg-type]


def test_an_answer_is_right_if_it_orders_each_known_pair() -> None:
    given = [(0, 1, 2), (0, 2, 1), (0, 1, 1), (0, 0, 1), (1, 0, 2)]
    events = [event(GOLD.id, str(place), ranks) for place, ranks in enumerate(given)]
    assert rankings.right_on_gold([*events, event(PAIR.id, "x", (0, 1))], {GOLD.id: GOLD, PAIR.id: PAIR}) == (3, 5)


def test_the_share_of_the_first_place_counts_pairs_without_ties() -> None:
    events = [
        event(PAIR.id, "a", (0, 1), shown=(0, 1)),
        event(PAIR.id, "b", (0, 1), shown=(1, 0)),
        event(PAIR.id, "c", (1, 0), shown=(1, 0)),
        event(PAIR.id, "d", (0, 0), shown=(1, 0)),
        event(PAIR.id, "e", (1, 0)),
        event(GOLD.id, "f", (0, 1, 2), shown=(0, 1, 2)),
    ]
    assert rankings.first_chosen(events) == (2, 3)
