"""Rows to ids: the one place where text and conversations become tokens, for every stage alike.

Rules: one beginning-of-sequence at most; ids(prompt) is exactly what PPO generates from; a response ends with the
end-of-turn token and nothing after it (chat templates that add a newline there are cut), so the reward model reads
the same last token in training as in PPO. Leaves out batching and padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl.errors import DataError
from rlhfctl.training.data import Prompt, Row

IGNORED = -100  # torch's cross-entropy leaves this label out


@dataclass
class Encoder:
    """A tokenizer with the rules above, and counts of what did not fit them."""

    tokenizer: PreTrainedTokenizerBase
    boundary_mismatches: int = field(default=0, init=False)
    encoded: int = field(default=0, init=False)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Ids to generate from: the text, or the conversation with the assistant's turn opened."""
        if isinstance(prompt, str):
            return self._text(prompt)
        return self._template(prompt, add_generation_prompt=True)

    def pair(self, prompt: Prompt, completion: Prompt) -> tuple[list[int], list[int]]:
        """(ids of the prompt, ids of the response with its end token)."""
        prompt_ids = self.prompt(prompt)
        if isinstance(prompt, str):
            assert isinstance(completion, str)
            whole = self._text(prompt + completion)
            alone = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        else:
            whole = self._template([*prompt, *completion], add_generation_prompt=False)
            alone = None
        self.encoded += 1
        if whole[: len(prompt_ids)] == prompt_ids:
            response = whole[len(prompt_ids) :]
        else:
            # A token spans the boundary. PPO generates from ids(prompt), so these are kept and the response stands alone.
            self.boundary_mismatches += 1
            response = alone if alone is not None else self._rendered_rest(prompt, completion)
        return prompt_ids, self._ended(list(response))

    def demonstration(
        self, row: Row, *, completion_only_loss: bool | None = None, assistant_only_loss: bool = False
    ) -> dict[str, list[int]]:
        """`input_ids` and `labels` of one demonstration; labels are IGNORED where no loss is taken.

        As in TRL: of prompt+completion rows the completion is learned (unless completion_only_loss is False), of
        messages and text everything (with assistant_only_loss the assistant's turns only).
        """
        if "prompt" in row:
            prompt_ids, response = self.pair(row["prompt"], row["completion"])
            masked = len(prompt_ids) if completion_only_loss is not False else 0
            ids = prompt_ids + response
            return {"input_ids": ids, "labels": [IGNORED] * masked + ids[masked:]}
        if "text" in row:
            ids = self._ended(self._text(row["text"]))
            return {"input_ids": ids, "labels": list(ids)}
        messages = row["messages"]
        ids = self._ended(self._template(messages, add_generation_prompt=False))
        if not assistant_only_loss:
            return {"input_ids": ids, "labels": list(ids)}
        labels = [IGNORED] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index == 0:
                continue
            start = len(self._template(messages[:index], add_generation_prompt=True))
            end = start + len(self.pair(messages[:index], [message])[1])
            labels[start:end] = ids[start:end]
        return {"input_ids": ids, "labels": labels}

    def preference(self, row: Row) -> dict[str, list[int]]:
        """`chosen_ids` and `rejected_ids`: the whole sequence of each side."""
        sides = {}
        for side in ("chosen", "rejected"):
            prompt_ids, response = self.pair(row["prompt"], row[side])
            sides[f"{side}_ids"] = prompt_ids + response
        return sides

    def warning(self, what: str) -> str | None:
        """A sentence about prompts whose end merged with their response, or None."""
        if not self.boundary_mismatches:
            return None
        return (
            f"in {self.boundary_mismatches} of {self.encoded} {what} the tokens of prompt + response differ from those of "
            "the whole text: the prompt's own tokens are used, as in generation"
        )

    # ------------------------------------------------------------ details

    def _text(self, text: str) -> list[int]:
        ids: list[int] = list(self.tokenizer(text)["input_ids"])
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if ids and ids[-1] == eos and not text.endswith(str(self.tokenizer.eos_token)):
            ids = ids[:-1]  # a tokenizer that closes every text; the response closes itself
        return ids

    def _template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        require_template(self.tokenizer)
        return list(
            self.tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True
            )["input_ids"]
        )

    def _rendered_rest(self, prompt: Prompt, completion: Prompt) -> list[int]:
        def render(messages: Sequence[Any], opened: bool) -> str:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened))

        opened, whole = render(prompt, True), render([*prompt, *completion], False)
        if not whole.startswith(opened):
            raise DataError(
                "the chat template renders a prompt differently once a response follows it, so the policy would be "
                "trained on other text than it is asked with",
                where="chat template",
                fix="set model.chat_template to one in which a conversation only grows at its end",
            )
        return list(self.tokenizer(whole[len(opened) :], add_special_tokens=False)["input_ids"])

    def _ended(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        tail = len(ids) - 1 - ids[::-1].index(eos) if eos in ids else None
        if tail is not None and not self.tokenizer.decode(ids[tail + 1 :]).strip():
            return ids[: tail + 1]
        return [*ids, eos]


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """DataError when conversations come and the tokenizer has no chat template."""
    if tokenizer.chat_template is None:
        raise DataError(
            "the rows are conversations but the tokenizer has no chat template",
            where="model",
            fix="set model.chat_template to a .jinja file in the recipe; it is stored with the trained model",
        )


def is_conversation(row: Row) -> bool:
    """Whether a row holds messages rather than text."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def adopt_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Make the token with which the chat template closes the assistant's turn the end-of-sequence token.

    A policy is stopped by end-of-sequence; where the template closes turns with another special token it would never
    stop. Returns a sentence when something changed.
    """
    marker = "rlhfctl-response"
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
    text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    tail = text.rsplit(marker, 1)[-1].strip()
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    if not ids or ids[0] == tokenizer.eos_token_id or ids[0] not in tokenizer.all_special_ids:
        return None
    was = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    return f"the chat template closes turns with {tokenizer.eos_token}: it replaces {was} as end-of-sequence"


def texts_of(rows: Iterable[Row]) -> Iterable[str]:
    """The plain text of rows, for training a tokenizer."""
    for row in rows:
        if "messages" in row:
            yield "\n".join(message["content"] for message in row["messages"])
        elif "text" in row:
            yield row["text"]
        else:
            yield _plain(row["prompt"]) + _plain(row["completion"])


def _plain(value: Prompt) -> str:
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)
