"""Responses sampled from a policy, and the numbers that compare two policies on them.

Sampling keeps a KV cache, drops each response from the batch soon after it ends, and keeps one log-probability a token,
never the scores of the whole vocabulary. The noise of a draw is one uniform number for each (seed, episode, position),
turned into a token by the inverse of the cumulative distribution: what an episode draws depends neither on the other
rows of its batch nor on their order. Used by PPO (our engine), its evaluations (both engines) and the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from rlhfctl.events import Work
from rlhfctl.generation.generator import Response, Sampling, inverse_cdf, truncated, uniforms
from rlhfctl.generation.small_decoder import Decoder, Decoding
from rlhfctl.models.fused import fused
from rlhfctl.models.language_model import LanguageModel, as_language_model
from rlhfctl.models.packing import PACKED, has_full_attention
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.special_tokens import end_tokens
from rlhfctl.models.tensors import pad_left

SHRINK_BELOW = 0.8  # the batch is shrunk when fewer of its rows than this are still going: each time copies the cache


def sample(
    model: LanguageModel | nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda done: None,
    episodes: Sequence[int] | None = None,
    value_head: Callable[[Tensor], Tensor] | None = None,
    what: str = "sampling",
) -> list[Response]:
    """One response for each prompt, in order. `episodes` numbers them for the noise (None: 0, 1, 2, ...), so two models
    given the same prompts draw with the same random numbers. No global random state is read or moved. `what` names the
    work to those who watch.

    `value_head` reads the hidden states (N, H) as they pass; a row then stays one step longer, for the state after its
    end.
    """
    policy = as_language_model(model, tokenizer.pad_token_id)
    numbers = list(range(len(prompts))) if episodes is None else list(episodes)
    # Equal lengths together: less padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    responses: dict[int, Response] = {}
    policy.activate()
    work = Work(what, len(order), "response")
    with evaluating(policy.model), fused(policy.model), work:
        begin = make_forward(policy)
        for start in range(0, len(order), sampling.batch_size):
            rows = order[start : start + sampling.batch_size]
            given, counted = [prompts[row] for row in rows], [numbers[row] for row in rows]
            ids, mask = pad_left(given, policy.pad_token_id, policy.device)
            room = ids.shape[1] + sampling.max_new_tokens
            ids = ids.masked_fill(mask == 0, 0)
            drawn = _sample_batch(policy, begin(ids, mask, room), tokenizer, sampling, counted, value_head, work, start)
            responses |= dict(zip(rows, drawn, strict=True))
            work.advance(start + len(rows))
            on_batch(start + len(rows))
    return [responses[index] for index in range(len(prompts))]


def make_forward(policy: LanguageModel) -> Callable[[Tensor, Tensor, int], _Forward | Decoding]:
    """What starts a batch of prompts (B, T), their mask (B, T), and room for so many tokens a row."""
    decoder = Decoder.of(policy)
    return decoder.begin if decoder is not None else partial(_Forward, policy)


def _sample_batch(
    policy: LanguageModel,
    batch: _Forward | Decoding,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    episodes: Sequence[int],
    value_head: Callable[[Tensor], Tensor] | None,
    work: Work,
    before: int,
) -> list[Response]:
    """The responses of one batch; `before` it so many were drawn."""
    at, longest = policy.device, sampling.max_new_tokens
    stops = end_tokens(policy.model, tokenizer) if sampling.stop_ids is None else sampling.stop_ids
    stop_ids = torch.tensor(stops, dtype=torch.long, device=at)
    noise = None
    if sampling.temperature is not None:
        drawn = [uniforms(sampling.seed, sampling.stream, episode, longest) for episode in episodes]
        noise = torch.from_numpy(np.stack(drawn)).to(at)
    tokens = torch.zeros((len(episodes), longest), dtype=torch.long, device=at)
    exact = torch.float64 if policy.head.weight.dtype == torch.float64 else torch.float32
    logprobs = torch.zeros((len(episodes), longest), device=at, dtype=exact)
    kept, values = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    counts = torch.full((len(episodes),), longest, device=at)
    ended = torch.zeros(len(episodes), dtype=torch.bool, device=at)
    going = torch.arange(len(episodes), device=at)  # rows of the batch that are still in the cache
    for t in range(longest):
        states = batch.states
        if value_head is not None:
            values[going, t] = value_head(states).to(exact)
        logits = batch.logits()
        if noise is None:
            token = logits.argmax(-1)
        else:
            logp = torch.log_softmax(logits if sampling.temperature == 1.0 else logits / sampling.temperature, dim=-1)
            probabilities = logp.exp()
            if sampling.truncates:
                probabilities = truncated(probabilities, sampling.top_k, sampling.top_p)
                kept[going, t] = probabilities.sum(-1).log().to(kept.dtype)
            token = inverse_cdf(probabilities, noise[going, t])
            logprobs[going, t] = logp.gather(-1, token[:, None]).squeeze(-1).to(logprobs.dtype)
        tokens[going, t] = token
        stopped = torch.isin(token, stop_ids)
        if sampling.stop_strings:
            stopped |= _holds_stop(tokens[going, : t + 1], tokenizer, sampling.stop_strings)
        ended_before = ended[going]
        stopped &= ~ended_before
        counts[going[stopped]] = t + 1
        ended[going[stopped]] = True
        if t + 1 == longest:
            break
        alive = ~ended_before if value_head is not None else ~ended[going]
        left = int(alive.sum())
        # Those under way count by their share of the longest length: else the bar of a single batch would stand still.
        work.advance(before + len(episodes) - left + left * (t + 1) // longest)
        if left == 0:
            break
        if left <= SHRINK_BELOW * len(going):
            chosen = alive.nonzero().squeeze(-1)
            batch.keep(chosen)
            going, token = going[chosen], token[chosen]
        batch.step(token)
    result = []
    rows = (tokens.tolist(), logprobs.tolist(), kept.tolist(), values.tolist(), counts.tolist(), ended.tolist())
    for row_tokens, row_logprobs, row_kept, row_values, count, end in zip(*rows, strict=True):
        probabilities_known = noise is not None
        result.append(
            Response(
                ids=row_tokens[:count],
                ended=end,
                logprobs=row_logprobs[:count] if probabilities_known else [],
                kept=row_kept[:count] if sampling.truncates else [],
                values=row_values[: min(count + 1, longest)] if value_head is not None else [],
            )
        )
    return result


class _Forward:
    """A batch under way through the model's own forward. `states` (B, H): the last hidden states of each row."""

    def __init__(self, policy: LanguageModel, ids: Tensor, mask: Tensor, room: int) -> None:
        self.policy = policy
        self.mask = mask
        self.lengths = mask.sum(1)
        # Without padding no mask is needed, and attention is faster.
        self.padded = bool((self.lengths < ids.shape[1]).any())
        self.own_mask = self.padded and _takes_own_mask(policy)
        dtype = policy.head.weight.dtype
        self.pads = (mask == 0).to(dtype)[:, None, None] * torch.finfo(dtype).min  # (B, 1, 1, L)
        self.cache = _roomy_cache(policy, room)
        self.states = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> Tensor:
        """The states after one more token (B,) a row."""
        if self.own_mask:
            self.pads = nn.functional.pad(self.pads, (0, 1))
        elif self.padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=1)
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.states = self._forward(tokens[:, None], self.pads if self.own_mask else self.mask, positions)
        return self.states

    def logits(self) -> Tensor:
        """(B, V) of the next token."""
        return self.policy.logits(self.states)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.pads, self.lengths = self.mask[rows], self.pads[rows], self.lengths[rows]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        states: Tensor = self.policy.trunk(
            input_ids=ids,
            attention_mask=mask if self.padded else None,
            position_ids=positions if self.padded else None,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return states


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values in room made once, where DynamicLayer copies all that is there for each new token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, heads, new, width = key_states.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys = key_states.new_empty((rows, heads, self.room, width))
            self._values = value_states.new_empty((rows, heads, self.room, value_states.shape[-1]))
            self._length = 0
        self._keys[:, :, self._length : self._length + new] = key_states
        self._values[:, :, self._length : self._length + new] = value_states
        self._length += new
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self._length], self._values[:, :, : self._length]


def _roomy_cache(policy: LanguageModel, room: int) -> DynamicCache:
    """The model's own cache, its plain layers with room for `room` tokens."""
    cache = DynamicCache(config=policy.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _takes_own_mask(policy: LanguageModel) -> bool:
    """Whether a mask (B, 1, 1, L) may be added to the scores of every layer: no window, no kernel with its own masks.

    It then needs not be made anew from (B, L) for each token.
    """
    config = policy.config
    if uses_alibi(config):  # its biases are made from (B, L)
        return False
    return has_full_attention(config) and getattr(config, "_attn_implementation", None) in ("sdpa", "eager", PACKED)


def uses_alibi(config: Any) -> bool:
    """Whether attention is biased by distance (ALiBi, Press et al. 2022), which is counted from a mask (B, L)."""
    return config.model_type in ("bloom", "mpt") or bool(getattr(config, "alibi", False))


def _holds_stop(tokens: Tensor, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> Tensor:
    """(B,) whether the text of each row of `tokens` (B, T) holds a stop string by now."""
    texts = tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=False)
    return torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=tokens.device)
