"""What one update learns from: the sampled episodes with their scores, log-probabilities, values and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhfctl.events import Work
from rlhfctl.generation.generator import Response
from rlhfctl.models.packing import Sequences
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math


def _empty() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True)
class ValueStep:
    """The critic's part of the first optimizer step, where its forward gave the values of the batch as well.

    `gradients`: of each trained parameter of the critic, by name. `shares`: what each micro-batch adds to the metrics.
    """

    gradients: dict[str, Tensor]
    shares: list[dict[str, Tensor]]


@dataclass
class Experience:
    """The episodes of one update: B responses, W columns (see ppo_math). collect() fills it step by step."""

    prompt_indices: list[int]  # which prompt each response answers
    prompts: list[list[int]]
    responses: list[Response]
    lengths: Tensor  # (B,)
    ended: Tensor  # (B,)
    response_mask: Tensor  # (B, W) True at tokens
    value_mask: Tensor  # (B, W) True at states that have a value
    raw_scores: Tensor = field(default_factory=_empty)  # (B,) as the reward gave them
    scores: Tensor = field(default_factory=_empty)  # (B,) after the penalty for a missing end
    parts: dict[str, list[float | None]] = field(default_factory=dict)  # of a weighted sum, before the weights
    logprobs: Tensor = field(default_factory=_empty)  # (B, W) of the policy that sampled
    ref_logprobs: Tensor = field(default_factory=_empty)
    kl: Tensor = field(default_factory=_empty)
    rewards: Tensor = field(default_factory=_empty)
    values: Tensor = field(default_factory=_empty)  # stays empty without a critic
    advantages: Tensor = field(default_factory=_empty)
    returns: Tensor = field(default_factory=_empty)  # stays empty without a critic
    recomputed: bool = False  # whether `logprobs` are those of the training forward, not those of sampling
    rollout_gap: float | None = None  # the largest difference of both, in nats per token, where both are computed
    value_step: ValueStep | None = None
    rollout_s: float = 0.0
    score_s: float = 0.0

    @classmethod
    def of(
        cls,
        prompt_indices: list[int],
        prompts: list[list[int]],
        responses: list[Response],
        response_length: int,
        device: torch.device,
    ) -> Experience:
        """Masks and lengths of the given responses; nothing is computed from a model."""
        lengths = torch.tensor([len(response.ids) for response in responses], device=device)
        width = min(int(lengths.max()) + 1, response_length)
        ended = torch.tensor([response.ended for response in responses], device=device)
        mask = ppo_math.response_mask(lengths, width)
        value_mask = ppo_math.value_mask(lengths, width)
        return cls(prompt_indices, prompts, responses, lengths, ended, mask, value_mask)

    def sequences(self, indices: Sequence[int]) -> Sequences:
        """Prompt and response of the chosen episodes, laid end to end."""
        prompts, responses = [self.prompts[i] for i in indices], [self.responses[i].ids for i in indices]
        return Sequences.of(prompts, responses, self.lengths.device)

    def width(self, indices: Sequence[int]) -> int:
        """How many columns the longest of the chosen episodes needs."""
        return int(min(self.lengths[list(indices)].max() + 1, self.response_mask.shape[1]))

    def table(self, lists: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        """(B, W) from a list of numbers for each response, 0 where a list is short."""
        table = torch.zeros(self.response_mask.shape, dtype=dtype)
        for index, numbers in enumerate(lists):
            table[index, : len(numbers)] = torch.tensor(numbers[: table.shape[1]], dtype=dtype)
        return table.to(self.lengths.device)


def pieces(indices: Sequence[int], size: int) -> list[list[int]]:
    """`indices` in pieces of `size`; the last may be smaller."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def forwards(experience: Experience, section: Ppo, what: str) -> Iterator[list[int]]:
    """The episodes in pieces that fit into one forward; `what` names the work to those who watch."""
    parts = pieces(range(len(experience.responses)), section.local_rollout_forward_batch_size)
    return Work(what, len(parts), "batch").through(parts)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(B, W) with the numbers `flat` (N,) where `mask` is True, row after row, and 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
