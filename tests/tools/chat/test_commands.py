"""What each `/command` does to a chat; the models are stand-ins that say their name and the number of the draw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from small_chats import Recorder

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat.commands import COMMANDS, obey
from rlhfctl.tools.chat.conversation import Answer, Conversation, Prompt
from rlhfctl.tools.chat.models import Settings
from rlhfctl.tools.chat.session import Session


class StandIn(Session):
    """A session whose models need no weights."""

    def set_left(self, choice: Any) -> None:
        self.left = choice

    def set_right(self, choice: Any) -> None:
        self.right = choice

    def _ask(self, prompt: Prompt) -> list[Answer]:
        self.draws += 1
        speakers = [self.left] if self.right is None else [self.left, self.right]
        answers = [Answer(one.name, f"{one.name} {self.draws}", 2, True) for one in speakers]
        self.screen.answered(answers)
        return answers


class Run:
    def names(self) -> list[str]:
        return ["sft", "ppo", "reference"]

    def choose(self, name: str) -> Any:
        if name not in self.names():
            raise RlhfctlError(f"there is no model {name!r} in this run")
        return SimpleNamespace(name=name)


def session(*lines: str, roles: bool = True) -> tuple[StandIn, Recorder]:
    screen, run = Recorder(), Run()
    made = StandIn(run, screen, run.choose("ppo"), Settings(0.7, 0), Conversation(roles))  # type: ignore[arg-type]
    for line in lines:
        obey(line, made)
    return made, screen


def said(talk: StandIn) -> list[tuple[str, list[str]]]:
    return [(turn.text, [answer.text for answer in turn.answers]) for turn in talk.conversation.turns]


def test_a_line_is_said_and_an_empty_one_is_not() -> None:
    talk, _ = session("hi", "", "  ", "//models are great", " leading space")
    assert [text for text, _ in said(talk)] == ["hi", "/models are great", " leading space"]


def test_the_models_change() -> None:
    talk, screen = session("/model", "/model sft", "hi", "/against reference", "hi", "/against", "/against none", "hi")
    assert [answers for _, answers in said(talk)] == [["sft 1"], ["sft 2", "reference 2"], ["sft 3"]]
    assert screen.notes == [
        "ppo answers; there are sft, ppo, reference",
        "sft answers from here on",
        "reference answers beside sft from here on",
        "reference answers beside; there are sft, ppo, reference, none",
        "no second model answers beside sft from here on",
    ]
    with pytest.raises(RlhfctlError, match="no model 'pop'"):
        obey("/model pop", talk)
    assert talk.left.name == "sft"


def test_turns_are_drawn_again_and_taken_back() -> None:
    talk, screen = session("one", "two", "/again")
    assert said(talk) == [("one", ["ppo 1"]), ("two", ["ppo 2", "ppo 3"])]
    obey("/undo", talk)
    assert said(talk) == [("one", ["ppo 1"])] and screen.notes[-1] == "taken back: two"
    obey("/new", talk)
    for line in ("/undo", "/again", "/prefer left"):
        with pytest.raises(RlhfctlError, match="nothing has been said yet"):
            obey(line, talk)


def test_the_system_message_stays_in_a_new_conversation_until_it_is_removed() -> None:
    talk, screen = session("/system be  kind", "hi", "/new", "hi")
    prompt = talk.conversation.last.prompt
    assert isinstance(prompt, list) and prompt[0] == {"role": "system", "content": "be  kind"} and len(prompt) == 2
    obey("/system", talk)
    assert talk.conversation.system is None
    assert screen.notes == ["the system message is set", "a new conversation", "there is no system message"]
    with pytest.raises(RlhfctlError, match="plain texts, which have no system message"):
        session("/system be kind", roles=False)


def test_the_temperature_is_a_number_from_0_on() -> None:
    talk, screen = session("/temperature", "/temperature 0", "/temperature 1.25")
    assert screen.notes == ["temperature 0.7", "temperature 0", "temperature 1.25"]
    for wrong in ("-1", "warm", "nan", "inf"):
        with pytest.raises(RlhfctlError, match=f"'{wrong}' is no temperature"):
            obey(f"/temperature {wrong}", talk)
    assert talk.settings == Settings(1.25, 0)


def test_a_preferred_answer_is_saved(tmp_path: Path) -> None:
    file = tmp_path / "my rows.jsonl"
    talk, screen = session("/against sft", "hi", "/prefer right", f"/save {file}", "more")
    prompt = talk.conversation.last.prompt
    assert isinstance(prompt, list) and prompt[1] == {"role": "assistant", "content": "sft 1"}
    assert screen.notes[1:] == ["preferred: right (sft); /save FILE writes it", f"appended 1 row to {file}"]
    assert '"chosen_by": "sft"' in file.read_text()
    with pytest.raises(RlhfctlError, match="no file is named"):
        obey("/save", talk)


def test_help_lists_every_command() -> None:
    talk, screen = session("/help")
    for name, command in COMMANDS.items():
        assert f"/{name} {command.argument}".rstrip() in screen.notes[0] and command.words in screen.notes[0]
    assert all(len(line) <= 80 for line in screen.notes[0].splitlines())
    assert "Ctrl-D" in screen.notes[0]
    with pytest.raises(EOFError):
        obey("/quit", talk)


def test_every_command_is_on_the_page() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`/{name}" not in page] == []


def test_a_misspelt_command_is_not_said_to_the_model() -> None:
    with pytest.raises(RlhfctlError, match=r"no command /agian.*did you mean.*again"):
        session("/agian")
    with pytest.raises(RlhfctlError, match="written with two"):
        session("/etc/passwd is a file")
