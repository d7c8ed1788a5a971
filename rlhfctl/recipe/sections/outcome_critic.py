"""Define `ppo.outcome_critic`: a model that predicts a program's outcome from its beginnings, and what it changes.

CodeRL: Le et al. 2022, "CodeRL: Mastering Code Generation through Pretrained Models and Deep Reinforcement Learning"
(NeurIPS 2022, arXiv 2207.01780), section 3.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhfctl.recipe.sections.base import Section

Learns = Literal["whole", "beginnings"]


class OutcomeCritic(Section):
    """A model that predicts how a program will end; its belief in what happened weighs each token's return (CodeRL)."""

    samples: int = Field(
        2048, ge=16, description="Programs of the first policy, with their outcomes, that it learns from before PPO."
    )
    epochs: int = Field(4, gt=0, description="Passes over these programs.")
    batch_size: int = Field(64, gt=0, description="Programs per optimizer step.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of AdamW, which falls linearly to 0.")
    learns: Learns = Field(
        "whole",
        description="What it is asked in training: the outcome of the whole program, from the maximum of its states "
        "over the tokens (whole, as published), or from each beginning of the program by itself (beginnings).",
    )
