"""Train the roles on one batch of experience: PPO epochs, one optimizer step per minibatch (step 6 of an update)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from rlhfctl.events import Work
from rlhfctl.models import sharding
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.algorithms import Algorithm
from rlhfctl.training.rl.experience import Experience, pieces
from rlhfctl.training.rl.minibatch import Learner
from rlhfctl.training.rl.trace import Trace

_NO_DECAY_BELOW = 2  # norms and biases are vectors and are not decayed, as in transformers


def build_optimizer(section: Ppo, trained: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Make an AdamW optimizer for all trained parameters; matrices are decayed, vectors are not."""
    decayed = [p for p in trained.values() if p.dim() >= _NO_DECAY_BELOW]
    others = [p for p in trained.values() if p.dim() < _NO_DECAY_BELOW]
    groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = not any(map(sharding.is_divided, trained.values()))  # torch's fused steps take no mixture with whole ones
    options = {"fused": True} if fused else {"foreach": False}
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=section.learning_rate, **options)


def learn(
    experience: Experience,
    learner: Learner,
    algorithm: Algorithm,
    order: Callable[[int], Sequence[int]],
    trace: Trace | None = None,
) -> list[dict[str, float]]:
    """Train the roles on `experience`, in place. `order(epoch)` gives the order in which an epoch visits the episodes.

    Returns the mean metrics of each optimizer step. Raises NonFiniteError before a non-finite gradient is applied.
    """
    section = learner.section
    steps: list[dict[str, float]] = []
    work = Work("learning", section.passes * section.num_mini_batches, "minibatch")
    with learner.roles.recomputing(section.recomputed_share), work:
        for epoch in range(section.passes):
            minibatches = pieces(order(epoch), section.batch_size // section.num_mini_batches)
            for number, indices in enumerate(minibatches):
                if trace is not None:
                    trace.assign(epoch, number, indices)
                steps.append(algorithm.step(learner, experience, indices, epoch, algorithm.policy_loss, trace))
                work.advance(len(steps))
            moved = statistics.fmean(step["approx_kl"] for step in steps[-section.num_mini_batches :])
            if section.target_kl is not None and moved > section.target_kl:
                break
    return steps
