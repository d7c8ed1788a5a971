"""Encode rows as token ids: the only place where text and conversations become tokens, for every stage alike.

Rules: there is at most one beginning-of-sequence token; ids(prompt) is exactly the input of PPO's generation; a
response ends with the end-of-turn token and nothing after it (a newline that a chat template adds there is cut). The
reward model therefore reads the same last token in training and in PPO. Leaves out batching and padding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rlhfctl.data import templates
from rlhfctl.data.chat import broken_template, require_template, written_turn_end
from rlhfctl.data.types import PreferenceGroup, Prompt, Row, Rows
from rlhfctl.errors import DataError, Problem, RecipeError


def adopt_training_variant(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]) -> str | None:
    """Replace a chat template that renders earlier turns of `rows` differently with TRL's training variant.

    Losses on the assistant's turns only need a conversation that only grows. Returns a sentence if something changed;
    None if the template grows, or if TRL has no variant of it (the row that fails then reports it).
    """
    if not isinstance(tokenizer.chat_template, str):
        return None
    encoder = Encoder(tokenizer)
    failing = [row for row in rows if "messages" in row and not encoder.grows(row["messages"], row.get("tools"))]
    if not failing:
        return None
    from trl.chat_template_utils import get_training_chat_template  # three seconds of imports, which few runs need

    own = tokenizer.chat_template
    try:
        variant = get_training_chat_template(tokenizer)
    except Exception:  # noqa: BLE001 - TRL does not know the template, or it fails in TRL's tests
        return None
    if variant is None:
        return None
    tokenizer.chat_template = templates.without_generation_marks(variant)
    if not any(encoder.grows(row["messages"], row.get("tools")) for row in failing):
        tokenizer.chat_template = own
        return None
    return (
        "the chat template renders earlier turns differently once others follow: TRL's training variant of it, which "
        "does not, is used and stored with the tokenizer"
    )


IGNORED = -100  # torch's cross-entropy leaves this label out
Tools = Sequence[dict[str, Any]] | None  # functions that a row offers the model; its chat template writes them out


@dataclass(frozen=True)
class EncodedGroup:
    """A preference group as ids: each response once, even if it is in several pairs."""

    group: PreferenceGroup
    ids: tuple[list[int], ...]  # per response: the whole sequence with its prompt; empty for a response in no pair

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """List `chosen_ids` and `rejected_ids` of each pair of the group, and `margin` if it has one."""
        more = {} if self.group.margin is None else {"margin": self.group.margin}
        return [
            more | {"chosen_ids": self.ids[better], "rejected_ids": self.ids[worse]}
            for better, worse in self.group.comparisons
        ]

    def within(self, limit: int) -> list[EncodedGroup]:
        """Return the group with the pairs whose sides have at most `limit` ids; an empty list if none is left."""
        kept = tuple(two for two in self.group.comparisons if all(len(self.ids[index]) <= limit for index in two))
        return [EncodedGroup(replace(self.group, comparisons=kept), self.ids)] if kept else []

    def layers(self) -> list[EncodedGroup]:
        """Split the group into groups in which each pair stands once: repeated pairs (a source's weight) make more.

        A loss that is a mean over the pairs of a group would otherwise cancel the weight.
        """
        counts = Counter(self.group.comparisons)
        depths = range(max(counts.values(), default=0))
        layers = [tuple(pair for pair in counts if counts[pair] > depth) for depth in depths]
        return [EncodedGroup(replace(self.group, comparisons=layer), self.ids) for layer in layers]


@dataclass
class Encoder:
    """Encode with a tokenizer by the rules above, and count the rows that do not fit them."""

    tokenizer: PreTrainedTokenizerBase
    boundary_mismatches: int = field(default=0, init=False)
    encoded: int = field(default=0, init=False)

    def prompt(self, prompt: Prompt, tools: Tools = None) -> list[int]:
        """Encode a prompt for generation: the text, or the conversation with the assistant's turn opened."""
        if isinstance(prompt, str):
            return self._text(prompt)
        return self._template(prompt, tools, add_generation_prompt=True)

    def pair(self, prompt: Prompt, completion: Prompt, tools: Tools = None) -> tuple[list[int], list[int]]:
        """Return (ids of the prompt, ids of the response with its end token)."""
        prompt_ids = self.prompt(prompt, tools)
        if isinstance(prompt, str):
            assert isinstance(completion, str)
            whole = self._text(prompt + completion)
        else:
            whole = self._template([*prompt, *completion], tools, add_generation_prompt=False)
        self.encoded += 1
        if whole[: len(prompt_ids)] == prompt_ids:
            response = whole[len(prompt_ids) :]
        else:
            # A token spans the boundary. PPO generates from ids(prompt): keep them, and encode the response separately.
            self.boundary_mismatches += 1
            more = [*prompt, *completion]
            rest = completion if isinstance(completion, str) else self._rest(prompt, more, tools, opened=True)
            response = self._plain(rest)
        return prompt_ids, self._ended(response)

    def demonstration(
        self, row: Row, *, completion_only_loss: bool | None = None, assistant_only_loss: bool = False
    ) -> dict[str, list[int]]:
        """Return `input_ids` and `labels` of one demonstration; a label is IGNORED if the token has no loss.

        The rule is that of TRL: in prompt+completion rows the completion is learned (unless completion_only_loss is
        False), in messages and text everything (with assistant_only_loss only the assistant's turns).
        """
        if "prompt" in row:
            prompt_ids, response = self.pair(row["prompt"], row["completion"], row.get("tools"))
            masked = len(prompt_ids) if completion_only_loss is not False else 0
            ids = prompt_ids + response
            return {"input_ids": ids, "labels": [IGNORED] * masked + ids[masked:]}
        if "text" in row:
            ids = self._ended(self._text(row["text"]))
            return {"input_ids": ids, "labels": list(ids)}
        messages, tools = row["messages"], row.get("tools")
        ids = self._ended(self._template(messages, tools, add_generation_prompt=False))
        if not assistant_only_loss:
            return {"input_ids": ids, "labels": list(ids)}
        labels = [IGNORED] * len(ids)
        exact = True
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index == 0:
                continue
            opened = self._template(messages[:index], tools, add_generation_prompt=True)
            closed = self._closed(self._template(messages[: index + 1], tools, add_generation_prompt=False))
            start, end = _shared(ids, opened), _shared(ids, closed)
            if start < len(opened) or end < len(closed):
                exact = False
                self._rest(
                    messages[:index], messages, tools, opened=True
                )  # tokens may merge, but the text must only grow
                self._rest(messages[: index + 1], messages, tools, opened=False)
            if index == len(messages) - 1:
                end = len(ids)
            labels[start:end] = ids[start:end]
        self.encoded += 1
        self.boundary_mismatches += not exact
        return {"input_ids": ids, "labels": labels}

    def shortened(self, prompt: Prompt, limit: int, tools: Tools = None) -> Prompt | None:
        """Cut `prompt` within its content until it has at most `limit` ids; None if even that is too long.

        In a conversation the oldest turns go first, but never the system's and never the last; then the beginning of
        the last message. In a text the beginning goes. BOS, the system turn and the template's marks stay.
        """
        if isinstance(prompt, str):
            return self._cut_text(prompt, limit, lambda text: text, None)
        kept = [message for message in prompt if message["role"] == "system"][:1]
        turns = prompt[len(kept) :]
        while len(turns) > 1 and len(self.prompt([*kept, *turns], tools)) > limit:
            turns = turns[1:]
            while len(turns) > 1 and turns[0]["role"] != "user":  # a conversation begins with the user
                turns = turns[1:]
        if len(self.prompt([*kept, *turns], tools)) <= limit:
            return [*kept, *turns]
        last = turns[-1]
        return self._cut_text(
            last["content"], limit, lambda text: [*kept, *turns[:-1], {**last, "content": text}], tools
        )

    def _cut_text(self, text: str, limit: int, build: Callable[[str], Prompt], tools: Tools) -> Prompt | None:
        """Cut `text` at its beginning, at a token, until `build` makes a prompt of at most `limit` ids of it."""
        ids = self._plain(text)
        room = limit - (len(self.prompt(build(text), tools)) - len(ids))
        for count in range(min(room, len(ids) - 1), 0, -1):
            end = self.tokenizer.decode(ids[len(ids) - count :], skip_special_tokens=False).lstrip("\ufffd")
            if end.strip() and len(self.prompt(build(end), tools)) <= limit:
                return build(end)
        return None

    def preference(self, group: PreferenceGroup) -> EncodedGroup:
        """Encode the responses of a group, each once; the warning counts the sides of its pairs."""
        uses = Counter(index for comparison in group.comparisons for index in comparison)
        ids: list[list[int]] = [[] for _ in group.responses]
        for index, times in uses.items():
            before = self.boundary_mismatches
            prompt_ids, response = self.pair(group.prompt, group.responses[index], group.tools)
            ids[index] = prompt_ids + response
            self.boundary_mismatches += (times - 1) * (self.boundary_mismatches - before)
            self.encoded += times - 1
        return EncodedGroup(group, tuple(ids))

    def warning(self, what: str) -> str | None:
        """Return a sentence about prompts whose end merged with their response, or None."""
        if not self.boundary_mismatches:
            return None
        return (
            f"in {self.boundary_mismatches} of {self.encoded} {what} prompt + response have other tokens than "
            "the whole text: the prompt's own tokens are used, as in generation"
        )

    # ------------------------------------------------------------ details

    def _plain(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:
            raise DataError(
                f"the tokenizer cannot read the text {text[:60]!r}: {error}",
                where="model.init.tokens",
                fix="list tokens that cover every text, or leave model.init.tokens out",
            ) from error

    @cached_property
    def _opening(self) -> list[int]:
        """Return the ids that the tokenizer puts before every text (BOS), without ids that it puts after one."""
        try:
            alone, whole = self._plain("a"), list(self.tokenizer("a")["input_ids"])
        except DataError:  # a vocabulary without "a": the tokenizer puts nothing before texts
            return []
        return next(
            (whole[:start] for start in range(len(whole)) if alone and whole[start : start + len(alone)] == alone), []
        )

    def _text(self, text: str) -> list[int]:
        ids = self._plain(text)
        return ids if ids[: len(self._opening)] == self._opening else self._opening + ids

    def _rendered(self, messages: Sequence[Any], **options: Any) -> Any:
        require_template(self.tokenizer)
        try:
            return self.tokenizer.apply_chat_template(list(messages), **options)
        except TemplateSyntaxError as error:
            raise broken_template(error) from error
        except Exception as error:  # a template is a program: it refuses, or it fails
            if options.get("tokenize"):  # if the rendered text has no ids, this raises
                self._plain(str(self._rendered(messages, **options | {"tokenize": False, "return_dict": False})))
            roles = ", ".join(str(message["role"]) for message in messages)
            raise DataError(
                f"the chat template {'refuses' if isinstance(error, TemplateError) else 'fails on'} a conversation "
                f"({roles}): {error}",
                where="chat template",
                fix="give rows that it takes, or set model.chat_template to one that takes them",
            ) from error

    def _template(self, messages: Sequence[Any], tools: Tools, *, add_generation_prompt: bool) -> list[int]:
        options: dict[str, Any] = {"tokenize": True, "return_dict": True, "tools": tools or None}
        options["add_generation_prompt"] = add_generation_prompt
        return list(self._rendered(messages, **options)["input_ids"])

    def _rest(self, messages: Sequence[Any], more: Sequence[Any], tools: Tools, *, opened: bool) -> str:
        """Return the text that continues the conversation `messages` in `more`; DataError if its beginning changed."""
        tools = tools or None
        begun = str(self._rendered(messages, tools=tools, tokenize=False, add_generation_prompt=opened))
        whole = str(self._rendered(more, tools=tools, tokenize=False, add_generation_prompt=False))
        if not opened and self.tokenizer.eos_token:  # some templates end a whole conversation with it
            begun = begun.removesuffix(self.tokenizer.eos_token)
        if not whole.startswith(begun):
            raise DataError(
                "the chat template renders a prompt differently once a response follows it, so the policy would be "
                "trained on other text than it is asked with",
                where="chat template",
                fix="set model.chat_template to one in which a conversation only grows at its end; where it opens a "
                "block of thoughts, model.chat_template_kwargs: {enable_thinking: false} may do",
            )
        return whole[len(begun) :]

    def unwritten(self, messages: Sequence[Any], tools: Tools = None) -> list[str]:
        """List the roles of the turns whose text is missing (white space ignored) when the template renders `messages`.

        DataError if all text of a last turn by the assistant is missing: it would be learned or scored as empty.
        """
        options: dict[str, Any] = {"tools": tools or None, "tokenize": False}
        whole = str(self._rendered(messages, **options))
        text = " ".join(whole.split())
        missing = [turn for turn in messages if " ".join(str(turn.get("content") or "").split()) not in text]
        roles = [turn["role"] for turn in missing]
        *before, last = messages
        if last["role"] != "assistant" or not missing or missing[-1] is not last:
            return roles
        try:
            other = str(self._rendered([*before, {**last, "content": "x" * len(last["content"])}], **options))
        except DataError:  # the template refuses this turn, hence it reads the text of turns
            return roles
        if other == whole:
            raise DataError(
                "the chat template writes nothing of the response",
                where="chat template",
                fix="set model.chat_template to one that writes the assistant's turns",
            )
        return roles

    @cached_property
    def _read_as_tokens(self) -> re.Pattern[str]:
        """A pattern for the special tokens, and the mark that ends a response, in a text."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special |= {mark for mark in (written_turn_end(self.tokenizer),) if mark is not None}
        return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def tokens_within(self, messages: Sequence[Any]) -> list[str]:
        """Find the special tokens in the text of `messages` if the tokenizer reads them as tokens, not as text."""
        return [mark for m in messages for mark in self._read_as_tokens.findall(str(m.get("content") or ""))]

    def grows(self, messages: Sequence[Any], tools: Tools = None) -> bool:
        """Tell whether the text of the conversation up to each assistant's turn begins the text of the whole."""
        try:
            for index, message in enumerate(messages):
                if message["role"] == "assistant" and index:
                    self._rest(messages[:index], messages, tools, opened=True)
                    self._rest(messages[: index + 1], messages, tools, opened=False)
        except DataError:
            return False
        return True

    def _closed(self, ids: list[int]) -> list[int]:
        """Return `ids` without the white space that a template puts after the end token."""
        eos = self.tokenizer.eos_token_id
        tail = len(ids) - 1 - ids[::-1].index(eos) if eos in ids else None
        return ids[: tail + 1] if tail is not None and not self.tokenizer.decode(ids[tail + 1 :]).strip() else ids

    def _ended(self, ids: list[int]) -> list[int]:
        ids = self._closed(ids)
        eos = self.tokenizer.eos_token_id
        return ids if ids[-1:] == [eos] else [*ids, eos]


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Count the ids that both lists begin with."""
    return next(
        (index for index, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others))
    )


def is_conversation(row: Row) -> bool:
    """Tell whether a row holds messages rather than text."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def any_conversation(data: Mapping[str, Rows]) -> bool:
    """Tell whether any row of these data sets is a conversation."""
    return any(is_conversation(row) for rows in data.values() for row in rows.rows)


def texts_of(rows: Iterable[Row]) -> Iterable[str]:
    """Return the plain text of rows, for training a tokenizer."""
    for row in rows:
        if "messages" in row:
            yield "\n".join(message["content"] for message in row["messages"])
        elif "text" in row:
            yield row["text"]
        else:
            yield _plain(row["prompt"]) + _plain(row["completion"])


def _plain(value: Prompt) -> str:
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def stop_token_id(stop: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of `eos`, or of a token given as text; RecipeError unless the text is one token."""
    if stop == "eos":
        eos: int = tokenizer.eos_token_id
        return eos
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        what = f"the tokenizer reads {stop!r} as {len(ids)} tokens, but a stop token is one"
        raise RecipeError([Problem("ppo.stop_token", what, fix="list it under ppo.stop_strings")])
    return int(ids[0])
