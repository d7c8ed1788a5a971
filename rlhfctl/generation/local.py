"""Sample responses from a policy in this process, with a KV cache.

A finished response leaves the batch soon after its end. One log-probability per token is kept, never the scores of the
whole vocabulary. Each draw uses one uniform number per (seed, episode, position), which the inverse of the cumulative
distribution turns into a token. A draw therefore depends neither on the other rows of the batch nor on their order.
Used by PPO (the rlhfctl engine), by evaluation during PPO (both engines) and by the compare stage.
"""

from __future__ import annotations

import contextlib
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
from rlhfctl.generation.masking import MaskedBatch, draw_allowed
from rlhfctl.generation.small_decoder import Decoder, Decoding
from rlhfctl.models.fused import fused
from rlhfctl.models.language_model import LanguageModel, as_language_model
from rlhfctl.models.packing import PACKED, has_full_attention
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.special_tokens import PAD_LOGIT, end_tokens
from rlhfctl.models.tensors import pad_left

SHRINK_BELOW = 0.8  # shrink the batch when at most this share of its rows is unfinished; each time copies the cache


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
    """Sample one response per prompt, in the order of the prompts (see Generator for the arguments).

    Two models that are given the same prompts draw with the same random numbers. No global random state is read or
    changed. With `value_head`, each row stays in the batch for one more step, for the value of the state after its end.
    """
    policy = as_language_model(model, tokenizer.pad_token_id)
    numbers = list(range(len(prompts))) if episodes is None else list(episodes)
    # Prompts of similar length share a batch, which needs less padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    responses: dict[int, Response] = {}
    masking = None if sampling.mask is None else sampling.mask.policy
    work = Work(what, len(order), "response")
    with contextlib.ExitStack() as inside:
        for one in (policy, masking):
            if one is not None:
                inside.enter_context(evaluating(one.model))
                inside.enter_context(fused(one.model))
        inside.enter_context(work)
        begin_mask = None if masking is None else make_forward(masking)
        begin = make_forward(policy)
        for start in range(0, len(order), sampling.batch_size):
            indices = order[start : start + sampling.batch_size]
            batch_episodes = [numbers[index] for index in indices]
            distinct, which = _distinct([prompts[index] for index in indices])
            ids, mask = pad_left(distinct, policy.pad_token_id, policy.device)
            room = ids.shape[1] + sampling.max_new_tokens
            ids = ids.masked_fill(mask == 0, 0)
            batches = [start_batch(ids, mask, room) for start_batch in (begin, begin_mask) if start_batch is not None]
            if len(distinct) < len(which):  # several responses to one prompt: its states are computed once
                rows = torch.tensor(which, device=policy.device)
                for batch in batches:
                    batch.keep(rows)
                    batch.states = batch.states[rows]
            drawn = _sample_batch(policy, batches, tokenizer, sampling, batch_episodes, value_head, work, start)
            responses |= dict(zip(indices, drawn, strict=True))
            work.advance(start + len(indices))
            on_batch(start + len(indices))
    return [responses[index] for index in range(len(prompts))]


def make_forward(policy: LanguageModel) -> Callable[[Tensor, Tensor, int], _Forward | Decoding]:
    """Choose the fastest decoder: a function of prompts (B, T), mask (B, T) and tokens per row that starts a batch."""
    policy.activate()
    decoder = Decoder.of(policy)
    return decoder.begin if decoder is not None else partial(_Forward, policy)


def _distinct(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """Return the different prompts in their order, and for each prompt its index among them."""
    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(tuple(prompt), len(index)) for prompt in prompts]
    return list(index), which


