"""Decide which prompts fit: drop or cut those that are too long for the model's context, and count them."""

from __future__ import annotations

from collections.abc import Sequence

from rlhfctl.data.encoding import Encoder, is_conversation
from rlhfctl.data.types import Row
from rlhfctl.events import Work


def fit_prompts(
    rows: Sequence[Row], encoder: Encoder, limit: int | None, overlong: str
) -> tuple[list[Row], list[list[int]], int, int]:
    """Rows whose prompts have at most `limit` ids, their ids, and how many were cut and dropped.

    With `overlong: truncate` a longer prompt is cut within its content, and its row holds the shorter prompt: whoever
    reads the row, policy, reward or judge, reads the same text. What cannot be cut is dropped.
    """
    kept, ids, cut, dropped = [], [], 0, 0
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
    return kept, ids, cut, dropped


def longest_prompt(stated: int | None, context: int | None, response: int) -> int | None:
    """The most tokens of a prompt: data.max_prompt_length, and what the context leaves beside a response.

    None where neither is known; 0 or less where the response alone fills the context.
    """
    return min((one for one in (stated, context and context - response) if one is not None), default=None)


def longest_row(stated: int | None, context: int | None) -> tuple[int | None, str]:
    """The most tokens of a demonstration or of a pair's side, and what sets it, in words; None where nothing does."""
    if context is not None and (stated is None or stated > context):
        return context, f"the model's context of {context}"
    return stated, f"max_length={stated}"
