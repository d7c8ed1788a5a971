"""Compute the exact KL divergence between two policies over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhfctl.events import Work
from rlhfctl.models.language_model import LanguageModel, as_language_model
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.tensors import pad_right

ROWS_AT_ONCE = 16  # responses per forward: their hidden states are in memory together
KL_ELEMENTS = 1 << 21  # logits per model and piece: 8 MB in float32; six such tensors are in memory together


def exact_kl(
    policy: nn.Module | LanguageModel,
    reference: nn.Module | LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    temperature: float,
    batch_size: int = ROWS_AT_ONCE,
) -> list[float]:
    """Compute KL(policy || reference), in nats per response, for responses sampled from the policy.

    At every response position this is the full sum over the vocabulary, sum_v p(v) (log p(v) - log q(v)); the positions
    are added up. It is the Rao-Blackwellised estimate of the sequence KL (Amini, Vieira and Cotterell, 2025, arXiv
    2504.10637): it is never negative, and it varies less than the average of log-ratios. Logits are computed for a part
    of the positions at a time.
    """
    policy, reference = as_language_model(policy, pad_token_id), as_language_model(reference, pad_token_id)
    result: list[float] = []
    work = Work("measuring KL", len(prompts), "response")
    with evaluating(policy.model), evaluating(reference.model), work:
        for start in range(0, len(prompts), batch_size):
            pairs = list(zip(prompts[start : start + batch_size], responses[start : start + batch_size], strict=True))
            ids, mask = pad_right([[*prompt, *response] for prompt, response in pairs], pad_token_id, policy.device)
            predicts = torch.zeros_like(mask, dtype=torch.bool)  # True where position t predicts a response token t + 1
            for row, (prompt, response) in enumerate(pairs):
                predicts[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
            policy_states = policy.hidden(ids, attention_mask=mask)[predicts]
            reference_states = reference.hidden(ids, attention_mask=mask)[predicts]
            terms = state_kl(policy, reference, policy_states, reference_states, temperature)
            sums = terms.split([len(response) for _, response in pairs])
            result += [float(one.sum().clamp(min=0.0)) for one in sums]
            work.advance(len(result))
    policy.activate()  # the reference may be the same model with its adapter off
    return result


def state_kl(
    policy: LanguageModel,
    reference: LanguageModel,
    policy_states: Tensor,
    reference_states: Tensor,
    temperature: float,
) -> Tensor:
    """Compute the KL (N,), in nats per position, of what both models sample from after N hidden states (N, H) each.

    Logits are computed for a part of the positions at a time.
    """
    positions = max(1, KL_ELEMENTS // policy.vocabulary)
    terms = [
        kl_terms(policy.logits(p) / temperature, reference.logits(q) / temperature)
        for p, q in zip(policy_states.split(positions), reference_states.split(positions), strict=True)
    ]
    return torch.cat(terms)


def kl_terms(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Compute the KL (N,), in nats per position, between the distributions of logits (N, V)."""
    logp, logq = torch.log_softmax(policy_logits, -1), torch.log_softmax(reference_logits, -1)
    return (logp.exp() * (logp - logq)).sum(-1)
