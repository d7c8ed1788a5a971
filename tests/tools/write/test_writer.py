"""What a person does at each side, and what is on disk then: suggestions, rankings, own answers, turns, the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_writers import compared, demonstrations, labels, numbered, wrote

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat.conversation import Answer
from rlhfctl.tools.write.conversation import Prompt


def said_by(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


def test_a_conversation_of_three_turns_is_a_demonstration_and_its_rankings_are_labels(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "2", "and?", "2 > 1=3", "", "last", "3=1", "own", "", count=3)
    (row,) = demonstrations(tmp_path)
    assert said_by(row) == ["hi", " draw 1", "and?", " draw 4", "last", "own"]
    assert compared(tmp_path) == [
        ("and?", (" draw 3", " draw 4", " draw 5"), (1, 0, 1)),
        ("last", (" draw 6", " draw 8", "own"), (1, 1, 0)),
        ("last", (" draw 7", "own"), (1, 0)),
    ]
    assert [event.seconds for _, event in labels(tmp_path)] == [1.0, 1.0, 1.0]
    assert screen.shown[:3] == ["[1] draw 0", "[2] draw 1", "[3] draw 2"]
    assert "and 3 labels to" in screen.shown[-1] and "a conversation of 3 turns" in screen.shown[-1]
    assert any("ranked: 2 > 1 = 3. Enter takes 2" in note for note in screen.notes)
    assert "your answer ranks above all suggestions" in screen.notes
    assert [prompt for prompt, _ in screen.asked[:3]] == ["user> ", "assistant> ", "user> "]
    assert not (tmp_path / "writing.json").exists()


def test_of_equal_best_ones_the_conversation_goes_on_with_the_first_that_was_named(tmp_path: Path) -> None:
    wrote(tmp_path, "hi", "2=1", "", "")
    assert said_by(demonstrations(tmp_path)[0])[1] == " draw 1"
    assert compared(tmp_path) == [("hi", (" draw 0", " draw 1"), (0, 0))]


def test_an_edited_answer_ranks_above_the_ranked_suggestions(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "1>2", "/edit 1", "draw zero, edited", "")
    assert screen.asked[3] == ("edit> ", " draw 0")  # it stands there to be edited
    assert said_by(demonstrations(tmp_path)[0])[1] == "draw zero, edited"
    assert compared(tmp_path) == [("hi", (" draw 0", " draw 1", "draw zero, edited"), (1, 2, 0))]
    ((item, _),) = labels(tmp_path)
    assert item.origins == ("ppo", "ppo", "person")


def test_an_edit_that_changes_nothing_takes_the_suggestion(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "hi", "/edit 2", "  ", "/edit 2", " draw 1", "")
    assert "not edited" in screen.notes and labels(tmp_path) == []
    assert said_by(demonstrations(tmp_path)[0]) == ["hi", " draw 1"]


def test_texts_are_single_turns_and_an_own_answer_begins_as_the_suggestions_do(tmp_path: Path) -> None:
    wrote(tmp_path, "tea is", "good", "", "milk is ", "bad", "rain is", " wet", "snow is", "1", roles=False)
    assert demonstrations(tmp_path) == [
        {"prompt": "tea is", "completion": " good"},
        {"prompt": "milk is ", "completion": "bad"},
        {"prompt": "rain is", "completion": " wet"},
        {"prompt": "snow is", "completion": " draw 0"},
    ]
    assert compared(tmp_path)[:2] == [
        ("tea is", (" draw 0", " good"), (1, 0)),
        ("tea is", (" draw 1", " good"), (1, 0)),
    ]
    tight = tmp_path / "tight"
    tight.mkdir()
    wrote(tight, "1+1=", "/own 2", roles=False, suggest=lambda *_: Answer("ppo", "3", 1, True))
    assert demonstrations(tight) == [{"prompt": "1+1=", "completion": "2"}]


def test_turns_end_a_conversation_and_the_next_one_draws_the_same_numbers(tmp_path: Path) -> None:
    screen = wrote(tmp_path, "a", "1", "b", "1", "a", "1", "b", "2", longest=2)
    assert [said_by(row) for row in demonstrations(tmp_path)] == [
        ["a", " draw 0", "b", " draw 2"],
        ["a", " draw 0", "b", " draw 3"],
    ]
    assert screen.notes[-1] == ""  # nothing is under way


def test_equal_and_empty_suggestions_are_drawn_again_and_a_model_that_repeats_itself_is_left(tmp_path: Path) -> None:
    texts = {0: "same", 1: "same", 2: "  ", 3: "other"}
    screen = wrote(tmp_path, "hi", "2>1", suggest=lambda prompt, draw, place: Answer("ppo", texts[draw], 1, True))
    assert screen.shown == ["[1] same", "[2] other"]
    stubborn = tmp_path / "stubborn"
    stubborn.mkdir()
    screen = wrote(stubborn, "hi", "/again", "1", "", suggest=lambda *_: Answer("ppo", "same", 1, True), count=3)
    assert screen.notes.count("1 suggestion in 12 draws; /again draws others") == 2
    assert said_by(demonstrations(stubborn)[0]) == ["hi", "same"]


def test_without_room_for_an_answer_the_person_can_still_write_one(tmp_path: Path) -> None:
    def full(prompt: Prompt, draw: int, place: int) -> Answer:
        raise RlhfctlError("the prompt has 99 tokens", fix="/new")

    screen = wrote(tmp_path, "hi", "my own", "", suggest=full)
    assert screen.errors == ["no suggestions: the prompt has 99 tokens"]
    assert not any("draws others" in note for note in screen.notes)
    assert said_by(demonstrations(tmp_path)[0]) == ["hi", "my own"] and labels(tmp_path) == []


def test_ctrl_c_stops_drawing_and_leaves_the_suggestions_that_are_there(tmp_path: Path) -> None:
    def interrupted(prompt: Prompt, draw: int, place: int) -> Answer:
        if draw == 1:
            raise KeyboardInterrupt
        return numbered(prompt, draw, place)

    screen = wrote(tmp_path, "hi", "/again", "1", "", suggest=interrupted)
    assert screen.shown[:3] == ["[1] draw 0", "[1] draw 2", "[2] draw 3"]
    with pytest.raises(KeyboardInterrupt):  # a script is ended
        wrote(tmp_path, "hi", suggest=interrupted, interactive=False)


# ---------------------------------------------------------------- on disk


LINES = ("hi", "2", "and?", "1>2", "/own 7", "third", "1=2", "/edit 1", "edited", "")


@pytest.mark.parametrize("roles", [True, False])
def test_a_conversation_that_is_interrupted_after_each_line_ends_as_one_that_is_not(
    roles: bool, tmp_path: Path
) -> None:
    """An edit is one step: what is typed between `/edit` and its text is lost."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    wrote(whole, *LINES, roles=roles)
    steps = [[line] for line in LINES]
    steps[7:9] = [["/edit 1", "edited"]]
    for step in steps:
        wrote(cut, *step, roles=roles)
    assert demonstrations(cut) == demonstrations(whole) and len(demonstrations(whole)) == (1 if roles else 3)
    assert compared(cut) == compared(whole) and len(compared(cut)) == 2


