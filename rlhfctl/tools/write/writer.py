"""Hold a conversation that a person writes beside suggestions: each thing the person can do, and each step on disk.

The user says a text. At the assistant's side the person takes a suggestion, ranks some, edits one, or writes an answer.
Leaves out the files (book.py), the lines that are typed (loop.py, commands.py) and the model (start.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rlhfctl.dashboard.text import counted
from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat.conversation import Answer
from rlhfctl.tools.chat.screen import Screen, safe
from rlhfctl.tools.write.book import Book
from rlhfctl.tools.write.conversation import Conversation, Prompt, Suggestion, Turn

_DRAWS_PER_SUGGESTION = 4  # a model that repeats itself is not asked for ever

Suggest = Callable[[Prompt, int, int], Answer]
"""Asks the model: prompt, number of the draw, place of the suggestion on the screen."""


@dataclass
class Writer:
    """One person who writes. `count`: suggestions per turn; `longest`: turns per conversation, None: no limit."""

    screen: Screen
    book: Book
    suggest: Suggest
    roles: bool
    count: int = 2
    longest: int | None = None
    clock: Callable[[], float] = time.monotonic
    conversation: Conversation = field(init=False)
    ending: bool = field(default=False, init=False)  # the end of a conversation has begun, and is not done
    since: float | None = field(default=None, init=False)  # when the suggestions came onto the screen

    def __post_init__(self) -> None:
        self.conversation = self._new()

    def _new(self) -> Conversation:
        return Conversation(secrets.token_hex(8), self.roles)

    def resume(self) -> None:
        """Go on with the conversation that was under way."""
        if (said := self.book.end_begun()) is not None:
            self.screen.show(said)
        self.book.check(roles=self.roles)
        before = self.book.under_way()
        if before is None:
            return
        if before.roles is not self.roles:
            kinds = "a prompt and its answer", "messages"
            raise RlhfctlError(
                f"the conversation under way is {kinds[before.roles]}, and this model reads {kinds[self.roles]}",
                where=str(self.book.run.writing),
                fix="go on with the stage that it was begun with, or move this file away",
            )
        self.conversation = before
        self.screen.note("going on with the conversation that was under way (/drop forgets it):")
        for turn in before.answered:
            self.screen.note(f"{self.sides[0]}{safe(turn.said)}\n{self.sides[1]}{safe(turn.answer or '')}")
        if before.waiting is not None:
            self.screen.note(f"{self.sides[0]}{safe(before.waiting.said)}")
        else:
            self._end_if_full()

    def leave(self) -> None:
        """Say that a conversation is under way, if it is."""
        turns = len(self.conversation.turns)
        self.screen.note("")
        if turns:
            self.screen.note(
                f"a conversation of {counted(turns, 'turn')} is under way: the same command goes on with it"
            )

    @property
    def sides(self) -> tuple[str, str]:
        """What stands before a line of each side."""
        return ("user> ", "assistant> ") if self.roles else ("prompt> ", "answer> ")

    # ---------------------------------------------------------------- the user's side

    def say(self, text: str) -> None:
        """Let the user say a text; suggestions follow."""
        self.conversation.turns.append(Turn(text))
        self.book.keep(self.conversation)

    def show(self, turn: Turn) -> None:
        """Show the suggestions of a turn; those of a conversation that goes on are the ones that it had."""
        if not turn.suggestions and turn.draws == 0:
            self.draw(turn)
        for number, one in enumerate(turn.suggestions, 1):
            self.screen.show(f"[{number}] {one.text.strip()}")
            self.screen.note(f"    {one.about}")
        if turn.ranked:
            self.screen.note(f"ranked: {ranks_in_words(turn)}")
        self.since = self.clock()

    def draw(self, turn: Turn) -> None:
        """Ask the model for suggestions that differ, none of them empty. Ctrl-C stops it with those that are there."""
        turn.suggestions, turn.ranked, self.since = [], [], None
        before = turn.draws
        prompt = self.conversation.prompt(len(self.conversation.turns) - 1)
        try:
            for _ in range(_DRAWS_PER_SUGGESTION * self.count):
                if len(turn.suggestions) == self.count:
                    break
                answer = self.suggest(prompt, self.conversation.draws, len(turn.suggestions) + 1)
                turn.draws += 1
                known = [one.text for one in turn.suggestions]
                if answer.text.strip() and answer.text not in known and not answer.stopped:
                    turn.suggestions.append(Suggestion(answer.text, answer.by, answer.described()))
        except KeyboardInterrupt:
            if not self.screen.interactive:
                raise
            turn.draws += 1
        except RlhfctlError as error:  # no room in the context: the person can still answer or end
            turn.draws += 1
            self.screen.error(f"no suggestions: {error.what}")
            self.book.keep(self.conversation)
            return
        self.book.keep(self.conversation)
        if len(turn.suggestions) < self.count:
            self.screen.note(
                f"{counted(len(turn.suggestions), 'suggestion')} in {counted(turn.draws - before, 'draw')}; "
                "/again draws others"
            )

    # ---------------------------------------------------------------- the assistant's side

    def choose(self, turn: Turn, text: str) -> None:
        """Take the suggestion of this number, or rank several: `2`, `2>1`, `1=3>2`."""
        groups = [[int(number) - 1 for number in group.split("=")] for group in text.split(">")]
        named = [place for group in groups for place in group]
        if unknown := [place for place in named if not 0 <= place < len(turn.suggestions)]:
            raise RlhfctlError(f"there is no suggestion {unknown[0] + 1}", fix=f"/own {text.strip()} says this text")
        if len(set(named)) < len(named):
            raise RlhfctlError("a suggestion stands twice in this ranking", fix="name each one once: 2>1=3")
        if len(named) == 1:
            self._settle(turn, turn.suggestions[named[0]].text)
            return
        turn.ranked = groups
        self.book.keep(self.conversation)
        self.screen.note(
            f"ranked: {ranks_in_words(turn)}. Enter takes {groups[0][0] + 1}; "
            "an own or edited answer ranks above all suggestions"
        )

    def take_best(self, turn: Turn) -> None:
        if not turn.ranked:
            raise RlhfctlError("no answer is chosen", fix="a number takes a suggestion; /end ends the conversation")
        self._settle(turn, turn.suggestions[turn.ranked[0][0]].text)

    def answer(self, turn: Turn, text: str) -> None:
        """Let the person's own answer stand. Beside texts that begin with a space, it does so too."""
        begins = [one.text[:1].isspace() for one in turn.suggestions]
        if not self.roles and begins and all(begins) and not (text[:1].isspace() or turn.said[-1:].isspace()):
            text = f" {text}"
        self._settle(turn, text)

    def _settle(self, turn: Turn, text: str) -> None:
        turn.answer = text
        turn.seconds = None if self.since is None else round(self.clock() - self.since, 3)
        self.since = None
        self.book.keep(self.conversation)
        if turn.is_own and turn.suggestions:
            self.screen.note("your answer ranks above all suggestions")
        self._end_if_full()

    # ---------------------------------------------------------------- the end

    def _end_if_full(self) -> None:
        longest = self.longest if self.roles else 1
        if longest is not None and len(self.conversation.answered) >= longest:
            self.end()

    def end(self) -> None:
        """Keep the conversation as a demonstration and labels, and begin a new one."""
        if not self.conversation.answered:
            raise RlhfctlError("no turn has an answer yet", fix="answer it, or /drop forgets the conversation")
        waiting = self.conversation.waiting
        if waiting is not None:
            self.conversation.turns.remove(waiting)
            self.screen.note(f"left out, for it has no answer: {safe(waiting.said)}")
        self.ending = True
        self.screen.show(self.book.finish(self.conversation))
        self.ending = False
        self.conversation, self.since = self._new(), None

    def drop(self) -> None:
        """Forget the conversation."""
        self.book.drop()
        self.conversation, self.since = self._new(), None

    def undo(self) -> Turn | None:
        """Take back the last thing: the answer of the last turn, or what the user said; None if there is nothing."""
        if not self.conversation.turns:
            return None
        turn = self.conversation.turns[-1]
        self.since = None
        if turn.answer is None:
            self.conversation.turns.pop()
        else:
            turn.answer = turn.seconds = None
        self.book.keep(self.conversation) if self.conversation.turns else self.book.drop()
        return turn


def ranks_in_words(turn: Turn) -> str:
    """Write a ranking of suggestions as people type it: `2 = 1 > 3`."""
    return " > ".join(" = ".join(str(place + 1) for place in group) for group in turn.ranked)
