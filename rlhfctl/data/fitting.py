"""Decide which prompts fit: drop or cut prompts that are too long for the model's context, and count them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder, is_conversation
from rlhfctl.data.store import KEPT, Store, TokenIds
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Data


@dataclass(frozen=True)
class FittedPrompts:
    """The rows whose prompts leave room for a response, their ids, and the number of cut and dropped prompts.

    `limit`: maximum tokens per prompt (None: any number). `cut` prompts are shortened, `dropped` prompts are left out.
    """

    rows: Sequence[Row]
    ids: Sequence[list[int]]
    cut: int
    dropped: int
    limit: int | None


def fit_to_context(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, context: int | None, response_length: int, section: Data
) -> FittedPrompts:
    """Fit prompts into the context that a response leaves free, and into data.max_prompt_length."""
    limit = longest_prompt(section.max_prompt_length, context, response_length)
    return FittedPrompts(*fit_prompts(rows, Encoder(tokenizer), limit, section.overlong_prompts), limit)


def encode_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    response_length: int,
    section: Data,
    warn: Callable[[str], None],
) -> tuple[Sequence[Row], Sequence[list[int]]]:
    """Encode the prompts that PPO can answer; report how many are cut or dropped.

    DataError if a response leaves no room for any prompt, or no prompt fits.
    """
    limit = longest_prompt(section.max_prompt_length, context, response_length)
    if limit is not None and limit <= 0:
        raise DataError(
            f"a response of {response_length} tokens leaves no room for a prompt in a context of {context}",
            where="ppo.response_length",
            fix="lower it",
        )
    fitted = fit_to_context(rows, tokenizer, context, response_length, section)
    for count, done in ((fitted.cut, "cut within their content"), (fitted.dropped, "dropped")):
        if count:
            warn(f"{count} of {len(rows)} prompts are longer than {limit} tokens and are {done}")
    if rows and not fitted.rows:
        stated = limit == section.max_prompt_length
        room = (
            f"data.max_prompt_length={limit}"
            if stated
            else f"the {limit} that the model's context of {context} leaves beside a response of {response_length}"
        )
        key = "data.max_prompt_length" if stated else "ppo.response_length"
        raise DataError(
            f"all {len(rows)} prompts have more tokens than {room}",
            where="data.prompts",
            fix=f"{'raise' if stated else 'lower'} {key}, give shorter prompts, or cut them: "
            "data.overlong_prompts: truncate",
        )
    return fitted.rows, fitted.ids


def fit_lengths(lengths: Sequence[int], context: int | None, response_length: int, section: Data) -> list[int]:
    """Predict the lengths of fitted prompts from lengths alone: a cut prompt has exactly the limit."""
    limit = longest_prompt(section.max_prompt_length, context, response_length)
    if limit is None:
        return list(lengths)
    cut = section.overlong_prompts == "truncate"
    return [min(length, limit) for length in lengths if cut or length <= limit]


def fit_prompts(
    rows: Sequence[Row], encoder: Encoder, limit: int | None, overlong: str
) -> tuple[Sequence[Row], Sequence[list[int]], int, int]:
    """Return rows whose prompts have at most `limit` ids, their ids, and how many were cut and dropped.

    With `overlong: truncate` a longer prompt is cut within its content, and its row holds the shorter prompt: policy,
    reward and judge all read the same text. A prompt that cannot be cut is dropped.
    """
    kept: Store[Row] = Store()
    ids, cut, dropped = TokenIds(), 0, 0
    for row in Work("encoding prompts", len(rows), "prompt").through(rows):
        tools = row.get("tools") if is_conversation(row) else None
        prompt = encoder.prompt(row["prompt"], tools)
        if limit is not None and len(prompt) > limit:
            shorter = encoder.shortened(row["prompt"], limit, tools) if overlong == "truncate" else None
            if shorter is None:
                dropped += 1
                continue
            row = {**row, "prompt": shorter}
            prompt, cut = encoder.prompt(shorter, tools), cut + 1
        kept.append(row)
        ids.append(prompt)
    return kept.items(), ids if len(ids) > KEPT else list(ids), cut, dropped


def longest_prompt(stated: int | None, context: int | None, response: int) -> int | None:
    """Return the maximum tokens per prompt: data.max_prompt_length, and the context that a response leaves free.

    None if neither is known; 0 or less if the response alone fills the context.
    """
    return min((one for one in (stated, context and context - response) if one is not None), default=None)


def longest_row(stated: int | None, context: int | None) -> tuple[int | None, str]:
    """Return the maximum tokens of a demonstration or a side of a pair, and the limit's name; None without a limit."""
    if context is not None and (stated is None or stated > context):
        return context, f"the model's context of {context}"
    return stated, f"max_length={stated}"
