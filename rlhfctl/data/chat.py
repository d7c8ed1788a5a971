"""Inspect a tokenizer's chat template: how it ends turns, and which of its marks are no tokens.

Reads the tokenizer; only `use_template_eos` changes it. Leaves out the texts of chat templates (templates.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rlhfctl.data import templates
from rlhfctl.errors import DataError

_PROBE = "rlhfctl-response"  # the assistant's text in the conversations that test a template


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError if the tokenizer has no chat template, which conversations need."""
    if tokenizer.chat_template is None:
        raise DataError(
            "the rows are conversations but the tokenizer has no chat template",
            where="model",
            fix="set model.chat_template in the recipe, to chatml, human-assistant or zephyr, or to a .jinja file of "
            "your own; it is stored with the trained model",
        )


def use_template_eos(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Make the token with which the chat template closes the assistant's turn the end-of-sequence token.

    A policy stops at end-of-sequence; if the template closes turns with another special token, it would never stop.
    Returns a sentence if something changed.
    """
    ids = _known_ids(tokenizer, _turn_end(tokenizer))
    # all_special_ids holds tokens with a role or a name; others (Llama 3's <|eot_id|>) are only marked as special.
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not ids or ids[0] == tokenizer.eos_token_id or ids[0] not in marked | set(tokenizer.all_special_ids):
        return None
    was = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    return f"the chat template closes turns with {tokenizer.eos_token}: it replaces {was} as end-of-sequence"


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text with which the chat template closes the assistant's turn; empty if it has none."""
    if tokenizer.chat_template is None:
        return ""
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except TemplateSyntaxError as error:
        raise broken_template(error) from error
    except Exception:  # noqa: BLE001 - the template refuses this conversation; checks of the rows will report it
        return ""
    return text.rpartition(_PROBE)[2].strip() if _PROBE in text else ""


def _known_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of `text`; an empty list if the tokenizer cannot read it, or reads it as unknown."""
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception:  # noqa: BLE001 - a vocabulary without an unknown token may raise any error
        return []
    return [] if ids == [tokenizer.unk_token_id] else ids


def written_turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the mark that closes a turn if the tokenizer has no token for it; a model then writes it letter by letter.

    None if the template closes turns with a token, or with white space only. Such a mark ends a response as a stop
    string does, and rewards never read it.
    """
    mark = _turn_end(tokenizer).split("\n")[0].strip()
    if not mark or not mark.startswith("<"):
        return None
    ids = _known_ids(tokenizer, mark)
    return mark if len(ids) != 1 and ids[:1] != [tokenizer.eos_token_id] else None


def template_warnings(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield warnings about a chat template that a policy cannot learn well from, with ways out."""
    before, opens = _written_before(tokenizer)
    if before and opens:
        yield (
            f"the chat template writes {before!r} between the opened turn and the response: the policy has to write it "
            "itself, and rewards read what of it is no special token; a variable may leave it out "
            "(model.chat_template_kwargs: {enable_thinking: false}, say)"
        )
    elif before:
        yield (
            f"the chat template does not open the assistant's turn (add_generation_prompt): the policy has to write "
            f"{before!r} itself, and rewards read it as part of the response; set model.chat_template to one that does"
        )
    mark = written_turn_end(tokenizer)
    if mark is None:
        return
    yield (
        f"the chat template closes turns with {mark}, which is no token of this tokenizer: the model writes it letter "
        "by letter, and it ends a response as a stop string does. With an sft stage and model.template_tokens: add it "
        "becomes a token, and sft trains its row"
    )


def _written_before(tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Return (the text between an opened turn and the assistant's text, whether the template opens turns at all)."""
    if tokenizer.chat_template is None:
        return "", True
    question = [{"role": "user", "content": "a"}]
    try:
        opened, closed = (
            str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=opens))
            for opens in (True, False)
        )
        whole = str(
            tokenizer.apply_chat_template([*question, {"role": "assistant", "content": _PROBE}], tokenize=False)
        )
    except Exception:  # noqa: BLE001 - it refuses this conversation or is broken; checks of the rows report it
        return "", True
    if not whole.startswith(opened) or _PROBE not in whole:
        return "", True
    return whole[len(opened) :].partition(_PROBE)[0].strip(), opened != closed


def marks_without_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the marks of the chat template that the tokenizer has no tokens for, if it closes turns with such a mark.

    Empty if a token closes turns: other marks are then meant as text.
    """
    if written_turn_end(tokenizer) is None:
        return []
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    written = ""
    for messages in ([{"role": "system", "content": "a"}, *turns], turns):
        with contextlib.suppress(Exception):  # a template may refuse a system turn
            written += str(tokenizer.apply_chat_template(messages, tokenize=False))
            written += str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    known = tokenizer.get_vocab()
    return [mark for mark in templates.marks_in(written) if mark not in known]


def broken_template(error: TemplateSyntaxError) -> DataError:
    """Make the error about a chat template that is no valid Jinja."""
    return DataError(
        f"the chat template is no valid Jinja: {error.message} in its line {error.lineno}",
        where="chat template",
        fix="correct it (model.chat_template, or chat_template.jinja in the model's folder)",
    )
