"""Compute the exact KL divergence between two policies over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhfctl.events import Work
from rlhfctl.models.language_model import LanguageModel, as_language_model
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.tensors import pad_right

ROWS_AT_ONCE = 16  # responses whose hidden states are held at a time
KL_ELEMENTS = 1 << 21  # logits of each side compared at a time: 8 MB in float32, of which six are held


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
    """KL(policy || reference) in nats for each response sampled from the policy.

    At every response position the full sum over the vocabulary, sum_v p(v) (log p(v) - log q(v)), added over positions:
    the Rao-Blackwellised estimate of the sequence KL (Amini, Vieira and Cotterell, 2025, arXiv 2504.10637). Unlike the
    average of log-ratios it is never negative and varies less. Logits are made for a part of the positions at a time.
    """
    ours, theirs = as_language_model(policy, pad_token_id), as_language_model(reference, pad_token_id)
    rows = max(1, KL_ELEMENTS // ours.vocabulary)
    result: list[float] = []
    work = Work("measuring KL", len(prompts), "response")
    with evaluating(ours.model), evaluating(theirs.model), work:
        for start in range(0, len(prompts), batch_size):
            pairs = list(zip(prompts[start : start + batch_size], responses[start : start + batch_size], strict=True))
            ids, mask = pad_right([[*prompt, *response] for prompt, response in pairs], pad_token_id, ours.device)
            judged = torch.zeros_like(mask, dtype=torch.bool)  # position t judges token t + 1
            for row, (prompt, response) in enumerate(pairs):
                judged[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
            of_ours = ours.hidden(ids, attention_mask=mask)[judged]
            of_theirs = theirs.hidden(ids, attention_mask=mask)[judged]
            terms = [
                kl_terms(ours.logits(p) / temperature, theirs.logits(q) / temperature)
                for p, q in zip(of_ours.split(rows), of_theirs.split(rows), strict=True)
            ]
            sums = torch.cat(terms).split([len(response) for _, response in pairs])
            result += [float(one.sum().clamp(min=0.0)) for one in sums]
            work.advance(len(result))
    ours.activate()  # the reference may have been the same model with its adapter off
    return result


def kl_terms(ours: Tensor, theirs: Tensor) -> Tensor:
    """(N,) KL in nats between the distributions of logits (N, V)."""
    logp, logq = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
    return (logp.exp() * (logp - logq)).sum(-1)
