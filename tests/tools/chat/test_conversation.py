"""What models read of a chat, which answers can be preferred, and rows that `rlhfctl data` reads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data.load import load_preferences
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.schema import Preferences
from rlhfctl.tools.chat.conversation import Answer, Conversation, Turn, append_rows


def answer(text: str, by: str = "ppo", **changes: Any) -> Answer:
    given: dict[str, Any] = {"tokens": 3, "ended": True}
    return Answer(by, text, **given | changes)


def two(left: Answer, right: Answer, text: str = "hi") -> Turn:
    return Turn(text, text, [left, right])


def test_an_answer_says_its_score_length_and_end() -> None:
    assert answer("x", score=-0.12345, tokens=1).described() == "score -0.123, 1 token"
    assert answer("x", ended=False).described() == "3 tokens, cut at the longest length"
    assert answer("x", ended=False, stopped=True).described() == "3 tokens, stopped"


def test_a_conversation_is_read_whole_and_goes_on_with_the_preferred_answer() -> None:
    talk = Conversation(roles=True)
    talk.set_system("be kind")
    talk.turns.append(two(answer("hello"), answer("hey", "sft")))
    read = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert talk.prompt("more") == [
        *read, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"},
    ]  # fmt: skip
    assert talk.last.prefer("right").by == "sft"
    assert talk.prompt("more")[2] == {"role": "assistant", "content": "hey"}
    talk.set_system("")
    assert talk.prompt("more")[0] == {"role": "user", "content": "hi"}


def test_without_roles_each_text_is_a_prompt_of_its_own() -> None:
    talk = Conversation(roles=False)
    talk.turns.append(two(answer("hello"), answer("hey")))
    assert talk.prompt(" more ") == " more "
    with pytest.raises(RlhfctlError, match="no system message"):
        talk.set_system("be kind")


@pytest.mark.parametrize(
    ("turn", "side", "message"),
    [
        (Turn("hi", "hi", [answer("a")]), "left", "one answer only"),
        (two(answer("a"), answer("b")), "middle", "no side 'middle'"),
        (two(answer("a"), answer("b")), "", "no side is named"),
        (two(answer("a"), answer("a")), "left", "both answers are the same"),
        (two(answer("a"), answer(" ")), "left", "an answer is empty"),
        (two(answer("a"), answer("b", ended=False, stopped=True)), "left", "an answer was stopped"),
    ],
)
def test_a_pair_that_teaches_nothing_is_refused(turn: Turn, side: str, message: str) -> None:
    with pytest.raises(RlhfctlError, match=message):
        turn.prefer(side)
    assert turn.preferred is None and turn.used == 0


@pytest.mark.parametrize("roles", [True, False])
def test_saved_turns_are_rows_that_data_reads(tmp_path: Path, roles: bool) -> None:
    talk, file = Conversation(roles=roles), tmp_path / "new" / "mine.jsonl"
    for number in range(3):
        prompt = talk.prompt(f"say {number}")
        talk.turns.append(Turn(f"say {number}", prompt, [answer(f"a{number}"), answer(f"b{number}", "sft")]))
        if number != 1:
            talk.last.prefer("right" if number else "left")
        if number == 0:
            assert talk.save(file) == 1
    assert talk.save(file) == 1  # the first is not written again, the second has no label
    with pytest.raises(RlhfctlError, match="saved already"):
        talk.save(file)
    with pytest.raises(RlhfctlError, match="saved already"):
        talk.turns[0].prefer("right")
    loaded = load_preferences(Preferences(source=str(file)), 0)
    shown = [[row[key] if isinstance(row[key], str) else row[key][-1]["content"] for key in row] for row in loaded.rows]
    assert shown == [["say 0", "a0", "b0"], ["say 2", "b2", "a2"]]
    assert [isinstance(row["prompt"], list) for row in loaded.rows] == [roles, roles]
    assert loaded.notes[-1] == "not used: the columns chosen_by, rejected_by"
    assert [json.loads(line)["chosen_by"] for line in file.read_text().splitlines()] == ["ppo", "sft"]
    if roles:  # the later row holds the whole conversation, with the answers that it went on with
        assert [message["content"] for message in loaded.rows[1]["prompt"]] == ["say 0", "a0", "say 1", "a1", "say 2"]


ROW = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "", "saved as JSON lines"),
        ("rows.jsonl", '{"prompt": "p"}\n', "other rows than preferences"),
        ("rows.jsonl", "[1]\n", "other rows than preferences"),
        ("rows.jsonl", "not json\n", "no JSON"),
        ("rows.jsonl", '{"chosen": [], "rejected": []}\n', "holds conversations, and this chat's turns are texts"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(RlhfctlError, match=message):
        append_rows(file, [ROW])
    assert file.read_text() == text


def test_rows_are_added_after_the_last_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps(ROW)
    file.write_text(line)  # a last line without its end
    append_rows(file, [ROW, ROW])
    assert file.read_text() == f"{line}\n{line}\n{line}\n"
    with pytest.raises(RlhfctlError, match="cannot be"):
        append_rows(tmp_path / "rows.jsonl" / "inside.jsonl", [ROW])


def test_nothing_is_saved_without_a_label(tmp_path: Path) -> None:
    talk = Conversation(roles=False)
    with pytest.raises(RlhfctlError, match="nothing has been said"):
        _ = talk.last
    talk.turns.append(two(answer("a"), answer("b")))
    with pytest.raises(RlhfctlError, match="no answer is preferred yet"):
        talk.save(tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())
