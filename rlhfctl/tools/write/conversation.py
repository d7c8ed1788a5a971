"""Hold a conversation that a person writes: what the user says, what the model suggests, what the person makes of it.

    finished conversation ──▶ one demonstration, {"messages"} or {"prompt", "completion"}
                          ──▶ labels: the ranked suggestions of each turn, and the person's own answers above them

A label says no more than the person said: suggestions that were not ranked are compared with an own answer alone. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhfctl.labels.items import Item, make_item
from rlhfctl.labels.store import WRITTEN, Event

PERSON = "person"
"""The origin of an answer that a person wrote or edited."""

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Suggestion:
    """An answer of a model. `by`: the model's name; `about`: its length and how it ended, in words."""

    text: str
    by: str
    about: str


@dataclass
class Turn:
    """A text of the user and the answer to it; `answer` is None while the person has not given one.

    `ranked`: places of suggestions, best first; those of one group are equally good. Suggestions that it does not name
    have no rank. `draws`: how often the model was asked. `seconds`: how long the suggestions were looked at.
    """

    said: str
    suggestions: list[Suggestion] = field(default_factory=list)
    ranked: list[list[int]] = field(default_factory=list)
    answer: str | None = None
    draws: int = 0
    seconds: float | None = None

    @property
    def is_own(self) -> bool:
        """Tell whether the answer is the person's own: written, or edited into another text than each suggestion."""
        return self.answer is not None and self.answer not in [one.text for one in self.suggestions]


@dataclass
class Conversation:
    """The turns of one conversation. `id` is drawn once. `roles`: messages with roles; else a prompt and its answer."""

    id: str
    roles: bool
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def waiting(self) -> Turn | None:
        """The turn that has no answer yet; None if the user speaks next."""
        return self.turns[-1] if self.turns and self.turns[-1].answer is None else None

    @property
    def answered(self) -> list[Turn]:
        """The turns that have an answer."""
        return [turn for turn in self.turns if turn.answer is not None]

    @property
    def draws(self) -> int:
        """How often a model was asked so far: the number of the next draw."""
        return sum(turn.draws for turn in self.turns)

    def prompt(self, place: int) -> Prompt:
        """Return what a model reads before it answers the turn at `place`."""
        if not self.roles:
            return self.turns[place].said
        return [*self._messages(self.turns[:place]), _message("user", self.turns[place].said)]

    def demonstration(self) -> dict[str, Any]:
        """Return the answered turns as a row of demonstrations."""
        if self.roles:
            return {"messages": self._messages(self.answered)}
        (turn,) = self.answered
        return {"prompt": turn.said, "completion": turn.answer}

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        found = [] if self.system is None else [_message("system", self.system)]
        for turn in turns:
            found += [_message("user", turn.said), _message("assistant", turn.answer or "")]
        return found

    def labels(self, annotator: str) -> list[tuple[Item, Event]]:
        """Return what the person said about suggestions, as items and labels.

        The ranked suggestions of a turn are one item, in the order of the screen. An own answer ranks above them, and
        with each suggestion that has no rank it makes an item of two.
        """
        found = []
        for place, turn in enumerate(self.turns):
            for texts, origins, ranks in _compared(turn):
                responses: list[Prompt] = [self._response(text) for text in texts]
                item = make_item(self.prompt(place), responses, origins)
                key = hashlib.sha256(f"{self.id} {place} {item.id}".encode()).hexdigest()[:32]
                shown = None if PERSON in origins else tuple(range(len(texts)))
                event = Event(
                    key=WRITTEN + key,
                    kind="label",
                    item=item.id,
                    annotator=annotator,
                    ranks=ranks,
                    shown=shown,
                    origins=item.origins,
                    seconds=turn.seconds,
                )
                found.append((item, event))
        return found

    def _response(self, text: str) -> Prompt:
        return [_message("assistant", text)] if self.roles else text

    def as_dict(self) -> dict[str, Any]:
        """Return the conversation as JSON holds it."""
        return asdict(self)


def conversation_of(values: Mapping[str, Any]) -> Conversation:
    """Read what `as_dict` returned; TypeError, KeyError or ValueError for anything else."""
    turns = [
        Turn(**{**turn, "suggestions": [Suggestion(**one) for one in turn["suggestions"]]}) for turn in values["turns"]
    ]
    return Conversation(**{**values, "turns": turns})


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _compared(turn: Turn) -> list[tuple[list[str], list[str], tuple[int, ...]]]:
    """List the comparisons of a turn: texts, who wrote each, and the rank of each, 0 for the best."""
    if turn.answer is None:
        return []
    rank = {place: number for number, group in enumerate(turn.ranked) for place in group}
    texts = [turn.suggestions[place].text for place in sorted(rank)]
    origins = [turn.suggestions[place].by for place in sorted(rank)]
    ranks = [rank[place] for place in sorted(rank)]
    if not turn.is_own:
        return [(texts, origins, tuple(ranks))] if rank else []
    own = turn.answer
    ranked = [([*texts, own], [*origins, PERSON], (*(one + 1 for one in ranks), 0))] if rank else []
    others = [one for place, one in enumerate(turn.suggestions) if place not in rank]
    return [*ranked, *(([one.text, own], [one.by, PERSON], (1, 0)) for one in others)]
