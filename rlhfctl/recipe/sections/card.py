"""Define the `reward.card` and `reward.gate` sections: how a reward model is examined before PPO, and what stops it.

Neither is an input of the reward model: a changed card or gate trains nothing again (graph.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhfctl.recipe.sections.base import Section

MOST_SAMPLES = 256  # per prompt: best of 256 is at most 4.55 nats from the reference

FlagName = Literal["at_chance", "length_only", "will_not_survive", "fooled", "overconfident", "other_base"]


class Card(Section):
    """Size of the pool of samples from base* that the reward model's card measures best-of-n curves on."""

    prompts: int = Field(
        64, gt=0, description="Number of eval prompts to sample (of held-out pairs where there are no eval prompts)."
    )
    samples: int = Field(
        32, ge=2, le=MOST_SAMPLES, description="Responses per prompt: the largest n of the best-of-n curves."
    )


class Gate(Section):
    """Conditions on the card under which `run` goes on to PPO; it stops with exit code 8 otherwise."""

    min_accuracy: float | None = Field(
        0.55,
        ge=0,
        le=1,
        description="Least accuracy on held-out pairs: the lower end of its 95% interval counts (null: any).",
    )
    min_length_controlled_accuracy: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="The same for the accuracy with the chosen response longer as often as shorter (null: any).",
    )
    flags: list[FlagName] = Field(
        ["length_only"], description="Flags of the card that close the gate, too; fooled stands for every probe."
    )
