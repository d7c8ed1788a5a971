"""What can score a response. Each takes a batch of episodes and gives one number for each, higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol


@dataclass(frozen=True)
class Episode:
    """One prompt with one response, as ids and as text, and the row it came from.

    `prompt` and `completion` are strings, or lists of messages where the row is a conversation.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    prompt: Any
    completion: Any
    row: dict[str, Any]


class RewardFunction(Protocol):
    """A scorer: one float for each episode."""

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]: ...


def parts_of(reward: RewardFunction) -> dict[str, list[float | None]]:
    """What each part of a weighted sum gave in its last call, by name; nothing for a single scorer."""
    parts: dict[str, list[float | None]] = getattr(reward, "parts", {})
    return parts


def part_means(parts: dict[str, list[float | None]]) -> dict[str, float]:
    """The metrics of a weighted sum: `reward/NAME`, each part's mean over the rows that it scored."""
    scored = {name: [one for one in part if one is not None] for name, part in parts.items()}
    return {f"reward/{name}": fmean(part) for name, part in scored.items() if part}


def make_episode(
    tokenizer: Any,
    row: dict[str, Any],
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    stop_strings: Sequence[str] = (),
) -> Episode:
    """An episode whose completion is decoded without special tokens, in the row's own shape (text or messages).

    What begins with a stop string is no part of it: scorers read the text before, and as ids that text with the end
    token, as a reward model read its training rows.
    """
    text = tokenizer.decode(response_ids, skip_special_tokens=True)
    stopped = [text.find(stop) for stop in stop_strings if stop in text]
    if stopped:
        text = text[: min(stopped)]
        response_ids = _ids_of(text, tokenizer, response_ids)
    prompt = row["prompt"]
    completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    return Episode(prompt_ids, response_ids, prompt, completion, row)


def _ids_of(text: str, tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The ids that write `text`, and the end token: the first of `ids` where these do, else the tokenizer's."""
    for count in range(len(ids)):
        if tokenizer.decode(ids[:count], skip_special_tokens=True) == text:
            return [*ids[:count], tokenizer.eos_token_id]
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
