"""The screen for annotators in a terminal: keys, rankings, sizes, hostile texts, faults of the disk, the last page."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from rlhfctl.errors import EngineError, RlhfctlError
from rlhfctl.labels import store as store_module
from rlhfctl.labels.desk import Desk, Settings
from rlhfctl.labels.items import Item, make_item
from rlhfctl.labels.screen.app import LabelApp
from rlhfctl.labels.screen.ranking import KEYS, Ranking
from rlhfctl.labels.screen.start import label_in_terminal
from rlhfctl.labels.screen.widgets import Pane
from rlhfctl.labels.screen.words import key_range
from rlhfctl.labels.store import LabelStore, open_labels

Scene = Callable[[LabelApp, Pilot[None]], Awaitable[None]]
SIZES = [(40, 10), (80, 24), (100, 30), (200, 60)]
LONG = "\n".join(f"line {number}" for number in range(100))


def items(count: int, responses: int = 2) -> list[Item]:
    names = [f"model-{place}" for place in range(responses)]
    return [make_item(f"q{n}", [f"text {n}.{place}" for place in range(responses)], names) for n in range(count)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelStore]:
    monkeypatch.setattr(store_module, "_BUSY_S", 0.05)
    with open_labels(tmp_path / "labels.sqlite") as opened:
        yield opened


def play(app: LabelApp, scene: Scene, size: tuple[int, int] = (80, 24)) -> None:
    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await settle(app, pilot)
            await pilot.pause()
            await scene(app, pilot)

    asyncio.run(run())


async def settle(app: LabelApp, pilot: Pilot[None]) -> None:
    """Wait until the store has answered and the screen is drawn."""
    if app.workers:
        await app.workers.wait_for_complete()
        await pilot.pause()


async def press(app: LabelApp, pilot: Pilot[None], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await settle(app, pilot)


def shown(app: LabelApp) -> list[str]:
    """The lines of the terminal."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


def text_of(app: LabelApp, name: str) -> str:
    return str(app.screen_stack[0].query_one(f"#{name}", Static).render())


def frame(app: LabelApp, place: int) -> str:
    return str(app.query_one(f"#response-{place}", Pane).border_title)


def ranks_on_screen(event: store_module.Event) -> list[int]:
    assert event.ranks is not None and event.shown is not None
    return [event.ranks[place] for place in event.shown]


# ------------------------------------------------------------ two responses


@pytest.mark.parametrize(
    ("key", "kind", "ranks"),
    [
        ("1", "label", [0, 1]),
        ("left", "label", [0, 1]),
        ("2", "label", [1, 0]),
        ("right", "label", [1, 0]),
        ("t", "label", [0, 0]),
        ("T", "label", [0, 0]),  # with caps lock
        ("b", "bad", None),
        ("s", "skip", None),
    ],
)
def test_a_key_is_stored_as_the_answer_that_it_stands_for(
    store: LabelStore, key: str, kind: str, ranks: list[int] | None
) -> None:
    app = LabelApp(Desk(items(3), store), "ana", pause_s=0)

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        before = app.question
        await press(app, pilot, key)
        assert "saved" in text_of(app, "status")
        assert app.question is not None and app.question != before
        assert "1 skipped" in text_of(app, "progress") if kind == "skip" else "1 done" in text_of(app, "progress")

    play(app, scene)
    (event,) = store.events()
    assert (event.kind, event.annotator, event.ranks and ranks_on_screen(event)) == (kind, "ana", ranks)
    assert event.seconds is not None and event.origins == ("model-0", "model-1")
    assert app.labels_given == (kind != "skip")


def test_the_responses_stand_in_the_order_that_is_stored_as_shown(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        for _ in range(8):
            assert app.question is not None
            texts = [str(pane.query_one(Static).render()) for pane in app.query("#question .pair > Pane")]
            assert texts == app.question.shown
            await press(app, pilot, "1")

    play(LabelApp(Desk(items(9), store), "ana", pause_s=0), scene)
    assert {event.shown for event in store.events()} == {(0, 1), (1, 0)}  # both orders came
    assert all(ranks_on_screen(event) == [0, 1] for event in store.events())


def test_keys_without_a_meaning_for_two_responses_do_nothing(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "3", "a", "9", "enter", "backspace", "r", "x", "space")
        assert store.events() == [] and app.question is not None

    play(LabelApp(Desk(items(3), store), "ana", pause_s=0), scene)


def test_undo_brings_the_question_back_and_the_new_answer_counts(store: LabelStore) -> None:
    app = LabelApp(Desk(items(3), store), "ana", pause_s=0)

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "u")
        assert "no answer of yours" in text_of(app, "status")
        first = app.question
        await press(app, pilot, "1", "u")
        assert first is not None and app.question is not None and app.question.item == first.item
        assert app.labels_given == 0 and "0 done" in text_of(app, "progress")
        await press(app, pilot, "2")

    play(app, scene)
    assert [event.kind for event in store.events()] == ["label", "undo", "label"]
    assert ranks_on_screen(store.events()[-1]) == [1, 0] and app.labels_given == 1