def test_each_step_is_on_disk_before_the_next_line_is_read(tmp_path: Path) -> None:
    kept = []

    class Watching(list[str]):
        def pop(self, index: Any = -1) -> str:
            file = tmp_path / "writing.json"
            kept.append(json.loads(file.read_text())["conversation"]["turns"] if file.exists() else [])
            return super().pop(index)

    from small_chats import Recorder

    class Screen(Recorder):
        def __init__(self, *lines: str) -> None:
            super().__init__()
            self.lines = Watching(lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("small_writers.Recorder", lambda *lines, interactive: Screen(*lines))
        wrote(tmp_path, "hi", "1>2", "", "and?", "own")
    states = [[(t["said"], len(t["suggestions"]), t["ranked"], t["answer"]) for t in turns] for turns in kept]
    assert states == [
        [],
        [("hi", 2, [], None)],
        [("hi", 2, [[0], [1]], None)],
        [("hi", 2, [[0], [1]], " draw 0")],
        [("hi", 2, [[0], [1]], " draw 0"), ("and?", 2, [], None)],
    ]


def test_a_conversation_that_goes_on_is_shown_first(tmp_path: Path) -> None:
    wrote(tmp_path, "hi \x1b[31m", "1", "and?", "2>1")
    asked = []
    screen = wrote(tmp_path, suggest=lambda *given: asked.append(given) or numbered(*given))  # type: ignore[func-returns-value]
    assert asked == []  # the suggestions are those that it had
    assert screen.notes[1:3] == ["user> hi \\x1b[31m\nassistant>  draw 0", "user> and?"]
    assert screen.shown == ["[1] draw 2", "[2] draw 3"] and "ranked: 2 > 1" in screen.notes
    assert "a conversation of 2 turns is under way: the same command goes on with it" in screen.notes
    with pytest.raises(RlhfctlError, match="the conversation under way is messages"):
        wrote(tmp_path, roles=False)


def test_a_full_conversation_that_a_kill_left_is_ended_at_the_start(tmp_path: Path) -> None:
    wrote(tmp_path, "hi", "1", "and?", "2")
    screen = wrote(tmp_path, longest=2)
    assert "kept: a conversation of 2 turns" in screen.shown[0] and len(demonstrations(tmp_path)) == 1
    assert screen.asked == [("user> ", "")]
