"""Define episodes and reward functions: a reward function returns one score per episode, higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol


@dataclass(frozen=True)
class Episode:
    """One prompt and one response, as ids and as text, and the row of the prompt.

    `prompt` and `completion` are strings, or lists of messages if the row is a conversation.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    prompt: Any
    completion: Any
    row: dict[str, Any]


class RewardFunction(Protocol):
    """Score a batch of episodes: one float per episode."""

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]: ...


def parts_of(reward: RewardFunction) -> dict[str, list[float | None]]:
    """Get the scores of each part of a weighted sum in its last call, by name; empty for a single scorer."""
    parts: dict[str, list[float | None]] = getattr(reward, "parts", {})
    return parts


def part_means(parts: dict[str, list[float | None]]) -> dict[str, float]:
    """Compute the metrics of a weighted sum: `reward/NAME`, each part's mean over the rows that it scored."""
    scored = {name: [one for one in part if one is not None] for name, part in parts.items()}
    return {f"reward/{name}": fmean(part) for name, part in scored.items() if part}


def logged_means(reward: RewardFunction) -> dict[str, float]:
    """Compute the metrics that reward functions logged in the last call: `logged/NAME`, the mean of the values."""
    logged: dict[str, list[float]] = getattr(reward, "logged", {})
    return {f"logged/{name}": fmean(values) for name, values in logged.items() if values}


def extras_of(reward: RewardFunction) -> dict[str, list[Any]]:
    """Get the columns that reward functions logged in the last call, one value per episode."""
    extras: dict[str, list[Any]] = getattr(reward, "extras", {})
    return extras


def make_episode(
    tokenizer: Any,
    row: dict[str, Any],
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    stop_strings: Sequence[str] = (),
) -> Episode:
    """Make an episode: decode the completion without special tokens, as text or as messages like the row's prompt.

    The completion is cut before the first stop string. Its ids are then those of the cut text and the end token, the
    form in which a reward model read its training rows.
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
    """Return ids for `text` with the end token: the beginning of `ids` if it decodes to `text`, else new ids."""
    for count in range(len(ids)):
        if tokenizer.decode(ids[:count], skip_special_tokens=True) == text:
            return [*ids[:count], tokenizer.eos_token_id]
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