def test_a_note_is_stored_shown_and_can_be_changed_or_left(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "n", "1", "b", "q", "escape")  # letters go into the note, not to the question
        assert store.events() == []
        await press(app, pilot, "n", *"so", "enter")
        assert text_of(app, "note") == "note: so" and "saved" in text_of(app, "status")
        await press(app, pilot, "n", "enter")  # unchanged
        await press(app, pilot, "n", "1", "enter")
        assert text_of(app, "note") == "note: so1"
        await press(app, pilot, "1")
        assert not app.query_one("#note").display  # it belongs to that question

    play(LabelApp(Desk(items(3), store), "ana", pause_s=0), scene)
    assert [(event.kind, event.note) for event in store.events()] == [("note", "so"), ("note", "so1"), ("label", None)]


def test_a_key_that_is_held_down_answers_one_question(store: LabelStore) -> None:
    clock = [0.0]

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        clock[0] += 0.3
        for _ in range(20):  # the key repeats 20 times a second
            await press(app, pilot, "1")
            clock[0] += 0.05
        assert len(store.events()) == 1 and "just appeared" in text_of(app, "status")
        clock[0] += 0.3
        await press(app, pilot, "1")
        assert len(store.events()) == 2

    play(LabelApp(Desk(items(40), store, clock=lambda: clock[0]), "ana"), scene)


def test_an_answer_that_was_given_elsewhere_stays_and_is_told(store: LabelStore) -> None:
    app = LabelApp(Desk(items(3), store), "ana", pause_s=0)

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        assert app.question is not None
        elsewhere = Desk(items(3), store)  # the same annotator in another window
        elsewhere.answer("ana", app.question.key, "label", [1, 0])
        await press(app, pilot, "1")
        assert "had your answer already" in text_of(app, "status")
        same = app.question
        elsewhere.answer("ana", same.key, "label", [1, 0])
        await press(app, pilot, "2")
        assert text_of(app, "status") == "saved: 2 is better"
        elsewhere.answer("ana", app.question.key, "label", [1, 0])
        assert elsewhere.undo("ana") is not None
        await press(app, pilot, "1")
        assert "not taken: this question was answered or taken back already" in text_of(app, "status")
        assert app.question is not None

    play(app, scene)
    assert [event.kind for event in store.events()] == ["label", "label", "label", "undo"]
    assert [ranks_on_screen(event) for event in store.events()[:2]] == [[1, 0], [1, 0]]


# ------------------------------------------------------------ several responses


def test_four_responses_are_ranked_with_a_tie(store: LabelStore) -> None:
    app = LabelApp(Desk(items(2, 4), store), "ana", pause_s=0)

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "left", "right", "equals_sign", "5", "enter")
        assert "not sent" in text_of(app, "status") and store.events() == []
        await press(app, pilot, "4", "3", "backspace", "2", "equals_sign", "1")
        assert [frame(app, place) for place in range(4)] == ["1 · rank 2", "2 · rank 2", "3", "4 · rank 1 (best)"]
        assert text_of(app, "ranking").startswith("4 > 2 = 1   left: 3")
        await press(app, pilot, "2")
        assert "has its rank already" in text_of(app, "status")
        await press(app, pilot, "enter")  # the one that is left comes last
        assert text_of(app, "status") == "saved: 4 > 2 = 1 > 3"
        assert [frame(app, place) for place in range(4)] == ["1", "2", "3", "4"]

    play(app, scene)
    (event,) = store.events()
    assert ranks_on_screen(event) == [1, 1, 2, 0]


def test_a_ranking_half_done_is_there_again_after_an_undo(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "1", "2", "3", "enter", "2", "1", "u", "b")
        assert text_of(app, "ranking").startswith("2 > 1") and frame(app, 1) == "2 · rank 1 (best)"

    play(LabelApp(Desk(items(3, 4), store), "ana", pause_s=0), scene)


