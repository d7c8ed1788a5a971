"""Define the `sft` section: supervised fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from rlhfctl.recipe.sections.base import DataNeed
from rlhfctl.recipe.sections.training import Trained


class Sft(Trained):
    """Supervised fine-tuning on the demonstrations, by TRL's SFTTrainer."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (DataNeed("demonstrations", "to train on"),)
