"""Compute the losses of reward models from the scores of ranked responses: pure functions on tensors.

Shapes: C comparisons, K responses to one prompt. Scores have no unit; a difference of scores is the log-odds that
people prefer one response. Losses are in nats. Each function computes in float32 or wider.

Ties: responses of equal rank make no claim about each other. A tied pair is no comparison, so it does not count in
`bradley_terry` and `k_wise`. In `plackett_luce` tied responses do not compete with each other, and in `best_of_k` it
counts as right if any of the tied best is picked.

Leaves out batches of groups, means over groups and metrics (trl/group_trainer.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhfctl.models.tensors import at_least_float32


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, label_error: float = 0.0) -> Tensor:
    """Compute the loss of each comparison (C,): -log sigmoid(s_chosen - s_rejected - margin), in nats per comparison.

    `chosen`, `rejected`: scores (C,). `margin`: by how much the chosen score must win, (C,) or one number.
    `label_error`: share e of comparisons, in [0, 1), whose answer is random. The model then claims that people choose
    the response with probability p' = (1 - e) p + e / 2, where p is the sigmoid above: no label costs more than
    -log(e / 2).

    Sources: Bradley and Terry 1952; Ouyang et al. 2022, equation 1; margin: Touvron et al. 2023, equation 2;
    label error: Christiano et al. 2017, section 2.2.3, with e = 0.1.
    """
    log_p = logsigmoid(at_least_float32(chosen) - at_least_float32(rejected) - margin)
    if label_error == 0.0:
        return -log_p
    random = torch.full_like(log_p, math.log(label_error / 2))
    return -torch.logaddexp(math.log1p(-label_error) + log_p, random)


def k_wise(scores: Tensor, comparisons: Tensor, margin: Tensor | float = 0.0, label_error: float = 0.0) -> Tensor:
    """Compute the loss of one group of ranked responses: the mean of `bradley_terry` over its comparisons, in nats.

    `scores` (K,): one per response. `comparisons` (C, 2), C >= 1: (better, worse) as indices of responses. Without ties
    C is K (K - 1) / 2. The group stays whole: each score is computed once, although K - 1 comparisons use it.

    Source: Ouyang et al. 2022 (InstructGPT), equation 1.
    """
    better, worse = comparisons.unbind(-1)
    return bradley_terry(scores[better], scores[worse], margin, label_error).mean()


def plackett_luce(scores: Tensor, ranks: Tensor) -> Tensor:
    """Compute the negative log-likelihood of a ranking, in nats per group.

    `scores` (K,), `ranks` (K,): 0 is best. The ranking is K choices in turn: the best is chosen among all, the second
    among those that remain, and so on. Each choice is a softmax over scores. With K = 2 this is `bradley_terry`.
    Tied responses do not compete with each other: each is chosen among itself and the responses of a worse rank.

    Sources: Luce 1959; Plackett 1975.
    """
    scores = at_least_float32(scores)
    remains = (ranks[None, :] > ranks[:, None]) | torch.eye(len(ranks), dtype=torch.bool, device=ranks.device)
    totals = torch.logsumexp(scores.expand(len(ranks), -1).masked_fill(~remains, -math.inf), dim=-1)
    return (totals - scores).sum()


def best_of_k(scores: Tensor, ranks: Tensor) -> Tensor:
    """Compute -log of the probability that the best response is picked among K, in nats per group.

    `scores` (K,), `ranks` (K,): the lowest is best. The probability is a softmax over the scores; the order of the
    other responses does not count. Equal scores give ln K with one best response. Where several are tied for the best,
    the probability is that of picking any of them.

    Source: Ziegler et al. 2019, equation 1, with K = 4.
    """
    scores = at_least_float32(scores)
    best = ranks == ranks.min()
    return torch.logsumexp(scores, dim=-1) - torch.logsumexp(scores[best], dim=-1)
