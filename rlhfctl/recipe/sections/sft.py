"""Define the `sft` section: supervised fine-tuning."""

from __future__ import annotations

from rlhfctl.recipe.sections.training import Trained


class Sft(Trained):
    """Supervised fine-tuning on the demonstrations, by TRL's SFTTrainer."""
