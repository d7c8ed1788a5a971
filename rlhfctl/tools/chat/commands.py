"""What a line of the user means in a chat: one of the `/commands` of the table, or a text that the models answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.words import did_you_mean
from rlhfctl.tools.chat.conversation import SIDES, Conversation
from rlhfctl.tools.chat.session import NOBODY, Session


@dataclass(frozen=True)
class Command:
    """A command: what is written after it, what it does in words, and the function that does it."""

    argument: str
    words: str
    run: Callable[[Session, str], None]


def obey(line: str, session: Session) -> None:
    """Do what a line says. EOFError ends the chat."""
    if not line.strip():
        return
    if not line.startswith("/") or line.startswith("//"):
        session.say(line[1:] if line.startswith("//") else line)
        return
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        raise RlhfctlError(
            f"there is no command /{name}{did_you_mean(name, COMMANDS)}",
            fix="/help lists them; a text that begins with / is written with two: //",
        )
    COMMANDS[name].run(session, argument.strip())


def _model(session: Session, name: str) -> None:
    if not name:
        session.screen.note(f"{session.left.name} answers; there are {', '.join(session.run.names())}")
        return
    session.set_left(session.run.choose(name))
    session.screen.note(f"{session.left.name} answers from here on")


def _against(session: Session, name: str) -> None:
    if not name:
        beside = "no second model" if session.right is None else session.right.name
        session.screen.note(f"{beside} answers beside; there are {', '.join([*session.run.names(), NOBODY])}")
        return
    session.set_right(None if name == NOBODY else session.run.choose(name))
    beside = "no second model" if session.right is None else session.right.name
    session.screen.note(f"{beside} answers beside {session.left.name} from here on")


def _again(session: Session, argument: str) -> None:
    session.again()


def _undo(session: Session, argument: str) -> None:
    said = session.conversation.last.text
    session.conversation.turns.pop()
    session.screen.note(f"taken back: {said}")


def _new(session: Session, argument: str) -> None:
    session.conversation = Conversation(session.conversation.roles, session.conversation.system)
    session.screen.note("a new conversation")


def _system(session: Session, text: str) -> None:
    session.conversation.set_system(text)
    session.screen.note("the system message is set" if text else "there is no system message")


def _temperature(session: Session, text: str) -> None:
    if text:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise RlhfctlError(f"{text!r} is no temperature", fix="a number from 0 (greedy) on: /temperature 0.7")
        session.settings = replace(session.settings, temperature=value)
    session.screen.note(f"temperature {session.settings.temperature:g}")


def _prefer(session: Session, side: str) -> None:
    answer = session.conversation.last.prefer(side)
    session.screen.note(f"preferred: {side} ({answer.by}); /save FILE writes it")


def _save(session: Session, name: str) -> None:
    if not name:
        raise RlhfctlError("no file is named", fix="/save preferences.jsonl")
    file = Path(name).expanduser()
    count = session.conversation.save(file)
    session.screen.note(f"appended {count} row{'' if count == 1 else 's'} to {file}")


def _help(session: Session, argument: str) -> None:
    width = max(len(f"/{name} {command.argument}") for name, command in COMMANDS.items())
    lines = [f"{f'/{name} {command.argument}':{width}}  {command.words}" for name, command in COMMANDS.items()]
    session.screen.note("\n".join([*lines, *_KEYS]))


def _quit(session: Session, argument: str) -> None:
    raise EOFError


_KEYS = (
    'A text of several lines stands between """ and """.',
    "Ctrl-C stops an answer, Ctrl-D ends the chat.",
)
COMMANDS: dict[str, Command] = {
    "model": Command("NAME", "answer with another model: a stage, reference, a folder", _model),
    "against": Command("NAME", "a second model answers beside it (none: no second)", _against),
    "again": Command("", "draw the last answer anew", _again),
    "undo": Command("", "take the last turn back", _undo),
    "new": Command("", "begin a new conversation", _new),
    "system": Command("TEXT", "set the system message (no text: remove it)", _system),
    "temperature": Command("T", "sample at this temperature (0: greedy)", _temperature),
    "prefer": Command("|".join(SIDES), "say which answer is better, and go on with it", _prefer),
    "save": Command("FILE", "append the labelled turns to a file of preferences", _save),
    "help": Command("", "list the commands", _help),
    "quit": Command("", "end the chat", _quit),
}
"""The commands by name."""