@pytest.mark.parametrize("size", [SIZES[0], SIZES[-1]])
def test_sixteen_responses_have_a_key_each(store: LabelStore, size: tuple[int, int]) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await pilot.press(*reversed(KEYS))
        assert frame(app, 15) == "h · rank 1 (best)" and frame(app, 0) == "1 · rank 16"
        await pilot.press(*["tab"] * 15)
        assert app.focused is app.query_one("#response-15") and any("text 0." in line for line in shown(app))
        await press(app, pilot, "enter")
        assert ranks_on_screen(store.events()[0]) == list(range(15, -1, -1))

    play(LabelApp(Desk(items(2, 16), store), "ana", pause_s=0), scene, size)


def test_a_ranking_grows_and_shrinks_by_one_key() -> None:
    empty = Ranking(4)
    assert empty.toggle_tie() == empty.back() == empty.choose(4) == empty  # nothing to tie, take back or choose
    tied = empty.choose(1).toggle_tie().choose(0)
    assert (str(tied), tied.left, tied.finished()) == ("2 = 1", [2, 3], None)
    assert tied.choose(1) == tied and tied.back() == empty.choose(1)
    assert str(tied.toggle_tie()) == "2 = 1 =" and tied.toggle_tie().back() == tied
    last = tied.choose(3).toggle_tie().finished()
    assert last is not None and last.ranks() == [0, 0, 1, 1] and last.finished() == last
    with pytest.raises(ValueError, match="has a rank"):
        tied.ranks()
    assert len(set(KEYS)) == 16 and not set(KEYS) & set("tbsunqr")  # no key means two things
    assert [key_range(count) for count in (3, 9, 10, 11, 16)] == ["1-3", "1-9", "1-9 a", "1-9 a c", "1-9 a c-h"]


# ------------------------------------------------------------ sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("responses", [2, 4])
def test_nothing_is_cut_off_in_any_size(store: LabelStore, size: tuple[int, int], responses: int) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        lines = shown(app)
        assert len(lines) == size[1] and all(len(line) <= size[0] for line in lines)
        told = "\n".join(lines)
        assert "q0" in told and "text 0." in told and "ana" in told and "0 done" in told
        if size[1] > 10:
            for key in (
                "b both bad" if responses == 2 else "b all bad",
                "? help",
                "q quit",
                "s skip",
                "tab ↑ ↓ scroll",
            ):
                assert key in told
            for place in range(responses if size[1] >= 24 and responses == 2 else 1):
                assert frame(app, place) in told
        first, second = (app.query_one(f"#response-{place}").region for place in range(2))
        assert (first.y == second.y) == (size[0] >= 100)  # side by side where it is wide enough
        await press(app, pilot, "question_mark")
        assert any("undo" in line for line in shown(app)) or size[1] == 10
        await press(app, pilot, "escape", "s")
        assert len(store.events()) == 1

    play(LabelApp(Desk(items(2, responses), store), "ana", pause_s=0), scene, size)


