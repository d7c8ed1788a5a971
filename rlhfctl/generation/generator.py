"""Define sampling settings, responses, the Generator protocol, and the random numbers that all generators use.

Each random number is a function of (seed, stream, episode, position), so batch size and order change no draw.
"""

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
class TokenMask:
    """Restrict what is sampled to the likeliest tokens of the masking `policy` that reach `top_mask` (masking.py)."""

    policy: LanguageModel
    top_mask: float


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    `temperature`: None means greedy. `stop_ids`: None means the model's end tokens, () means no end before the longest
    length. `top_k` 0 and `top_p` 1 keep the whole distribution. `stream` separates draws of the same seed and episode.
    `mask`: a policy beside the one that samples, whose likely tokens alone may be drawn; not with top-k or top-p.
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
    mask: TokenMask | None = None

    @property
    def truncates(self) -> bool:
        """Tell whether tokens are drawn from a part of the distribution (top-k or top-p)."""
        return self.temperature is not None and (self.top_k > 0 or self.top_p < 1.0)


def sampling_for(section: Ppo, tokenizer: PreTrainedTokenizerBase, *, seed: int, stream: int) -> Sampling:
    """Make the sampling settings of the ppo section, for training and evaluation. RecipeError for an unknown token."""
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
    """Collect the texts that end a response: the recipe's, and the template's end of turn if it is not one token."""
    mark = written_turn_end(tokenizer)
    return (*section.stop_strings, *(() if mark is None else (mark,)))


@dataclass(frozen=True)
class Response:
    """The token ids of one response, with its end token if it ended by itself.

    `logprobs`: log-probability per token under the full distribution at the sampling temperature. `kept`: log of the
    total probability that top-k, top-p or a masking policy kept, per token; 0 without them. `allowed`: the tokens that
    a masking policy allowed, ceil(V / 8) bytes per token of the response (tensors.packed_bits).
    """

    ids: list[int]
    ended: bool
    logprobs: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)  # one per state, one after the end; empty without value head
    allowed: bytes = b""  # empty without masking policy


class Generator(Protocol):
    """Sample one response per prompt, in the order of the prompts. local.sample is the generator of this package.

    `episodes`: numbers of the prompts, from which the random numbers follow (None: 0, 1, 2, ...). `value_head`:
    computes `Response.values` from hidden states (N, H). `on_batch`: called with the number of finished responses.
    `what`: the name of the work in progress reports.
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
    """Draw the first `count` random numbers in [0, 1) of an episode by Philox, which is counter-based (Salmon 2011)."""
    generator = np.random.Philox(key=[seed, 0], counter=[0, 0, stream, episode])
    return np.random.Generator(generator).random(count)


def inverse_cdf(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Choose tokens (B,): the first of each row at which the cumulative probability exceeds the row's `noise`.

    `probabilities` (B, V), `noise` (B,) in [0, 1). Probabilities need not add up to exactly 1. A token of probability 0
    is never drawn.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(noise.to(total.dtype)[:, None] * total, below_total)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def truncated(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` likeliest tokens of `probabilities` (B, V), then the likeliest that reach `top_p`; others 0."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    if top_p < 1.0:
        within = ordered.masked_fill(~keep, 0.0)
        before = within.cumsum(-1) - within
        keep &= before < top_p * within.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(~keep, 0.0))