def _sample_batch(
    policy: LanguageModel,
    batches: Sequence[_Forward | Decoding],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    episodes: Sequence[int],
    value_head: Callable[[Tensor], Tensor] | None,
    work: Work,
    before: int,
) -> list[Response]:
    """Sample the responses of one batch. `before`: the number of responses that are already done.

    `batches`: the policy's batch and, with a masking policy, that one's.
    """
    device, longest = policy.device, sampling.max_new_tokens
    stops = end_tokens(policy.model, tokenizer) if sampling.stop_ids is None else sampling.stop_ids
    stop_ids = torch.tensor(stops, dtype=torch.long, device=device)
    noise = None
    if sampling.temperature is not None:
        drawn = [uniforms(sampling.seed, sampling.stream, episode, longest) for episode in episodes]
        noise = torch.from_numpy(np.stack(drawn)).to(device)
    tokens = torch.zeros((len(episodes), longest), dtype=torch.long, device=device)
    exact = torch.float64 if policy.head.weight.dtype == torch.float64 else torch.float32
    logprobs = torch.zeros((len(episodes), longest), device=device, dtype=exact)
    kept, values = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    batch, masked = batches[0], None
    if sampling.mask is not None:
        masked = MaskedBatch(batches[1], sampling, len(episodes), policy.vocabulary, stop_ids)
    counts = torch.full((len(episodes),), longest, device=device)
    ended = torch.zeros(len(episodes), dtype=torch.bool, device=device)
    going = torch.arange(len(episodes), device=device)  # indices of the episodes whose rows are still in the cache
    for t in range(longest):
        states = batch.states
        if value_head is not None:
            values[going, t] = value_head(states).to(exact)
        logits = batch.logits()
        if masked is not None:
            allowed = masked.allowed(going, t)
        if noise is None:
            token = (logits if masked is None else logits.masked_fill(~allowed, PAD_LOGIT)).argmax(-1)
        elif masked is not None and sampling.temperature is not None:
            logp, within = draw_allowed(logits, allowed, sampling.temperature)
            token = inverse_cdf(within.exp(), noise[going, t])
            chosen, restricted = (table.gather(-1, token[:, None]).squeeze(-1) for table in (logp, within))
            logprobs[going, t] = chosen.to(logprobs.dtype)
            kept[going, t] = (chosen - restricted).to(kept.dtype)
        else:
            token, logp, probabilities = draw(logits, noise[going, t], sampling)
            logprobs[going, t] = logp.gather(-1, token[:, None]).squeeze(-1).to(logprobs.dtype)
            if sampling.truncates:
                kept[going, t] = probabilities.sum(-1).log().to(kept.dtype)
        tokens[going, t] = token
        stopped = torch.isin(token, stop_ids)
        if sampling.stop_strings:
            stopped |= holds_stop(tokens[going, : t + 1], tokenizer, sampling.stop_strings)
        ended_before = ended[going]
        stopped &= ~ended_before
        counts[going[stopped]] = t + 1
        ended[going[stopped]] = True
        if t + 1 == longest:
            break
        alive = ~ended_before if value_head is not None else ~ended[going]
        left = int(alive.sum())
        # Count unfinished responses in proportion to their length, so that the progress of a single batch is visible.
        work.advance(before + len(episodes) - left + left * (t + 1) // longest)
        if left == 0:
            break
        if left <= SHRINK_BELOW * len(going):
            left_over = alive.nonzero().squeeze(-1)
            for one in batches:
                one.keep(left_over)
            going, token = going[left_over], token[left_over]
        for one in batches:
            one.step(token)
    result = []
    columns = (tokens.tolist(), logprobs.tolist(), kept.tolist(), values.tolist(), counts.tolist(), ended.tolist())
    masks = [b""] * len(episodes) if masked is None else masked.of(counts.tolist())
    for row_tokens, row_logprobs, row_kept, row_values, count, end, row_mask in zip(*columns, masks, strict=True):
        probabilities_known = noise is not None
        result.append(
            Response(
                ids=row_tokens[:count],
                ended=end,
                logprobs=row_logprobs[:count] if probabilities_known else [],
                kept=row_kept[:count] if sampling.truncates or masked is not None else [],
                values=row_values[: min(count + 1, longest)] if value_head is not None else [],
                allowed=row_mask,
            )
        )
    return result


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row of `logits` (B, V) with `noise` (B,) in [0, 1).

    Returns the tokens (B,), log-probabilities (B, V) at the sampling temperature, and the probabilities (B, V) that the
    tokens are drawn from: those that top-k and top-p keep.
    """
    logp = torch.log_softmax(logits if sampling.temperature == 1.0 else logits / sampling.temperature, dim=-1)
    probabilities = logp.exp()
    if sampling.truncates:
        probabilities = truncated(probabilities, sampling.top_k, sampling.top_p)
    return inverse_cdf(probabilities, noise), logp, probabilities


class _Forward:
    """Decode a batch with the model's own forward. `states` (B, H): the hidden states of each row's last token."""

    def __init__(self, policy: LanguageModel, ids: Tensor, mask: Tensor, room: int) -> None:
        self.policy = policy
        self.mask = mask
        self.lengths = mask.sum(1)
        # A batch without padding needs no mask, and attention is faster without one.
        self.padded = bool((self.lengths < ids.shape[1]).any())
        self.own_mask = self.padded and _takes_own_mask(policy)
        dtype = policy.head.weight.dtype
        self.pads = (mask == 0).to(dtype)[:, None, None] * torch.finfo(dtype).min  # (B, 1, 1, L)
        self.cache = _roomy_cache(policy, room)
        self.states = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row (B,), and return the new states (B, H)."""
        if self.own_mask:
            self.pads = nn.functional.pad(self.pads, (0, 1))
        elif self.padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=1)
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.states = self._forward(tokens[:, None], self.pads if self.own_mask else self.mask, positions)
        return self.states

    def logits(self) -> Tensor:
        """Compute the logits (B, V) of the next token."""
        return self.policy.logits(self.states)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but `rows`."""
        self.cache.batch_select_indices(rows)
        self.mask, self.pads, self.lengths = self.mask[rows], self.pads[rows], self.lengths[rows]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self.policy.activate()  # a masking policy may be another adapter of the same model
        states: Tensor = self.policy.trunk(
            input_ids=ids,
            attention_mask=mask if self.padded else None,
            position_ids=positions if self.padded else None,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return states


class _RoomyLayer(DynamicLayer):
    """KV cache of one layer with memory allocated once. DynamicLayer copies the whole cache for each new token."""

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
    """Make the model's own cache; its plain layers get memory for `room` tokens."""
    cache = DynamicCache(config=policy.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _takes_own_mask(policy: LanguageModel) -> bool:
    """Tell whether one mask (B, 1, 1, L) can be added to the scores of every layer.

    That is possible without attention windows and without kernels that make their own masks. The mask is then not
    rebuilt from (B, L) for each token.
    """
    config = policy.config
    if uses_alibi(config):  # the biases are computed from a mask (B, L)
        return False
    return has_full_attention(config) and getattr(config, "_attn_implementation", None) in ("sdpa", "eager", PACKED)


def uses_alibi(config: Any) -> bool:
    """Tell whether attention is biased by distance (ALiBi, Press et al. 2022), which needs a mask (B, L)."""
    return config.model_type in ("bloom", "mpt") or bool(getattr(config, "alibi", False))


def holds_stop(tokens: Tensor, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> Tensor:
    """Tell for each row of `tokens` (B, T) whether its text holds a stop string; (B,) of bool."""
    texts = tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=False)
    return torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=tokens.device)
