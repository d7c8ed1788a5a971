"""Questions handed out and answers taken in: blinding, overlap, gold questions, undo, reloads, races, two processes."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhfctl.labels.answers import category
from rlhfctl.labels.desk import LEASE_S, Desk, Question, Refused, Settings
from rlhfctl.labels.items import Item, make_item
from rlhfctl.labels.store import LabelStore, open_labels


def items(count: int, responses: int = 2, gold: int = 0) -> list[Item]:
    made = [
        make_item(f"q{n}", [f"a{n}.{place}" for place in range(responses)], [f"m{place}" for place in range(responses)])
        for n in range(count)
    ]
    known = [make_item(f"gold{n}", ["right", "wrong"], ["a", "b"], gold=[0, 1]) for n in range(gold)]
    return made + known


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    with open_labels(tmp_path / "labels.sqlite") as opened:
        yield opened


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def prefer(desk: Desk, question: Question, response: int) -> None:
    """Answer that the response at this place of the item is the best, as the screen would say it."""
    desk.answer(question.annotator, question.key, "label", [int(place != response) for place in question.order])


def test_each_item_is_asked_once_and_ranks_are_stored_in_the_order_of_the_item(store: LabelStore) -> None:
    desk = Desk(items(20), store)
    orders: Counter[tuple[int, ...]] = Counter()
    while (question := desk.next("ana")) is not None:
        orders[question.order] += 1
        assert question.shown == [question.item.responses[place] for place in question.order]
        prefer(desk, question, 0)
    assert len(desk.answers.by_item) == 20 and desk.open_questions() == 0
    assert {event.ranks for event in store.events()} == {(0, 1)}
    assert {event.origins for event in store.events()} == {("m0", "m1")}
    assert orders[0, 1] > 3 and orders[1, 0] > 3  # both orders are shown


def test_one_annotator_sees_one_order_and_another_may_see_the_other(store: LabelStore) -> None:
    desk = Desk(items(12), store, Settings(overlap=1.0))
    first = {}
    while (question := desk.next("ana")) is not None:
        first[question.item.id] = question.order
        assert desk.next("ana") == question  # a reload shows the same question in the same order
        prefer(desk, question, 0)
    second = {}
    while (question := desk.next("bo")) is not None:
        second[question.item.id] = question.order
        prefer(desk, question, 0)
    assert first.keys() == second.keys() and first != second


def test_a_share_of_the_items_is_judged_by_several_and_the_rest_by_one(store: LabelStore) -> None:
    desk = Desk(items(20), store, Settings(overlap=0.25, annotators=3))
    for name in ("a", "b", "c", "d"):
        while (question := desk.next(name)) is not None:
            prefer(desk, question, 0)
    counts = Counter(len(given) for given in desk.answers.by_item.values())
    assert counts == {1: 15, 3: 5} and desk.open_questions() == 0


def test_an_item_on_one_screen_is_not_given_to_another_until_it_was_left_alone(store: LabelStore) -> None:
    clock = Clock()
    desk = Desk(items(2), store, clock=clock)
    first, second = desk.next("ana"), desk.next("bo")
    assert first is not None and second is not None and first.item != second.item
    assert desk.next("cy") is None
    clock.now = LEASE_S + 1
    late = desk.next("cy")
    assert late is not None and late.item == first.item
    clock.now += 5
    prefer(desk, first, 0)  # ana comes back: nothing that somebody says is thrown away
    prefer(desk, late, 1)
    assert set(desk.answers.of(first.item.id)) == {"ana", "cy"}
    assert [event.seconds for event in store.events()] == [LEASE_S + 6, 5]


def test_an_item_that_one_annotator_skipped_goes_to_another(store: LabelStore) -> None:
    desk = Desk(items(1), store)
    question = desk.next("ana")
    assert question is not None
    desk.answer("ana", question.key, "skip")
    assert desk.next("ana") is None and desk.open_questions() == 1
    again = desk.next("bo")
    assert again is not None and again.item == question.item


def test_every_fourth_question_is_one_with_a_known_answer(store: LabelStore) -> None:
    desk = Desk(items(9, gold=5), store, Settings(gold=0.25))
    asked = []
    while (question := desk.next("ana")) is not None:
        asked.append(question.item.gold is not None)
        prefer(desk, question, 0)
    assert [place for place, gold in enumerate(asked) if gold] == [3, 7, 11] and len(asked) == 12
    assert desk.progress("ana").done == 12 and desk.progress("ana").left == 0


def test_undo_opens_the_question_again_and_goes_back_further(store: LabelStore) -> None:
    desk = Desk(items(4), store)
    asked = []
    for _ in range(3):
        question = desk.next("ana")
        assert question is not None
        asked.append(question)
        prefer(desk, question, 0)
    on_screen = desk.next("ana")
    assert on_screen is not None
    third = desk.undo("ana")
    assert third is not None and third.item == asked[2].item and third.key != asked[2].key
    second = desk.undo("ana")
    assert second is not None and second.item == asked[1].item
    assert desk.next("ana") == second and desk.progress("ana").done == 1
    prefer(desk, second, 1)
    assert desk.answers.of(second.item.id)["ana"].ranks == (1, 0)
    left = [desk.next("ana")]
    prefer(desk, left[0], 0)  # type: ignore[arg-type]
    left.append(desk.next("ana"))
    assert [one.item for one in left if one is not None] == [third.item, on_screen.item]
    assert [event.kind for event in store.events()] == ["label"] * 3 + ["undo"] * 2 + ["label"] * 2  # nothing is lost
    assert desk.undo("nobody") is None


def test_two_clicks_on_undo_take_back_one_answer(store: LabelStore) -> None:
    desk = Desk(items(3), store)
    for _ in range(2):
        question = desk.next("ana")
        assert question is not None
        prefer(desk, question, 0)
    last = desk.answers.last_of("ana")
    assert last is not None
    for _ in range(2):
        again = desk.undo("ana", last.key)
        assert again is not None and again.item.id == last.item
    assert [event.kind for event in store.events()] == ["label", "label", "undo"]


def test_two_clicks_on_one_question_count_once_and_the_first_stays(store: LabelStore) -> None:
    desk = Desk(items(3), store)
    question = desk.next("ana")
    assert question is not None
    said = [threading.Thread(target=prefer, args=(desk, question, place)) for place in (0, 1) * 8]
    for one in said:
        one.start()
    for one in said:
        one.join()
    assert len(store.events()) == 1
    other = desk.next("ana")
    assert other is not None and other.item != question.item


def test_a_question_stays_valid_when_the_program_was_started_again(store: LabelStore) -> None:
    question = Desk(items(3), store).next("ana")
    assert question is not None
    started_again = Desk(items(3), store)
    prefer(started_again, question, 0)
    prefer(started_again, question, 1)  # the browser sent it twice
    assert [event.ranks for event in store.events()] == [(0, 1)] and store.events()[0].seconds is None


def test_answers_that_cannot_be_taken_are_refused(store: LabelStore) -> None:
    desk = Desk(items(2), store)
    question = desk.next("ana")
    assert question is not None
    for kind, ranks in (("label", None), ("skip", [0, 1]), ("label", [0]), ("label", [1, 2]), ("undo", None)):
        with pytest.raises(Refused):
            desk.answer("ana", question.key, kind, ranks)  # type: ignore[arg-type]
    for key in ("", "nothing", question.key + "x", f"{question.item.id}-0"):
        with pytest.raises(Refused, match="answered or taken back"):
            desk.answer("ana", key, "skip")
    with pytest.raises(Refused):
        desk.answer("bo", question.key, "label", [0, 1])  # the key is ana's
    assert store.events() == []


def test_two_processes_see_each_others_answers(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with open_labels(path) as one, open_labels(path) as two:
        here, there = Desk(items(2), one), Desk(items(2), two)
        question = here.next("ana")
        assert question is not None
        prefer(here, question, 0)
        other = there.next("bo")
        assert other is not None and other.item != question.item
        prefer(there, other, 0)
        assert here.next("cy") is None and here.open_questions() == 0


def test_progress_tells_time_left_and_agreement(store: LabelStore) -> None:
    clock = Clock()
    desk = Desk(items(4), store, Settings(overlap=1.0), clock=clock)
    assert desk.progress("ana").seconds_left is None
    for name, best in (("ana", (0, 0, 1, 0)), ("bo", (0, 1))):
        for place in best:
            question = desk.next(name)
            assert question is not None
            clock.now += 10
            prefer(desk, question, place)
    progress = desk.progress("bo")
    assert (progress.done, progress.left, progress.seconds_left) == (2, 2, 20)
    assert (progress.same, progress.compared) == (1, 2)


def test_questions_that_only_others_hold_are_counted(store: LabelStore) -> None:
    clock = Clock()
    desk = Desk(items(3), store, clock=clock)
    on_screens = [desk.next(name) for name in ("bo", "cy")]
    mine = desk.next("ana")
    assert mine is not None and desk.held_by_others("ana") == 2
    prefer(desk, mine, 0)
    assert desk.next("ana") is None and desk.held_by_others("ana") == 2 == desk.open_questions()
    assert on_screens[0] is not None
    prefer(desk, on_screens[0], 0)
    assert desk.held_by_others("ana") == 1
    clock.now += LEASE_S  # cy went away
    assert desk.held_by_others("ana") == 0 and desk.next("ana") is not None


def test_progress_is_what_a_count_from_scratch_says(store: LabelStore) -> None:
    """A long random walk of four annotators; what is kept from click to click must not drift."""
    rng, names = random.Random(0), ["a", "b", "c", "d"]
    desk = Desk(items(40, gold=3), store, Settings(overlap=0.5, annotators=3, gold=0.2))
    for _ in range(300):
        name = rng.choice(names)
        question = desk.next(name)
        deed = rng.choice(["label", "label", "label", "bad", "skip", "undo"])
        if deed == "undo":
            desk.undo(name)
        elif question is not None and deed == "label":
            prefer(desk, question, rng.randrange(2))
        elif question is not None:
            desk.answer(name, question.key, "bad" if deed == "bad" else "skip")
        fresh = Desk(desk.items, store, desk.settings)  # has read all events anew
        fresh._open = dict(desk._open)
        for one in names:
            kinds = [given[one].kind for given in fresh.answers.by_item.values() if one in given]
            found = desk.progress(one)
            assert (found.done, found.skipped) == (len(kinds) - kinds.count("skip"), kinds.count("skip"))
            assert found.left == fresh.progress(one).left == sum(is_waiting(fresh, one, item) for item in desk._queue)
            others = [
                category(given[one]) == category(event)
                for given in fresh.answers.by_item.values()
                if one in given and given[one].kind != "skip"
                for who, event in given.items()
                if who != one and event.kind != "skip"
            ]
            assert (found.same, found.compared) == (sum(others), len(others))
    assert {event.kind for event in store.events()} == {"label", "bad", "skip", "undo"}


def is_waiting(desk: Desk, annotator: str, item: str) -> bool:
    """Whether an annotator may get an item, worked out from all answers."""
    given = desk.answers.of(item)
    held = [who for who, (on_screen, _) in desk._open.items() if who != annotator and on_screen == item]
    room = desk._wanted(item) - len(desk.answers.judged(item)) - len([who for who in held if who not in given])
    return annotator not in given and room > 0


def test_items_on_which_the_ensemble_disagrees_come_first(store: LabelStore) -> None:
    some = [make_item(f"q{n}", ["a", "b"], ["m", "m"], disagreement=level) for n, level in enumerate((0.1, 0.9, 0.5))]
    desk = Desk(some, store, Settings(order="active"))
    asked = []
    while (question := desk.next("ana")) is not None:
        asked.append(question.item.prompt)
        prefer(desk, question, 0)
    assert asked == ["q1", "q2", "q0"]