def test_a_new_size_keeps_the_question_and_what_is_ranked(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        question = app.question
        await press(app, pilot, "3", "1")
        for width, height in ((200, 60), (30, 6), (99, 24), (100, 24), (1, 1), (80, 24)):
            await pilot.resize_terminal(width, height)
            await settle(app, pilot)
            first, second = (app.query_one(f"#response-{place}").region for place in range(2))
            assert (first.y == second.y) == (width >= 100) or height < 10
        assert app.question == question and frame(app, 2) == "3 · rank 1 (best)"
        await press(app, pilot, "2", "enter")
        assert ranks_on_screen(store.events()[0]) == [1, 2, 0]

    play(LabelApp(Desk(items(2, 3), store), "ana", pause_s=0), scene)


def test_the_keys_name_the_places_as_they_stand_after_a_new_size(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        assert "← 1 upper" in text_of(app, "keys") and "→ 2 lower" in text_of(app, "keys")
        await pilot.resize_terminal(100, 24)
        assert "← 1 left" in text_of(app, "keys") and "→ 2 right" in text_of(app, "keys")

    play(LabelApp(Desk(items(1), store), "ana"), scene)


def test_a_list_scrolls_on_where_the_text_in_the_frame_ends(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        first, around = app.query_one("#response-0", Pane), app.query_one(".list")
        assert around.max_scroll_y > 0
        await press(app, pilot, "end")
        assert first.scroll_offset.y == first.max_scroll_y > 0 and around.scroll_offset.y == 0
        await press(app, pilot, "down", "down")
        assert around.scroll_offset.y == 2
        await press(app, pilot, "home", "home")
        assert first.scroll_offset.y == around.scroll_offset.y == 0

    play(LabelApp(Desk([make_item("q", [f"{LONG}{n}" for n in range(4)], ["m"] * 4)], store), "ana"), scene)


def test_each_text_scrolls_by_keys_and_tells_what_is_out_of_sight(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        prompt, first, second = (app.query_one(f"#{name}", Pane) for name in ("prompt", "response-0", "response-1"))
        for pane, keys in ((first, []), (second, ["tab"]), (prompt, ["shift+tab", "shift+tab"])):
            await press(app, pilot, *keys)
            assert app.focused is pane
            rows = pane.scrollable_content_region.height
            assert str(pane.border_subtitle) == f"↓ {100 - rows} more"
            await press(app, pilot, "down", "down", "up", "pagedown")
            assert pane.scroll_offset.y == rows  # one line, then a page that keeps one line in sight
            await press(app, pilot, "end", "down")
            assert str(pane.border_subtitle) == f"↑ {100 - rows} more" and "line 99" in "\n".join(shown(app))
            await press(app, pilot, "home")
        assert store.events() == []

    play(LabelApp(Desk([make_item(LONG, [LONG, LONG + " "], ["m", "n"])], store), "ana", pause_s=0), scene)


def test_a_conversation_shows_its_roles_and_begins_with_its_last_message(store: LabelStore) -> None:
    prompt = [{"role": "system", "content": LONG}, {"role": "user", "content": "and now?"}]
    item = make_item(prompt, [[{"role": "assistant", "content": text}] for text in "xy"], ["m", "n"], tools=[
        {"type": "function", "function": {"name": "get_weather"}},
    ])  # fmt: skip

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        told = "\n".join(shown(app))
        assert "user" in told and "and now?" in told and "system" not in told and told.count("assistant") == 2
        await press(app, pilot, "shift+tab", "home")
        told = "\n".join(shown(app))
        assert "tools: get_weather" in told and "system" in told

    play(LabelApp(Desk([item], store), "ana"), scene)


# ------------------------------------------------------------ texts of models


HOSTILE = [
    "[red]x[/red] [@click=app.quit]y[/] [/]",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \x08\r over",
    "\u202eabc\u2066",
    "x" * 20000,
    "你好世界 👨\u200d👩\u200d👧 é\u0301 " * 40,
    "مرحبا بالعالم שלום",
    "a\tb\n\n\nc\u2028d",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_what_a_model_wrote_is_shown_and_never_obeyed(store: LabelStore, size: tuple[int, int], text: str) -> None:
    conversation = [{"role": text[:60], "content": text}]

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        lines = shown(app)
        assert all(char.isprintable() or char == "\u200d" for line in lines for char in line)
        assert not any(mark in line for line in lines for mark in "\u202e\u2066\x1b\x9b")
        told = "\n".join(lines)
        if "[red]" in text:
            assert told.count("[red]x[/red] [@click=app.quit]y[/] [/]") >= 4  # two roles, two texts
        if "\x1b" in text:
            assert told.count("\\x1b[31mred\\x1b[0m") >= 4
        styles = [segment.style for strip in app.screen._compositor.render_strips() for segment in strip]
        assert not any(style is not None and style.meta.get("@click") for style in styles)
        await press(app, pilot, "1")
        assert len(store.events()) == 1

    made = make_item(conversation, [text, conversation], ["m", "n"])
    play(LabelApp(Desk([made], store), "[b]ana[/b]\x1b[0m", pause_s=0), scene, size)


def test_a_text_without_anything_to_see_is_named(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        told = "\n".join(shown(app))
        assert "(empty)" in told and r"(only white space: '\n \t')" in told

    play(LabelApp(Desk([make_item("q", ["", "\n \t"], ["m", "n"])], store), "ana"), scene)


def test_the_annotator_is_never_shown_who_wrote_what(store: LabelStore) -> None:
    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        for keys in ((), ("question_mark",), ("escape", "1"), ("1",), ("1",)):
            await press(app, pilot, *keys)
            assert "model-" not in "\n".join(shown(app)) + str(app.tree)

    play(LabelApp(Desk(items(3), store), "ana", pause_s=0), scene)


def test_a_terminal_without_colours_is_enough(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        assert app.no_color
        assert "┏━ 1 ←" in "\n".join(shown(app)) and "╭─ 2 →" in "\n".join(shown(app))  # the frame tells the focus

    play(LabelApp(Desk(items(2), store), "ana"), scene)


# ------------------------------------------------------------ faults


def test_a_locked_file_is_told_and_the_question_stays(store: LabelStore) -> None:
    app = LabelApp(Desk(items(2, 3), store), "ana", pause_s=0)

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        question = app.question
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await press(app, pilot, "3", "1", "2", "enter")
        status = text_of(app, "status")
        assert "not saved" in status and "another program has held the file" in status and "Nothing is lost" in status
        assert app.question == question and text_of(app, "ranking").startswith("3 > 1 > 2")
        await press(app, pilot, "n", "h", "i", "enter")
        assert "not saved" in text_of(app, "status") and not app.query_one("#note").display
        await press(app, pilot, "u")
        assert app.question == question and app.labels_given == 0
        other.execute("ROLLBACK")
        other.close()
        await press(app, pilot, "n")
        assert app.screen.query_one(Input).value == "hi"  # what was typed is still there
        await press(app, pilot, "enter", "enter")
        assert text_of(app, "status").startswith("saved: 3 > 1 > 2")

    play(app, scene)
    assert [event.kind for event in store.events()] == ["note", "label"] and app.labels_given == 1


def test_a_full_disk_is_told_and_the_same_key_saves_once_there_is_room(store: LabelStore) -> None:
    app = LabelApp(Desk(items(200), store), "ana", pause_s=0)
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        given = 0
        while "not saved" not in text_of(app, "status"):
            question = app.question
            await press(app, pilot, "1")
            given += 1
        assert "no space left on the disk" in text_of(app, "status") and app.question == question
        assert len(store.events()) == given - 1 == app.labels_given
        store._connection.execute("PRAGMA max_page_count = 100000")
        await press(app, pilot, "1")
        assert len(store.events()) == given and app.question != question

    play(app, scene)


def test_a_file_that_cannot_be_read_leaves_a_page_that_tries_again(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(items(2), store)

    def fails(after: int = 0) -> Any:
        raise RlhfctlError("the disk is gone", fix="plug it in")

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(store, "events", fails)
            await press(app, pilot, "r")
            assert app.question is not None  # nothing is looked up while a question is there
            app.question = None
            await press(app, pilot, "r")
            told = "\n".join(shown(app))
            assert "cannot be read" in told and "the disk is gone" in told and "plug it in" in told
        await press(app, pilot, "r")
        assert app.question is not None and "q0" in "\n".join(shown(app))

    play(LabelApp(desk, "ana", pause_s=0), scene)


def test_quitting_waits_for_the_answer_that_is_being_stored(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(items(3), store)
    goes_on = threading.Event()
    answer = desk.answer

    def slow(*values: Any, **named: Any) -> Any:
        goes_on.wait(10)
        return answer(*values, **named)

    monkeypatch.setattr(desk, "answer", slow)
    app = LabelApp(desk, "ana", pause_s=0)

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await pilot.press("1")
        await pilot.pause()
        assert "saving" in text_of(app, "status") and "saved" not in text_of(app, "status")
        await pilot.press("2", "b", "q")  # the first two are for a question that is not there yet
        await pilot.pause()
        assert app.is_running and store.events() == []
        goes_on.set()
        await app.workers.wait_for_complete()

    play(app, scene)
    assert [ranks_on_screen(event) for event in store.events()] == [[0, 1]] and app.labels_given == 1


def test_a_fault_while_quitting_is_shown_first(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(items(3), store)
    goes_on = threading.Event()

    def fails(*values: Any, **named: Any) -> Any:
        goes_on.wait(10)
        raise RlhfctlError("the disk is gone")

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(desk, "answer", fails)
            await pilot.press("1", "q")
            goes_on.set()
            await settle(app, pilot)
            assert app.is_running and "the disk is gone" in text_of(app, "status")
        await press(app, pilot, "1")
        assert len(store.events()) == 1

    play(LabelApp(desk, "ana", pause_s=0), scene)


# ------------------------------------------------------------ the end


def test_the_last_page_counts_and_an_answer_can_still_be_taken_back(store: LabelStore) -> None:
    desk = Desk(items(3), store)
    before = desk.next("ana")
    assert before is not None
    desk.answer("ana", before.key, "bad")  # in an earlier sitting

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "1", "t")
        told = "\n".join(shown(app))
        assert app.question is None and "All questions are answered" in told
        assert "2  labels given in this sitting" in told and "3  answered by you in all" in told
        await press(app, pilot, "1", "n", "b", "enter")
        assert len(store.events()) == 3 and len(app.screen_stack) == 1
        await press(app, pilot, "u")
        assert app.question is not None
        await press(app, pilot, "s")
        told = "\n".join(shown(app))
        assert "still needs 1 answer from other annotators, or to what you skipped" in told
        assert "1  labels given in this sitting" in told and "1  skipped by you" in told
        await press(app, pilot, "q")

    play(LabelApp(desk, "ana", pause_s=0), scene)


def test_questions_on_other_screens_are_told_and_come_when_they_are_free(store: LabelStore) -> None:
    clock = [0.0]
    desk = Desk(items(2), store, clock=lambda: clock[0])
    assert desk.next("bo") is not None

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "1")
        assert "1 question is on the screens of other annotators" in " ".join("".join(shown(app)).split())
        await press(app, pilot, "r")
        assert app.question is None
        clock[0] = 1000.0  # bo went away
        app.action_look_again()
        await settle(app, pilot)
        assert app.question is not None

    play(LabelApp(desk, "ana", pause_s=0), scene)


def test_agreement_and_time_left_stand_in_the_header(store: LabelStore) -> None:
    clock = [0.0]
    desk = Desk(items(4), store, Settings(overlap=1.0), clock=lambda: clock[0])
    for kind in ("bad", "bad"):
        question = desk.next("bo")
        assert question is not None
        desk.answer("bo", question.key, kind)  # type: ignore[arg-type]

    async def scene(app: LabelApp, pilot: Pilot[None]) -> None:
        assert text_of(app, "progress") == "0 done · 4 left · time left - · agreement -"
        for key in "b1":
            clock[0] += 30
            await press(app, pilot, key)
        assert text_of(app, "progress") == "2 done · 2 left · time left 1:00 · agreement 1 of 2"

    play(LabelApp(desk, "ana", pause_s=0), scene)


# ------------------------------------------------------------ the start


def test_without_a_terminal_the_browser_is_named(store: LabelStore) -> None:
    with pytest.raises(RlhfctlError, match="no terminal") as raised:
        label_in_terminal(Desk(items(1), store), "ana")
    assert raised.value.fix is not None and "--web" in raised.value.fix


def test_without_the_library_its_extra_is_named(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhfctl.labels.screen.start.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="textual") as raised:
        label_in_terminal(Desk(items(1), store), "ana")
    assert raised.value.fix == "pip install 'rlhfctl[label]'"


PROGRAM = """
import sys
from pathlib import Path
from rlhfctl.labels.desk import Desk
from rlhfctl.labels.items import make_item
from rlhfctl.labels.screen.start import label_in_terminal
from rlhfctl.labels.store import open_labels
with open_labels(Path(sys.argv[1])) as store:
    given = label_in_terminal(Desk([make_item(f"q{n}", ["a", "b"], ["m", "n"]) for n in range(5)], store), "ana")
print("given:", given, [name for name in ("torch", "transformers", "pyarrow") if name in sys.modules])
"""


def test_in_a_real_terminal_keys_give_labels_and_the_count_comes_back(tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "l.sqlite")]
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)
        try:
            read_until(outer, ["q0"])
            for key in (b"1", b"\x1b[C"):  # the second is the right arrow
                time.sleep(0.4)
                os.write(outer, key)
                read_until(outer, ["saved"])
            os.write(outer, b"q")
            read_until(outer, ["given: 2 []"])
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(outer)
    with open_labels(tmp_path / "l.sqlite") as stored:
        assert [ranks_on_screen(event) for event in stored.events()] == [[0, 1], [1, 0]]


def read_until(terminal: int, words: Sequence[str], limit_s: float = 30.0) -> None:
    """Read what a program draws until all words have come."""
    end, read = time.monotonic() + limit_s, b""
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the program has ended
                read += os.read(terminal, 65536)
        if all(word in read.decode(errors="replace") for word in words):
            return
    raise AssertionError(f"{words} did not come: {read[-2000:]!r}")
