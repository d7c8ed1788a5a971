"""Name the sections of a whole recipe, which the rules between them read, and what several of these files ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rlhfctl.recipe.sections.compare import Compare
from rlhfctl.recipe.sections.data import Data
from rlhfctl.recipe.sections.dpo import Dpo
from rlhfctl.recipe.sections.label import Label
from rlhfctl.recipe.sections.launch import Launch
from rlhfctl.recipe.sections.model import Model
from rlhfctl.recipe.sections.ppo import Ppo
from rlhfctl.recipe.sections.reward import Reward
from rlhfctl.recipe.sections.rounds import Rounds
from rlhfctl.recipe.sections.sample import Sample
from rlhfctl.recipe.sections.seeds import Seeds
from rlhfctl.recipe.sections.sft import Sft
from rlhfctl.recipe.sections.training import Lora


class Sections(Protocol):
    """The sections of a recipe that these rules read."""

    @property
    def seed(self) -> int: ...
    @property
    def seeds(self) -> Seeds | None: ...
    @property
    def model(self) -> Model: ...
    @property
    def lora(self) -> Lora | None: ...
    @property
    def data(self) -> Data: ...
    @property
    def rounds(self) -> Rounds | None: ...
    @property
    def sample(self) -> Sample | None: ...
    @property
    def label(self) -> Label | None: ...
    @property
    def sft(self) -> Sft | None: ...
    @property
    def reward(self) -> Reward | None: ...
    @property
    def ppo(self) -> Ppo | None: ...
    @property
    def dpo(self) -> Dpo | None: ...
    @property
    def compare(self) -> Compare | None: ...
    @property
    def launch(self) -> Launch | None: ...


Broken = Callable[[Sections], bool]


def classifies(recipe: Sections) -> bool:
    """Tell whether the reward asks a frozen classifier, with the responses as prompts."""
    return recipe.reward is not None and recipe.reward.prompted_classifier is not None


def quantized(recipe: Sections) -> bool:
    """Tell whether the base is held in few bits; new weights never are."""
    return recipe.model.quantization is not None and recipe.model.init is None


def divides(recipe: Sections) -> bool:
    """Tell whether the weights are divided over processes."""
    return recipe.launch is not None and recipe.launch.shard
