"""How to sample, what a response is, and the counted random numbers that every way of sampling draws from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.data.chat import written_turn_end
from rlhfctl.data.encoding import stop_token_id
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Ppo


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` None is greedy; `stop_ids` None ends at the model's end tokens, () at the length.

    `top_k` 0 and `top_p` 1 keep the whole distribution. `stream` separates draws that share seed and episode.
    """

    max_new_tokens: int
    temperature: float | None
    batch_size: int
    seed: int
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    stream: int = 0

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from a part of the distribution only."""
        return self.temperature is not None and (self.top_k > 0 or self.top_p < 1.0)


def sampling_for(section: Ppo, tokenizer: PreTrainedTokenizerBase, *, seed: int, stream: int) -> Sampling:
    """How the section samples, in training and in evaluation alike. RecipeError for a stop token that is none."""
    stop = section.stop_token
    return Sampling(
        section.response_length,
        section.temperature,
        section.local_rollout_forward_batch_size,
        seed,
        top_k=section.top_k,
        top_p=section.top_p,
        stop_ids=() if stop is None else None if stop == "eos" else (stop_token_id(stop, tokenizer),),
        stop_strings=stop_strings(section, tokenizer),
        stream=stream,
    )


def stop_strings(section: Ppo, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The texts that end a response: the recipe's, and the template's end of a turn where it is no token."""
    mark = written_turn_end(tokenizer)
    return (*section.stop_strings, *(() if mark is None else (mark,)))


@dataclass(frozen=True)
class Response:
    """Ids of one response, its end token included where it ended by itself.

    `logprobs`: of each token under the full distribution at the sampling temperature. `kept`: log of the probability
    that top-k and top-p left to draw from at each position, 0 without them.
    """

    ids: list[int]
    ended: bool
    logprobs: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)  # of each state, and of the one after an end, if asked for


class Generator(Protocol):
    """Samples one response for each prompt, in order: local.sample here, another engine elsewhere.

    `episodes` numbers the prompts for the counted noise (None: 0, 1, 2, ...). `value_head` reads the hidden states
    (N, H) as they pass, for `Response.values`. `on_batch` is told how many responses are done, `what` names the work.
    """

    def __call__(
        self,
        policy: LanguageModel | nn.Module,
        prompts: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        /,
        on_batch: Callable[[int], None] = ...,
        episodes: Sequence[int] | None = None,
        value_head: Callable[[Tensor], Tensor] | None = None,
        what: str = ...,
    ) -> list[Response]: ...


def uniforms(seed: int, stream: int, episode: int, count: int) -> np.ndarray:
    """The first `count` of an episode's numbers in [0, 1): Philox, counted by stream and episode (Salmon 2011)."""
    generator = np.random.Philox(key=[seed, 0], counter=[0, 0, stream, episode])
    return np.random.Generator(generator).random(count)


def inverse_cdf(probabilities: Tensor, noise: Tensor) -> Tensor:
    """The first token of each row at which the cumulative probability exceeds the row's noise.

    (B, V) and (B,) in [0, 1) to (B,). Probabilities need not add up to exactly 1; a token of probability 0 is never
    drawn.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(noise.to(total.dtype)[:, None] * total, below_total)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def truncated(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """`probabilities` (B, V), 0 but for the `top_k` likeliest, then but for the likeliest that make up `top_p`."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    if top_p < 1.0:
        within = ordered.masked_fill(~keep, 0.0)
        before = within.cumsum(-1) - within
        keep &= before < top_p * within.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(~keep, 0.0))
