"""Name the sections of a whole recipe, which the rules between them read."""

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
