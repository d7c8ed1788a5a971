"""Hold the state of a chat: its turns, the answers to each, the preferred answer; and write labelled turns to a file.

With a chat template a prompt is the conversation so far. Without one each text is a prompt of its own, as in training.
Reads and writes the file of `/save` only; loads no model and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhfctl.errors import RlhfctlError

Prompt = str | list[dict[str, Any]]
Row = dict[str, Any]

SIDES = ("left", "right")
_ENDINGS = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Answer:
    """One model's answer. `ended`: by itself; `stopped`: by Ctrl-C; `score`: the reward's, None where there is none."""

    by: str
    text: str
    tokens: int
    ended: bool
    stopped: bool = False
    score: float | None = None

    def described(self) -> str:
        """Describe the answer in a few words: score, length, and how it ended."""
        score = [] if self.score is None else [f"score {self.score:.3g}"]
        end = ["stopped"] if self.stopped else [] if self.ended else ["cut at the longest length"]
        return ", ".join([*score, f"{self.tokens} token{'' if self.tokens == 1 else 's'}", *end])


@dataclass
class Turn:
    """A text of the user and one or two answers to it. `prompt`: what the models read.

    `used`: the index of the answer with which the conversation goes on. `preferred`: the index of the answer that the
    person prefers; None while nothing is said.
    """

    text: str
    prompt: Prompt
    answers: list[Answer]
    used: int = 0
    preferred: int | None = None
    saved: bool = False

    def prefer(self, side: str) -> Answer:
        """Prefer the answer on a side, and go on with it; RlhfctlError if that would be no usable pair."""
        if side not in SIDES:
            raise RlhfctlError(
                f"there is no side {side!r}" if side else "no side is named", fix="/prefer left or right"
            )
        if len(self.answers) < len(SIDES):
            raise RlhfctlError(
                "there is one answer only, so none can be preferred",
                fix="/again draws another one (left is then the earlier), or /against NAME asks a second model",
            )
        if self.saved:
            raise RlhfctlError("this turn is saved already", fix="edit the file, or ask anew")
        texts = [answer.text for answer in self.answers]
        if texts[0] == texts[1] or not all(text.strip() for text in texts):
            what = "both answers are the same" if texts[0] == texts[1] else "an answer is empty"
            raise RlhfctlError(f"{what}: a reward model cannot learn from this pair", fix="/again draws others")
        if any(answer.stopped for answer in self.answers):
            raise RlhfctlError("an answer was stopped, so it is not what the model says", fix="/again draws others")
        self.used = self.preferred = SIDES.index(side)
        return self.answers[self.used]

    def row(self) -> Row:
        """Return the labelled turn as a row of preferences."""
        assert self.preferred is not None
        better, worse = self.answers[self.preferred], self.answers[1 - self.preferred]
        conversation = isinstance(self.prompt, list)

        def written(answer: Answer) -> Prompt:
            return [{"role": "assistant", "content": answer.text}] if conversation else answer.text

        sides = {"prompt": self.prompt, "chosen": written(better), "rejected": written(worse)}
        return sides | {"chosen_by": better.by, "rejected_by": worse.by}


@dataclass
class Conversation:
    """The turns of a chat. `roles`: the models read messages with roles; else each text is a prompt of its own."""

    roles: bool
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def prompt(self, text: str) -> Prompt:
        """Return what the models read if the user says `text` next."""
        if not self.roles:
            return text
        messages = [] if self.system is None else [_message("system", self.system)]
        for turn in self.turns:
            messages += [_message("user", turn.text), _message("assistant", turn.answers[turn.used].text)]
        return [*messages, _message("user", text)]

    @property
    def last(self) -> Turn:
        """The last turn; RlhfctlError if there is none."""
        if not self.turns:
            raise RlhfctlError("nothing has been said yet", fix="write something first")
        return self.turns[-1]

    def set_system(self, text: str) -> None:
        """Set the system message from here on; an empty text removes it."""
        if not self.roles:
            raise RlhfctlError(
                "these prompts are plain texts, which have no system message", fix="write it into the prompt itself"
            )
        self.system = text or None

    def save(self, file: Path) -> int:
        """Append the labelled turns that are not saved yet to a file of preferences; return their number."""
        labelled = [turn for turn in self.turns if turn.preferred is not None]
        if not labelled:
            raise RlhfctlError("no answer is preferred yet", fix="/prefer left or /prefer right, then /save FILE")
        new = [turn for turn in labelled if not turn.saved]
        if not new:
            raise RlhfctlError("every labelled turn is saved already", fix="label another turn first")
        append_rows(file, [turn.row() for turn in new])
        for turn in new:
            turn.saved = True
        return len(new)


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def append_rows(file: Path, rows: Sequence[Row]) -> None:
    """Append rows to a JSONL file of preferences, which is made if it is missing; RlhfctlError for any other file."""
    if file.suffix not in _ENDINGS:
        raise RlhfctlError("rows are saved as JSON lines", where=str(file), fix="name a file that ends in .jsonl")
    separator = ""
    if file.exists():
        separator = _separator(file, rows[0])
    text = separator + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise RlhfctlError(f"cannot be written: {error.strerror}", where=str(file), fix="name another file") from error


def _separator(file: Path, row: Row) -> str:
    """Return the line end that the file lacks; RlhfctlError unless its last row is a preference of the same kind."""
    another = "name another file: this one is left as it is"
    try:
        text = file.read_text(encoding="utf-8")
        last = json.loads(text.splitlines()[-1]) if text.strip() else row
    except OSError as error:
        raise RlhfctlError(f"cannot be read: {error.strerror}", where=str(file), fix=another) from error
    except ValueError as error:
        raise RlhfctlError("its last line is no JSON", where=str(file), fix=another) from error
    if not isinstance(last, dict) or not {"chosen", "rejected"} <= last.keys():
        raise RlhfctlError("holds other rows than preferences (chosen, rejected)", where=str(file), fix=another)
    if isinstance(last["chosen"], str) is not isinstance(row["chosen"], str):
        kinds = "texts", "conversations"
        has, new = kinds if isinstance(last["chosen"], str) else kinds[::-1]
        raise RlhfctlError(f"holds {has}, and this chat's turns are {new}", where=str(file), fix=another)
    return "" if not text or text.endswith("\n") else "\n"
