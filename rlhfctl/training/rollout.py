"""Responses sampled from a policy, and the numbers that compare two policies on them.

Used by the comparison and by PPO's evaluations (the TRL engine samples its own rollouts). Reads models and prompt
ids, gives lists of ids; keeps no full-vocabulary scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhfctl.training.models import evaluating, pad_left, pad_right


@dataclass(frozen=True)
class Sampling:
    """How to sample: `temperature` None is greedy."""

    max_new_tokens: int
    temperature: float | None
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Response:
    """Ids of one response, its end token included where it ended by itself."""

    ids: list[int]
    ended: bool


def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Response]:
    """One response for each prompt, in order. Batches and noise depend on `prompts` and the seed alone, so two models
    given the same prompts draw with the same random numbers; the caller's random state is left as it was.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature is not None,
        temperature=sampling.temperature if sampling.temperature is not None else 1.0,
        top_k=0 if sampling.temperature is not None else None,
        top_p=1.0,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    at = next(model.parameters()).device
    # Equal lengths together: less padding, and the order is the same for every model.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    responses: list[Response | None] = [None] * len(prompts)
    devices = [at] if at.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        for start in range(0, len(order), sampling.batch_size):
            batch = order[start : start + sampling.batch_size]
            ids, mask = pad_left([prompts[index] for index in batch], pad, at)
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            for index, row in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
                end = row.index(eos) + 1 if eos in row else None
                responses[index] = Response(ids=row[:end], ended=end is not None)
            on_batch(min(start + sampling.batch_size, len(order)))
    return [response for response in responses if response is not None]


class WithoutAdapter(nn.Module):
    """A peft model with its adapter off, called like the plain model: the reference that shares the policy's base."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, **inputs: torch.Tensor) -> Any:
        with self.policy.disable_adapter():
            return self.policy(**inputs)


def exact_kl(
    policy: nn.Module,
    reference: nn.Module,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    temperature: float,
    batch_size: int = 16,
) -> list[float]:
    """KL(policy || reference) in nats for each response sampled from the policy.

    At every response position the full sum over the vocabulary, sum_v p(v) (log p(v) - log q(v)), added over positions:
    the Rao-Blackwellised estimate of the sequence KL (Amini, Vieira and Cotterell, 2025, arXiv 2504.10637). Unlike the
    average of log-ratios it is never negative and varies less.
    """
    at = next(policy.parameters()).device
    result: list[float] = []
    with evaluating(policy), evaluating(reference):
        for start in range(0, len(prompts), batch_size):
            pairs = list(zip(prompts[start : start + batch_size], responses[start : start + batch_size], strict=True))
            ids, mask = pad_right([[*prompt, *response] for prompt, response in pairs], pad_token_id, at)
            logp = torch.log_softmax(policy(input_ids=ids, attention_mask=mask).logits.float() / temperature, -1)
            logq = torch.log_softmax(reference(input_ids=ids, attention_mask=mask).logits.float() / temperature, -1)
            per_position = (logp.exp() * (logp - logq)).sum(-1)  # (B, L); position t judges token t + 1
            for index, (prompt, response) in enumerate(pairs):
                here = per_position[index, len(prompt) - 1 : len(prompt) + len(response) - 1]
                result.append(float(here.sum().clamp(min=0.0)))
    return result
