"""The last word of each annotator: categories, agreement, time, notes."""

from __future__ import annotations

from rlhfctl.labels.answers import Answers, agreement, category, pairs_of_annotators
from rlhfctl.labels.items import make_item
from rlhfctl.labels.rankings import median_seconds
from rlhfctl.labels.store import Event

GOLD = make_item("g", ["a", "b", "c"], ["m"] * 3, gold=[0, 1, 1])
PAIR = make_item("p", ["a", "b"], ["m", "n"])


def event(item: str, annotator: str, ranks: tuple[int, ...] | None, number: int = 1, **more: object) -> Event:
    return Event(f"{number}", "label", item, annotator, ranks=ranks, number=number, **more)  # type: ignore[arg-type]


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
    assert median_seconds(answers.labels([PAIR.id, GOLD.id])) == 6.0
    assert answers.seconds_of("ana") == 6.0 and answers.seconds_of("cy") is None


def test_a_note_stands_in_the_label_whenever_it_was_written() -> None:
    answers = Answers()
    answers.add([Event("n", "note", PAIR.id, "ana", note="early", number=1), event(PAIR.id, "ana", (0, 1), 2)])
    assert [one.note for one in answers.labels([PAIR.id])] == ["early"]
    answers.add([Event("m", "note", PAIR.id, "ana", note="late", number=3)])
    assert [one.note for one in answers.labels([PAIR.id])] == ["late"]
