"""Define the `dpo` section: direct preference optimization, which trains the policy on the preferences themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from rlhfctl.recipe.sections.base import DataNeed, Rule
from rlhfctl.recipe.sections.training import Trained

# Keys of TRL's DPOConfig that have no effect here, or a key of their own, and what to do instead.
_INSTEAD = {
    "beta": "use `dpo.beta`",
    "truncation_mode": "remove it: pairs that are longer than max_length are dropped, not cut",
    "dataset_num_proc": "remove it: the rows are encoded before the trainer gets them",
    "pad_token": "remove it: base* has a pad token of its own",
    "padding_free": "remove it: TRL has switched it off",
    "sync_ref_model": "remove it: the reference is base* throughout, as for the KL and the comparison",
    "ref_model_mixup_alpha": "remove it: the reference is base* throughout",
    "ref_model_sync_steps": "remove it: the reference is base* throughout",
}


def _refused(section: Dpo) -> list[Mapping[str, str]]:
    """List the keys under `trainer` that have no effect here, with what to do instead."""
    return [{"option": key, "instead": _INSTEAD[key]} for key in section.trainer if key in _INSTEAD]


class Dpo(Trained):
    """Direct preference optimization on the preferences, by TRL's DPOTrainer; in place of `ppo`."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (DataNeed("preferences", "to train on"),)

    beta: float = Field(
        0.1, gt=0, description="Strength of the pull towards the reference, as PPO's kl_coef (beta in the DPO paper): "
        "the larger, the closer the policy stays to base*."
    )  # fmt: skip

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        Rule("trainer.{option}", "has no effect in this stage", "{instead}", _refused),
    )
