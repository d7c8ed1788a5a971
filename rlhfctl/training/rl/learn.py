"""Train the roles on one batch of experience: PPO epochs, one optimizer step per minibatch (step 6 of an update)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from rlhfctl.events import Work
from rlhfctl.models import sharding
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.algorithms import Algorithm
from rlhfctl.training.rl.experience import Experience, pieces
from rlhfctl.training.rl.minibatch import Learner
from rlhfctl.training.rl.trace import Trace

_NO_DECAY_BELOW = 2  # norms and biases are vectors and are not decayed, as in transformers


def build_optimizer(
    section: Ppo, trained: Mapping[str, nn.Parameter], critic: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Make an AdamW optimizer for all trained parameters; matrices are decayed, vectors are not.

    `critic`: the names of the critic's parameters. They have groups of their own, after the policy's, if the section
    gives the critic a learning rate or a warm-up of its own.
    """
    apart = critic if has_own_schedule(section) else ()
    groups: list[dict[str, Any]] = []
    for is_critic in (False, True):
        own = [parameter for name, parameter in trained.items() if (name in apart) == is_critic]
        rate = {"lr": section.critic_learning_rate or section.learning_rate, "critic": True} if is_critic else {}
        decayed = [p for p in own if p.dim() >= _NO_DECAY_BELOW]
        others = [p for p in own if p.dim() < _NO_DECAY_BELOW]
        groups += [{"params": decayed, "weight_decay": section.weight_decay} | rate]
        groups += [{"params": others, "weight_decay": 0.0} | rate]
    fused = not any(map(sharding.is_divided, trained.values()))  # torch's fused steps take no mixture with whole ones
    options = {"fused": True} if fused else {"foreach": False}
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=section.learning_rate, **options)


def has_own_schedule(section: Ppo) -> bool:
    """Tell whether the critic's learning rate is not the policy's."""
    return section.critic_learning_rate is not None or section.critic_warmup_steps is not None


def build_scheduler(section: Ppo, optimizer: torch.optim.Optimizer, updates: int) -> LRScheduler:
    """Make the schedule of the learning rates over `updates`; the critic's may warm up over other updates."""

    def schedule(of: torch.optim.Optimizer, warmup: int) -> LambdaLR:
        return get_scheduler(section.lr_scheduler_type, of, warmup, num_training_steps=updates)

    if section.critic_warmup_steps is None:
        return schedule(optimizer, section.warmup_steps)
    throwaway = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # transformers gives one factor for all groups
    policy, critic = (schedule(throwaway, n).lr_lambdas[0] for n in (section.warmup_steps, section.critic_warmup_steps))
    return LambdaLR(optimizer, [critic if "critic" in group else policy for group in optimizer.param_groups])


def learning_rates(section: Ppo, scheduler: LRScheduler) -> dict[str, float]:
    """Return the learning rates of this update, by metric; the critic's if it has one of its own."""
    rates = scheduler.get_last_lr()
    own = {"critic_learning_rate": rates[-1]} if has_own_schedule(section) else {}
    return {"learning_rate": rates[0]} | own


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
                if learner.pretraining is not None:
                    experience.texts = learner.pretraining.chosen(experience.number, epoch, number)
                steps.append(algorithm.step(learner, experience, indices, epoch, algorithm.policy_loss, trace))
                if learner.average is not None:
                    learner.average.follow()
                work.advance(len(steps))
            moved = statistics.fmean(step["approx_kl"] for step in steps[-section.num_mini_batches :])
            if section.target_kl is not None and moved > section.target_kl:
                break
    return steps
