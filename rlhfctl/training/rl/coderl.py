"""Compute CodeRL's token-level returns: the score over that of the greedy program, weighed by the critic's belief.

Le et al. 2022 ("CodeRL", NeurIPS 2022, section 3): for a sampled program W^s to the problem D, whose outcome is u, and
the greedy program W^b to the same problem, the gradient is that of

    - (r(W^s) - r(W^b)) x sum over t of q(w_t) log p(w_t | w_1..t-1, D)        q(w_t) = p_critic(u | w_1..t, D)

q is the probability that the outcome critic gives, after token t, to the outcome that the whole program then had. With
a KL penalty, which CodeRL does not have, each token's return also has the penalties from it on. Pure functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.experience import Experience


def outcome_weighted(experience: Experience, section: Ppo) -> tuple[Tensor, None]:
    """Compute the advantages (B, W) of each token: CodeRL's return, less the KL penalties from this token on."""
    mask = experience.response_mask
    gain = (experience.scores - experience.baselines)[:, None]
    penalties = experience.penalty(section) * sums_from_here(experience.kl)
    return (gain * experience.beliefs - penalties).masked_fill(~mask, 0.0), None


def sums_from_here(numbers: Tensor) -> Tensor:
    """Compute for each column of (B, W) the sum of the row from this column to its end."""
    return numbers.flip(1).cumsum(1).flip(1)


def beliefs(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Compute the probability (N,) that `logits` (N, 4) give to the outcomes (N,): q of each token."""
    return torch.log_softmax(logits, -1).gather(-1, outcomes[:, None]).squeeze(-1).exp()


def max_over_tokens(states: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Compute the maximum (B, H) over each program's tokens of the states (N, H): CodeRL's pooling."""
    pooled = torch.full((rows, states.shape[1]), -torch.inf, dtype=states.dtype, device=states.device)
    index = row_of[:, None].expand_as(states)
    return pooled.scatter_reduce(0, index, states, "amax")
