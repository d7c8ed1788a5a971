"""Define keys that all training stages share: `lora`, and TRL's trainer options in `sft` and `reward`.

Leaves out the fields of TRL's SFTConfig and RewardConfig under `trainer:`: the stages check them, because they have
TRL. Only the keys that rlhfctl owns are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlhfctl.recipe.sections.base import Rule, Section, Stage, without

# Keys of TRL's trainers that rlhfctl sets itself, and their replacements.
OWNED_TRAINER_KEYS = {
    "output_dir": "choose the folder with `--run-dir`",
    "overwrite_output_dir": "choose another folder with `--run-dir`: nothing is overwritten silently",
    "logging_dir": "choose the folder with `--run-dir`",
    "seed": "use the top-level `seed`",
    "data_seed": "use the top-level `seed`",
    "resume_from_checkpoint": "give the same command again: it resumes by itself",
    "save_strategy": "use `checkpoint_steps` of the stage",
    "save_steps": "use `checkpoint_steps` of the stage",
    "save_total_limit": "use `checkpoint_steps` of the stage",
    "save_only_model": "remove it: from weights alone a stage that was stopped cannot resume",
    "load_best_model_at_end": "remove it: a stage hands over its last weights (in sft there is `sft.choose`)",
    "report_to": "use the top-level `report_to`",
    "disable_tqdm": "remove it: the dashboard shows the progress",
    "push_to_hub": "use `rlhfctl export`, then the Hub's own upload command",
    "model_init_kwargs": "use the `model` section",
    "trust_remote_code": "use `model.trust_remote_code`",
    "chat_template_path": "use `model.chat_template`",
    "dataset_kwargs": "use the `data` section",
}


def owned_trainer_key(key: str) -> str | None:
    """Return the replacement of a trainer key that rlhfctl owns; None for any other key."""
    return OWNED_TRAINER_KEYS["push_to_hub"] if key.startswith("hub_") else OWNED_TRAINER_KEYS.get(key)


DEFAULT_TRAINER_BATCH = 8  # rows: per_device_train_batch_size of TRL's trainers where a recipe gives none
DEFAULT_TRAINER_EPOCHS = 3  # num_train_epochs of SFTConfig where a recipe gives none


def _layers_of_an_expression(lora: Lora) -> bool:
    expression = isinstance(lora.target_modules, str) and lora.target_modules != "all-linear"
    return lora.layers_to_transform is not None and expression


class Lora(Section):
    """LoRA: low-rank adapters that are trained instead of all weights."""

    r: int = Field(16, gt=0, description="Rank of the adapters.")
    lora_alpha: int = Field(
        32, gt=0, description="Scale of the adapters: their output is multiplied by lora_alpha / r."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability on the input of each adapter.")
    target_modules: str | list[str] = Field(
        "all-linear", min_length=1, description="Modules that get adapters: all-linear, a regular expression or names."
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="Indices of the layers that get adapters, the first is 0 (null: all layers)."
    )

    @model_serializer(mode="wrap")
    def _only_what_older_runs_know(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), ("layers_to_transform",) if self.layers_to_transform is None else ())

    RULES: ClassVar[tuple[Rule[Lora], ...]] = (
        Rule(
            "layers_to_transform",
            "peft chooses layers where the modules are named, but {at}.target_modules is a regular expression",
            "use all-linear or a list of names, or write the layers into the expression",
            _layers_of_an_expression,
            about=("target_modules",),
        ),
    )


LORA_OF_A_STAGE = "LoRA adapters (absent: the recipe's top-level lora; null: train all weights)."


def _owned_keys(section: Trained) -> list[Mapping[str, str]]:
    """List the trainer keys that rlhfctl owns, with their replacements."""
    pairs = ((key, owned_trainer_key(key)) for key in section.trainer)
    return [{"option": key, "instead": instead} for key, instead in pairs if instead is not None]


class Trained(Stage):
    """A stage that one of TRL's trainers trains."""

    lora: Lora | None = Field(None, description=LORA_OF_A_STAGE)
    trainer: dict[str, Any] = Field({}, description="Options of TRL's config for this stage, by TRL's names.")
    checkpoint_steps: int | None = Field(
        None, gt=0, description="Optimizer steps between checkpoints (null: about ten checkpoints per stage)."
    )

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        Rule("trainer.{option}", "rlhfctl sets this itself", "{instead}", _owned_keys),
    )
