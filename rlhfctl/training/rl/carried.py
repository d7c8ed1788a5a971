"""Hold what an update hands on to the next one beside weights and optimizer: KL coefficient, scores so far, average.

Adaptive KL coefficient: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. Average of the weights: Ouyang et al. 2022
(InstructGPT, 2203.02155), appendix C.4. All of it is saved in checkpoints, so a resumed run goes on exactly. Every
process holds the whole batch of numbers, and so the same state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhfctl.models import sharding
from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.ppo_details import LARGEST_KL_ERROR
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.moments import NO_SCORES, Moments
from rlhfctl.training.rl.roles import Roles

AVERAGE = "average.safetensors"  # file of a checkpoint


def next_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, responses: int) -> float:
    """Compute the KL coefficient after an update whose mean KL, in nats per response, was `kl`.

    e = clip(kl / target - 1, -0.2, 0.2); the coefficient times 1 + e x responses / horizon (1909.08593, section 2.2,
    whose K_beta is responses / horizon).
    """
    error = min(max(kl / target - 1, -LARGEST_KL_ERROR), LARGEST_KL_ERROR)
    return kl_coef * (1 + error * responses / horizon)


class WeightAverage:
    """Follow trained weights by an exponential moving average, which can stand in their place for a while.

    The average begins as the weights themselves and is kept in float32 or wider: in 16 bits a step of it would be lost.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.weights = dict(weights)
        self.decay = decay
        self.average = {name: _wide(weight) for name, weight in self.weights.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the weights: decay x average + (1 - decay) x weights."""
        for name, weight in self.weights.items():
            own = sharding.part_here(self.average[name])
            own.lerp_(sharding.part_here(weight.detach()).to(own.dtype), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the average inside the block."""
        kept = {name: sharding.part_here(weight.detach()).clone() for name, weight in self.weights.items()}
        self.adopt()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    sharding.part_here(weight).copy_(kept[name])

    @torch.no_grad()
    def adopt(self) -> None:
        """Overwrite the weights with their average."""
        for name, weight in self.weights.items():
            sharding.part_here(weight).copy_(sharding.part_here(self.average[name]))


def _wide(weight: nn.Parameter) -> Tensor:
    wide: Tensor = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    return wide


class Carried:
    """The state of an update that the next one reads. `average` is None without `ema_decay`."""

    def __init__(self, section: Ppo, roles: Roles) -> None:
        self.section = section
        self.kl_coef = section.kl_coef
        self.scores = NO_SCORES
        self.average: WeightAverage | None = None
        if section.ema_decay is not None:
            of_critic = roles.critic_parameters()
            policy = {name: one for name, one in roles.trainable().items() if name not in of_critic}
            self.average = WeightAverage(policy, section.ema_decay)

    def after(self, experience: Experience) -> None:
        """Take in a finished update."""
        section = self.section
        if section.kl_target is not None:
            kl = float(experience.kl.sum(1).mean())
            self.kl_coef = next_kl_coef(
                self.kl_coef, kl, section.kl_target, section.kl_horizon, len(experience.responses)
            )
        if section.normalize_scores is not None:
            self.scores = experience.moments

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the policy compute with the average of its weights inside the block, where there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place():
            yield

    # ------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """Return the numbers for a checkpoint."""
        return {"kl_coef": self.kl_coef, "scores": list(astuple(self.scores))}

    def weights(self) -> dict[str, Tensor]:
        """Copy the average to the CPU, by name; divided weights are gathered, which is collective."""
        average = {} if self.average is None else self.average.average
        return {name: sharding.whole(value).to("cpu", copy=True).contiguous() for name, value in average.items()}

    def load(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Restore `state()` and `weights()`; an older checkpoint has neither."""
        self.kl_coef = state.get("kl_coef", self.section.kl_coef)
        self.scores = Moments(*state.get("scores", ()))
        if self.average is not None:
            for name, value in self.average.average.items():
                sharding.overwrite(value, weights[name])


def save_average(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write an average into the folder of a checkpoint, where there is one."""
    if weights:
        save_file(weights, folder / AVERAGE)


def read_average(folder: Path) -> dict[str, Tensor]:
    """Read the average of a checkpoint; empty without one."""
    file = folder / AVERAGE
    return load_file(file) if file.is_file() else {}
