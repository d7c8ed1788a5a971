"""Obey a line that begins with `/` while a conversation is written: one of the commands of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhfctl.dashboard.text import visible
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.words import did_you_mean
from rlhfctl.tools.chat.loop import checked
from rlhfctl.tools.chat.screen import safe
from rlhfctl.tools.write.conversation import Turn
from rlhfctl.tools.write.writer import Writer


@dataclass(frozen=True)
class Command:
    """A command: what is written after it, what it does in words, and the function that does it."""

    argument: str
    words: str
    run: Callable[[Writer, str], None]


def obey(line: str, writer: Writer) -> None:
    """Do what a command says. EOFError leaves."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        raise RlhfctlError(
            f"there is no command /{name}{did_you_mean(name, COMMANDS)}",
            fix="/help lists them; a text that begins with / is written with two: //",
        )
    COMMANDS[name].run(writer, argument.strip())


def _waiting(writer: Writer) -> Turn:
    turn = writer.conversation.waiting
    if turn is None:
        raise RlhfctlError("the user speaks next, so there is nothing to answer", fix="write what the user says")
    return turn


def _edit(writer: Writer, argument: str) -> None:
    turn = _waiting(writer)
    number = int(argument) if argument.isascii() and argument.isdigit() else 0
    if not 1 <= number <= len(turn.suggestions):
        raise RlhfctlError(
            f"there is no suggestion {argument!r}" if argument else "no suggestion is named", fix="for example /edit 1"
        )
    old = turn.suggestions[number - 1].text
    can_be_typed = visible(old) == old
    if not can_be_typed:
        writer.screen.note('it has several lines, or characters that cannot be edited: write it anew, between """')
    new = checked(writer.screen.read("edit> ", old if can_be_typed else ""))
    if not new.strip():
        writer.screen.note("not edited")
        return
    writer.answer(turn, new)


def _own(writer: Writer, text: str) -> None:
    turn = _waiting(writer)
    if not text:
        raise RlhfctlError("no text is given", fix="/own 42")
    writer.answer(turn, text)


def _again(writer: Writer, argument: str) -> None:
    writer.draw(_waiting(writer))


def _undo(writer: Writer, argument: str) -> None:
    turn = writer.undo()
    if turn is None:
        raise RlhfctlError("nothing has been said yet", fix="write something first")
    is_answer = turn in writer.conversation.turns
    writer.screen.note("the last answer is taken back" if is_answer else f"taken back: {safe(turn.said)}")


def _system(writer: Writer, text: str) -> None:
    conversation = writer.conversation
    if not conversation.roles:
        raise RlhfctlError(
            "these prompts are plain texts, which have no system message", fix="write it into the prompt itself"
        )
    if conversation.turns:
        raise RlhfctlError("the conversation has begun", fix="/undo goes back, /end ends it; set it before a new one")
    conversation.system = text or None
    writer.screen.note("the system message is set" if text else "there is no system message")


def _end(writer: Writer, argument: str) -> None:
    writer.end()


def _drop(writer: Writer, argument: str) -> None:
    writer.drop()
    writer.screen.note("forgotten; a new conversation begins")


def _help(writer: Writer, argument: str) -> None:
    width = max(len(f"/{name} {command.argument}") for name, command in COMMANDS.items())
    lines = [f"{f'/{name} {command.argument}':{width}}  {command.words}" for name, command in COMMANDS.items()]
    writer.screen.note("\n".join([*_LINES, *lines]))


def _quit(writer: Writer, argument: str) -> None:
    raise EOFError


_LINES = (
    "The user's side: a text. An empty line ends the conversation and keeps it.",
    "The assistant's side: 2 takes suggestion 2. 2>1 ranks (2=1>3 with a tie), then Enter takes the first one.",
    "Any other text is your own answer. It ranks above all suggestions, as an edited one does.",
    'A text of several lines stands between """ and """.',
)
COMMANDS: dict[str, Command] = {
    "edit": Command("K", "edit suggestion K", _edit),
    "own": Command("TEXT", "answer with a text that would read as a number or a ranking", _own),
    "again": Command("", "draw other suggestions", _again),
    "undo": Command("", "take the last answer back, or what the user said last", _undo),
    "system": Command("TEXT", "set the system message of a new conversation (no text: remove it)", _system),
    "end": Command("", "end the conversation and keep it", _end),
    "drop": Command("", "forget the conversation", _drop),
    "help": Command("", "list the commands", _help),
    "quit": Command("", "leave; the same command goes on later (also Ctrl-D)", _quit),
}
"""The commands by name."""
