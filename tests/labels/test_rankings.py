"""What labels amount to: accuracy on gold questions, position bias, time, agreement between two annotators."""

from __future__ import annotations

from rlhfctl.labels import rankings
from rlhfctl.labels.answers import Answers, agreement, category, pairs_of_annotators
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


def test_categories_and_agreement() -> None:
    assert category(event(PAIR.id, "a", (0, 1))) == "0" and category(event(GOLD.id, "a", (1, 0, 0))) == "1 2"
    assert category(event(PAIR.id, "a", (0, 0))) == "tie"
    assert category(Event("k", "bad", PAIR.id, "a")) == "bad"
    answers = Answers()
    answers.add(
        [
            event(PAIR.id, "ana", (0, 1), 1, seconds=5.0),
            event(PAIR.id, "bo", (0, 1), 2),
            event(PAIR.id, "cy", (1, 0), 3),
            event(GOLD.id, "ana", (0, 1, 1), 4, seconds=7.0),
            Event("s", "skip", GOLD.id, "bo", number=5),
        ]
    )
    assert agreement(answers, "ana") == (1, 2) and agreement(answers, "cy") == (0, 2)
    assert pairs_of_annotators(answers, [PAIR.id, GOLD.id]) == [("ana", "bo"), ("ana", "cy"), ("bo", "cy")]
    assert rankings.median_seconds(answers.labels([PAIR.id, GOLD.id])) == 6.0
    assert answers.seconds_of("ana") == 6.0 and answers.seconds_of("cy") is None


def test_a_note_stands_in_the_label_whenever_it_was_written() -> None:
    answers = Answers()
    answers.add([Event("n", "note", PAIR.id, "ana", note="early", number=1), event(PAIR.id, "ana", (0, 1), 2)])
    assert [one.note for one in answers.labels([PAIR.id])] == ["early"]
    answers.add([Event("m", "note", PAIR.id, "ana", note="late", number=3)])
    assert [one.note for one in answers.labels([PAIR.id])] == ["late"]
