"""Define the `sft` section: supervised fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlhfctl.recipe.sections.base import DataNeed, Rule, without
from rlhfctl.recipe.sections.choose import Choose
from rlhfctl.recipe.sections.training import DEFAULT_TRAINER_EPOCHS, Trained


def _has_one_candidate(sft: Sft) -> bool:
    choose, epochs = sft.choose, sft.trainer.get("num_train_epochs", DEFAULT_TRAINER_EPOCHS)
    counts_epochs = choose is not None and choose.every is None and "max_steps" not in sft.trainer
    return counts_epochs and isinstance(epochs, int | float) and epochs <= 1


class Sft(Trained):
    """Supervised fine-tuning on the demonstrations, by TRL's SFTTrainer."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (DataNeed("demonstrations", "to train on"),)

    choose: Choose | None = Field(
        None, description="Hand over the checkpoint whose samples score best, as InstructGPT does (null: the last)."
    )

    @model_serializer(mode="wrap")
    def _only_what_older_runs_know(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), ("choose",) if self.choose is None else ())

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        *(
            Rule[Any](
                f"trainer.{key}",
                "is not used: the loss on held-out demonstrations is measured after each epoch",
                "set data.demonstrations.heldout, and remove it",
                lambda sft, key=key: sft.trainer.get(key) not in (None, False, "no"),  # type: ignore[misc]
                about=("trainer.eval_strategy",),
            )
            for key in ("eval_strategy", "eval_steps", "eval_on_start")
        ),
        Rule(
            "choose",
            "has one candidate: the training has one epoch, and a candidate is made after each",
            "raise {at}.trainer.num_train_epochs, or set {at}.choose.every",
            _has_one_candidate,
            about=("trainer.num_train_epochs", "choose.every"),
        ),
    )
