"""Hold the experience of one update: sampled episodes with scores, log-probabilities, values and advantages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from rlhfctl.events import Work
from rlhfctl.generation.generator import Response
from rlhfctl.models.kept_states import ResponseStates
from rlhfctl.models.packing import Sequences
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.moments import NO_SCORES, Moments


class TextRow(TypedDict):
    """The ids of a text. The tokens from `start` (1 or more) on have a next-token loss."""

    ids: list[int]
    start: int


def _empty() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True)
class ValueStep:
    """The critic's part of the first optimizer step, kept if the forward of that step also gave the batch's values.

    `gradients`: parameter name -> gradient, for each trained parameter of the critic. `shares`: metric name -> share of
    the minibatch's mean, one dict per micro-batch.
    """

    gradients: dict[str, Tensor]
    shares: list[dict[str, Tensor]]


@dataclass(frozen=True)
class PolicyPass:
    """One forward pass of the policy over a whole batch: its mean metrics, and what a trace records of the episodes."""

    metrics: dict[str, float]
    traced: list[tuple[list[int], dict[str, Tensor]]]


@dataclass(frozen=True)
class PolicyStep:
    """The policy's step on a whole batch, where an algorithm takes one before the critic's steps (trpo).

    `metrics`: those of the step itself, name -> number. `before`, `after`: with the policy that sampled and with the
    one that learned, the metrics of a pass over the batch, and per micro-batch its episodes and what a trace records.
    """

    metrics: dict[str, float]
    before: PolicyPass
    after: PolicyPass


@dataclass
class Experience:
    """The episodes of one update: B responses, W columns (see ppo_math). collect() fills the fields step by step."""

    prompt_indices: list[int]  # (B,) index of the prompt that each response answers
    prompts: list[list[int]]
    responses: list[Response]
    lengths: Tensor  # (B,)
    ended: Tensor  # (B,)
    response_mask: Tensor  # (B, W) True at tokens
    value_mask: Tensor  # (B, W) True at states that have a value
    raw_scores: Tensor = field(default_factory=_empty)  # (B,) as returned by the reward function
    scores: Tensor = field(default_factory=_empty)  # (B,) after the penalty for a missing end
    parts: dict[str, list[float | None]] = field(default_factory=dict)  # scorer name -> scores (B,), before weighting
    uncertain: dict[str, float] = field(default_factory=dict)  # an ensemble's disagreement, programs' outcomes
    outcomes: list[str] = field(default_factory=list)  # of programs (B,), where the reward runs them
    baselines: Tensor = field(default_factory=_empty)  # (B,) score of the greedy program; with an outcome critic
    beliefs: Tensor = field(default_factory=_empty)  # (B, W) the outcome critic's probability of what happened
    logged: dict[str, float] = field(default_factory=dict)  # metrics that reward functions log
    extras: dict[str, list[Any]] = field(default_factory=dict)  # columns that reward functions log -> values (B,)
    logprobs: Tensor = field(default_factory=_empty)  # (B, W) under the policy that sampled
    importance: Tensor = field(default_factory=_empty)  # (B, W) weights of the policy loss; empty: each is 1
    ref_logprobs: Tensor = field(default_factory=_empty)
    kept: Tensor = field(default_factory=_empty)  # (B, W) log of the probability that top-k and top-p kept; 0: all
    kl: Tensor = field(default_factory=_empty)
    rewards: Tensor = field(default_factory=_empty)
    values: Tensor = field(default_factory=_empty)  # stays empty without a critic
    earlier_reward: float = 0.0  # mean reward of the responses of all earlier updates: score less KL penalty
    advantages: Tensor = field(default_factory=_empty)
    returns: Tensor = field(default_factory=_empty)  # stays empty without a critic
    number: int = 0  # of the update, from 1
    moments: Moments = NO_SCORES  # of the raw scores so far, these included
    kl_coef: float | None = None  # of this update, where it moves; None: the section's
    recomputed: bool = False  # whether `logprobs` come from the training forward, not from sampling
    rollout_gap: float | None = None  # largest difference of the two, in nats per token, if both were computed
    value_step: ValueStep | None = None
    policy_step: PolicyStep | None = None
    texts: Sequence[TextRow] = ()  # the rows of the next-token loss of the next optimizer step
    reward_states: ResponseStates | None = None  # those that the critic reads, if it reads the reward model's
    rollout_s: float = 0.0
    score_s: float = 0.0
    processes: Processes = ALONE  # those that learn from it together; each of them holds all of it

    @classmethod
    def of(
        cls,
        prompt_indices: list[int],
        prompts: list[list[int]],
        responses: list[Response],
        response_length: int,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> Experience:
        """Make an Experience with the masks and lengths of `responses`; no model is called."""
        lengths = torch.tensor([len(response.ids) for response in responses], device=device)
        width = min(int(lengths.max()) + 1, response_length)
        ended = torch.tensor([response.ended for response in responses], device=device)
        mask = ppo_math.response_mask(lengths, width)
        value_mask = ppo_math.value_mask(lengths, width)
        return cls(prompt_indices, prompts, responses, lengths, ended, mask, value_mask, processes=processes)

    def penalty(self, section: Ppo) -> float:
        """Return the coefficient of the KL penalty in this update."""
        return section.kl_coef if self.kl_coef is None else self.kl_coef

    def sequences(self, indices: Sequence[int]) -> Sequences:
        """Pack prompt and response of the chosen episodes into one sequence each."""
        prompts, responses = [self.prompts[i] for i in indices], [self.responses[i].ids for i in indices]
        return Sequences.of(prompts, responses, self.lengths.device)

    @property
    def masked(self) -> bool:
        """Tell whether a masking policy restricted what was sampled; log-probabilities are then among its tokens."""
        return bool(self.responses) and bool(self.responses[0].allowed)

    def allowed(self, indices: Sequence[int]) -> Tensor | None:
        """Return the allowed tokens (N, ceil(V / 8)), packed, at each token of the chosen episodes in their order.

        None without a masking policy.
        """
        if not self.masked:
            return None
        chosen = [self.responses[i] for i in indices]
        flat = torch.frombuffer(bytearray(b"".join(one.allowed for one in chosen)), dtype=torch.uint8)
        return flat.view(sum(len(one.ids) for one in chosen), -1).to(self.lengths.device)

    def weighted_advantages(self, indices: Sequence[int], width: int) -> Tensor:
        """Return the advantages (b, width) of the chosen episodes, times their importance weights if there are some.

        Both terms of the clipped objective are proportional to the advantage, so that this weighs their minimum.
        """
        advantages = self.advantages[list(indices), :width]
        return advantages * self.importance[list(indices), :width] if self.importance.numel() else advantages

    def kept_states(self, indices: Sequence[int], compute: Callable[[Sequences], Tensor]) -> Tensor:
        """Return the reward model's states (M, H) that get a value, of the chosen episodes, one after the other.

        `compute` gives all states (T, H) of sequences that this process did not score itself.
        """
        kept = self.reward_states
        assert kept is not None
        missing = [i for i in indices if not kept.has(self.prompts[i], self.responses[i].ids)]
        if missing:
            sequences = self.sequences(missing)
            with torch.no_grad():
                kept.see(sequences, compute(sequences))
        counts = self.value_mask.sum(1).tolist()
        return torch.cat([kept.of(self.prompts[i], self.responses[i].ids, counts[i]) for i in indices])

    def width(self, indices: Sequence[int]) -> int:
        """Count the columns that the longest of the chosen episodes needs."""
        return int(min(self.lengths[list(indices)].max() + 1, self.response_mask.shape[1]))

    def table(self, lists: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        """Make a (B, W) tensor from one list of numbers per response, filled up with 0."""
        table = torch.zeros(self.response_mask.shape, dtype=dtype)
        for index, numbers in enumerate(lists):
            table[index, : len(numbers)] = torch.tensor(numbers[: table.shape[1]], dtype=dtype)
        return table.to(self.lengths.device)


def pieces(indices: Sequence[int], size: int) -> list[list[int]]:
    """Split `indices` into pieces of `size`; the last may be smaller."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def forwards(experience: Experience, section: Ppo, what: str) -> Iterator[list[int]]:
    """Split this process's share of the episodes into pieces that fit into one forward; report progress as `what`."""
    own = experience.processes.share(range(len(experience.responses)))
    parts = pieces(own, section.local_rollout_forward_batch_size)
    with experience.processes.in_step():
        yield from Work(what, len(parts), "batch").through(parts)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Scatter the numbers `flat` (N,) into a (B, W) tensor where `mask` is True, row after row; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
