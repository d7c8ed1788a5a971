"""Define the `choose` section of sft: which checkpoint of the training becomes base*."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section
from rlhfctl.recipe.sections.scorers import HELDOUT_LOSS, described_in, unknown_in
from rlhfctl.recipe.sections.server import UNFIT, UNFIT_FIX, unfit


class Choose(Section):
    """The checkpoint whose samples to the eval prompts, one each, score best, or with the least held-out loss."""

    by: str = Field(
        min_length=1,
        description="Scorer of the samples: a reward model's folder or id with a slash (runs/NAME/reward of another "
        f"run), module:name of a function, http://... of a server, {described_in('sft.choose.by')}.",
    )
    every: int | None = Field(
        None, gt=0, description="Optimizer steps between two candidates (null: an epoch). The last step is always one."
    )
    temperature: float | None = Field(None, gt=0, description="Temperature of sampling (null: PPO's, else 1).")
    max_new_tokens: int | None = Field(
        None, gt=0, description="Maximum response length in tokens (null: ppo.response_length, else 53)."
    )
    batch_size: int = Field(64, gt=0, description="Number of responses sampled, and scored by a model, at once.")

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        Rule(
            "by",
            "there is no scorer {by!r} here: this run's own reward model is trained on what sft leaves, and gold "
            "chooses nothing",
            f"use a model's folder or id with a slash, such as runs/NAME/reward, module:name, http://..., "
            f"{described_in('sft.choose.by')}",
            lambda choose: bool(unknown_in("sft.choose.by", [choose.by])),
        ),
        Rule("by", UNFIT, UNFIT_FIX, lambda choose: unfit(choose.by)),
        *(
            Rule[Any](
                key,
                f"is for samples, but {HELDOUT_LOSS} reads held-out demonstrations",
                "remove it",
                lambda choose, key=key: (
                    choose.by == HELDOUT_LOSS  # type: ignore[misc]
                    and choose.is_set(key)
                    and getattr(choose, key) is not None
                ),
                about=("by",),
            )
            for key in ("temperature", "max_new_tokens", "batch_size")
        ),
    )
