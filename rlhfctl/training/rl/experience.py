"""What one update learns from: the sampled episodes with their scores, log-probabilities, values and advantages."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhfctl.generation.generator import Response


@dataclass
class Experience:
    """What one update learns from: B episodes, W columns (see ppo_math); filled step by step."""

    rows: list[int]  # which prompt each is
    prompts: list[list[int]]
    responses: list[Response]
    lengths: Tensor  # (B,)
    ended: Tensor  # (B,)
    mask: Tensor  # (B, W) tokens
    value_mask: Tensor  # (B, W) states
    raw_scores: Tensor = field(default_factory=lambda: torch.empty(0))  # (B,) as the reward gave them
    scores: Tensor = field(default_factory=lambda: torch.empty(0))  # (B,) after what is due for a missing end
    parts: dict[str, list[float | None]] = field(default_factory=dict)  # of a weighted sum, before the weights
    logprobs: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, W) of the policy that sampled
    ref_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    kl: Tensor = field(default_factory=lambda: torch.empty(0))
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: Tensor = field(default_factory=lambda: torch.empty(0))

    def total_lengths(self) -> list[int]:
        return [len(p) + len(r.ids) for p, r in zip(self.prompts, self.responses, strict=True)]
