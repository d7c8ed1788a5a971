"""Define the recipe: combine the sections, fill in values that one inherits from another, and check all rules.

The keys of each section, their types, defaults and descriptions are in sections/, the rules between sections in
rules.py. Names are those of Hugging Face and TRL. Each key's description is written once for the help, the JSON Schema
and the docs. A validated `Recipe` is resolved: each stage has the inherited `lora`.

A new stage is a file in sections/ with a `Stage` class, and one field of `Recipe` here: docs/extending.md shows one.

Leaves out reading files, paths and messages with line numbers (load.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rlhfctl.recipe import rules
from rlhfctl.recipe.sections.base import Conflict, Key, Rule, Section, Stage
from rlhfctl.recipe.sections.card import Card, Gate
from rlhfctl.recipe.sections.choose import Choose
from rlhfctl.recipe.sections.compare import Compare, Controls
from rlhfctl.recipe.sections.data import (
    BUILTIN_DATA_KEYS,
    DATA_SUFFIXES,
    ONE_SOURCE_KEYS,
    OWN_DATA_KEYS,
    PROGRAMS,
    REPLACED,
    SENTIMENT,
    STAGE_SOURCE,
    Answered,
    Compared,
    Data,
    Demonstrations,
    DemonstrationsPart,
    Preferences,
    PreferencesPart,
    Prompts,
    PromptsPart,
    Source,
    Turns,
    looks_like_id,
)
from rlhfctl.recipe.sections.dpo import Dpo
from rlhfctl.recipe.sections.label import Label
from rlhfctl.recipe.sections.launch import Launch
from rlhfctl.recipe.sections.model import Init, Model
from rlhfctl.recipe.sections.ppo import DEFAULT_RESPONSE_LENGTH, OWN_ENGINE_KEYS, REFUSED_PPO_KEYS, Ppo, PpoEval
from rlhfctl.recipe.sections.reward import Reward, RewardText
from rlhfctl.recipe.sections.rounds import Rounds
from rlhfctl.recipe.sections.sample import Sample
from rlhfctl.recipe.sections.seeds import LARGEST_SEED, Seeds
from rlhfctl.recipe.sections.sft import Sft
from rlhfctl.recipe.sections.training import OWNED_TRAINER_KEYS, Lora, Trained, owned_trainer_key

__all__ = [
    "BUILTIN_DATA_KEYS",
    "DATA_SUFFIXES",
    "NAME",
    "ONE_SOURCE_KEYS",
    "OWNED_TRAINER_KEYS",
    "OWN_DATA_KEYS",
    "OWN_ENGINE_KEYS",
    "PROGRAMS",
    "REFUSED_PPO_KEYS",
    "REPLACED",
    "SENTIMENT",
    "STAGE_SOURCE",
    "Answered",
    "Card",
    "Choose",
    "Compare",
    "Compared",
    "Conflict",
    "Controls",
    "Data",
    "Demonstrations",
    "DemonstrationsPart",
    "Dpo",
    "Gate",
    "Init",
    "Key",
    "Label",
    "Launch",
    "Lora",
    "Model",
    "Ppo",
    "PpoEval",
    "Preferences",
    "PreferencesPart",
    "Prompts",
    "PromptsPart",
    "Recipe",
    "Reward",
    "RewardText",
    "Rounds",
    "Rule",
    "Sample",
    "Section",
    "Seeds",
    "Sft",
    "Source",
    "Stage",
    "Trained",
    "Turns",
    "looks_like_id",
    "owned_trainer_key",
]  # fmt: skip

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Recipe(Section):
    """The whole run: model, data, and the stages in order; a stage without a section is not run."""

    name: str = Field(pattern=NAME, description="The run's name, and its folder's.")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Random seed of new weights, training order and sampling.")
    seeds: Seeds | None = Field(
        None, description="Several seeds in one run, a number or a list: later stages run once per seed, and `summary` "
        "gives the verdict over all of them (null: `seed` alone)."
    )  # fmt: skip
    rounds: Rounds | None = Field(
        None, description="Number of rounds of sample, label, reward and ppo, each going on from the last (null: one)."
    )
    data_seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Random seed of the built-in data and of all splits: runs that differ in "
        "`seed` alone are trained and judged on the same rows."
    )  # fmt: skip
    folder: str | None = Field(
        None, min_length=1, description="Folder that reward functions are imported from; set in the resolved recipe."
    )
    model: Model = Field(description="Where the weights come from.")
    lora: Lora | None = Field(None, description="LoRA adapters of every stage that trains and has no `lora` itself.")
    data: Data = Field(Data(), description="Data sets for training and testing.")
    sft: Sft | None = Field(None, description="Supervised fine-tuning on demonstrations.")
    sample: Sample | None = Field(None, description="Responses of the current policy for people to compare.")
    label: Label | None = Field(None, description="Judgements of these responses: the preferences that reward reads.")
    reward: Reward | None = Field(None, description="What scores a response: a reward model or a function.")
    ppo: Ppo | None = Field(None, description="Reinforcement learning against the reward (PPO).")
    dpo: Dpo | None = Field(
        None, description="Training of the policy on the preferences themselves (DPO), in place of ppo."
    )
    compare: Compare | None = Field(None, description="The verdict: comparison of the policy with the base model.")
    launch: Launch | None = Field(None, description="Several processes or machines for training (null: one process).")
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="Trackers that also get the metrics of every stage. TensorBoard's files stay in the run folder."
    )

    @model_validator(mode="after")
    def _resolve_and_check(self) -> Recipe:
        """Fill in values that one section inherits from another; then raise all conflicts as one error."""
        self._inherit_lora()
        if self.label is not None and self.data.preferences is None:
            made = Preferences(source=f"{STAGE_SOURCE}label")
            self._fill("data", self.data.model_copy(update={"preferences": made}))
        found = list(self.conflicts())
        if found:
            text = "\n".join(f"{conflict.key}: {conflict.what}; {conflict.fix}" for conflict in found)
            raise PydanticCustomError("conflicts", "{text}", {"text": text, "conflicts": found})
        if self.compare is not None:
            length = self.ppo.response_length if self.ppo else DEFAULT_RESPONSE_LENGTH
            self._fill("compare", self.compare.resolved(length))
        if self.seeds is not None:
            self._fill("seeds", self.seeds.resolved(self.seed))
        return self

    @property
    def has_steady_splits(self) -> bool:
        """Tell whether a prompt keeps its side of every split of pairs when others are added.

        Reward models that go on from the round before have trained on its prompts, so none of these may be held out.
        """
        return self.rounds is not None and self.rounds.reward == "last"

    def _inherit_lora(self) -> None:
        for name, section in self._stages():
            if section.trains and "lora" in type(section).model_fields and not section.is_set("lora"):
                self._fill(name, section.model_copy(update={"lora": self.lora}))

    def _stages(self) -> list[tuple[str, Stage]]:
        sections: list[tuple[str, Any]] = [(name, getattr(self, name)) for name in type(self).model_fields]
        return [(name, section) for name, section in sections if isinstance(section, Stage)]

    def _fill(self, name: str, section: Section) -> None:
        """Set a field during validation, as a frozen dataclass does in its __post_init__."""
        self.__dict__[name] = section

    def conflicts(self, at: str = "") -> Iterator[Conflict]:
        """List all broken rules: those of each section, in order, then those between sections."""
        yield from self.inner_conflicts(at)
        yield from self.broken_rules(at)


def stage_sections(recipe: type[Section] = Recipe) -> dict[str, type[Stage]]:
    """The sections of a recipe that make a stage, by key, in order."""
    kinds = {name: (info.annotation, *get_args(info.annotation)) for name, info in recipe.model_fields.items()}
    found = [(name, part) for name, parts in kinds.items() for part in parts if isinstance(part, type)]
    return {name: part for name, part in found if issubclass(part, Stage)}


Recipe.RULES = rules.rules_of(stage_sections())
