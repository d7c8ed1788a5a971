"""Build scorers from their names in a recipe: rewards of PPO and judges of the comparison alike.

BUILDERS is the only table of scorers. To add a scorer: write it as a RewardFunction in a file of this folder, and give
its name a row here and in recipe/sections/scorers.py; docs/extending.md shows one. This file loads no models:
stages/loader.py loads the reward model, and the caller passes the gold scorer in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.errors import HandoffError
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.ensembles import Ensemble
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.scorers import (
    CORRECT,
    DISTINCT,
    FUNCTION,
    GOLD,
    HELDOUT,
    MODEL,
    OVER_MODELS,
    OVERLAPS,
    PASSES,
    PROMPTED,
    REWARD,
    REWARD_FUNCTION,
    REWARD_MODEL,
    SERVER,
    UNIT_TESTS,
    is_address,
    kind_of,
)
from rlhfctl.recipe.sections.server import Server
from rlhfctl.recipe.sections.unit_tests import UnitTests
from rlhfctl.rewards.checked import Checked, Say
from rlhfctl.rewards.ensemble import EnsembleReward
from rlhfctl.rewards.episode import RewardFunction
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.metric import MetricReward, build_metric
from rlhfctl.rewards.model import ClassifierReward, ModelReward, TextModelReward, in_shares
from rlhfctl.rewards.prompted_classifier import OwnExample, PromptedClassifierReward, PromptScores
from rlhfctl.rewards.server import ServerReward
from rlhfctl.rewards.unit_tests import PassRate, UnitTestsReward
from rlhfctl.rewards.weighted import WeightedReward


def _silent(sentence: str) -> None:
    pass


@dataclass(frozen=True)
class LoadedRewardModel:
    """A loaded reward model: a text classifier, a decoder with a scalar head, or an ensemble of these heads.

    `tokenizer`: tokenizes the text for the head; None means that the head reads the policy's ids, padded with
    `pad_token_id`.
    """

    model: nn.Module | Classifier
    pad_token_id: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True)
class Resources:
    """The settings and models that scorers are built from.

    `folder`: functions are imported from it. `function`: the function of the reward section. `finite`: whether a
    function's score must be finite. `batch_size`: responses per forward of a reward model. `function_batch_size`:
    responses per call of a function (None: all). `server`: how servers are asked. `reward_model`, `heldout`: load the
    reward model, and the held-out reward model, when they are needed. `models`: loads a further reward model by its
    name in the recipe. `processes`: those that score together; all give a
    scorer the same episodes. `prompted`: loads the frozen model of a prompted classifier when it is needed.
    """

    folder: Path
    function: str | None = None
    retries: int = 0
    finite: bool = True
    batch_size: int = 64
    function_batch_size: int | None = None
    warn: Say = _silent
    reward_model: Callable[[], LoadedRewardModel] | None = None
    heldout: Callable[[], LoadedRewardModel] | None = None
    gold: RewardFunction | None = None
    processes: Processes = ALONE
    unit_tests: UnitTests | None = None
    server: Server = field(default_factory=Server)
    models: Callable[[str], LoadedRewardModel] | None = None
    prompted: Callable[[], PromptScores] | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Resources:
        """Take the folder of a recipe, and the function, retries and unit tests of its reward section."""
        section = recipe.reward
        folder = Path(recipe.folder or ".")
        if section is None:
            return cls(folder)
        return cls(
            folder, section.function, section.retries, server=section.server or Server(), unit_tests=section.unit_tests
        )


def build_scorer(name: str, resources: Resources) -> RewardFunction:
    """Build the scorer that a recipe calls `name`."""
    return BUILDERS[kind_of(name)](name, resources)


def build_reward(weights: Mapping[str, float] | None, resources: Resources) -> RewardFunction:
    """Build what PPO trains against: the reward section's scorer, or the weighted sum that `ppo.rewards` asks for."""
    if weights is None:
        return build_scorer(REWARD, resources)
    scorers = {name: (build_scorer(name, resources), weight) for name, weight in weights.items()}
    return WeightedReward(scorers, resources.warn)


def build_function(name: str, resources: Resources) -> Checked:
    """Build the scorer that calls the Python function module:name, or asks the server at an address."""
    if is_address(name):
        return ServerReward(
            name, resources.server, finite=resources.finite, say=resources.warn, processes=resources.processes
        )
    return FunctionReward(
        name,
        resources.folder,
        finite=resources.finite,
        retries=resources.retries,
        batch_size=resources.function_batch_size,
        say=resources.warn,
        processes=resources.processes,
    )


def _reward_section(name: str, resources: Resources) -> RewardFunction:
    if resources.unit_tests is not None:
        return UnitTestsReward(resources.unit_tests, resources.processes)
    if resources.prompted is not None:
        scores = resources.prompted()
        return PromptedClassifierReward(scores, zscore=scores.section.zscore)
    build = _reward_model if resources.reward_model is not None else _reward_function
    return build(name, resources)


def _reward_function(name: str, resources: Resources) -> RewardFunction:
    assert resources.function is not None  # required by the recipe's rules
    return build_function(resources.function, resources)


def _reward_model(name: str, resources: Resources) -> RewardFunction:
    if resources.reward_model is None:
        raise HandoffError(f"the judge {name} has no reward model to ask", fix="name one with --reward-model")
    return _scorer_of(resources.reward_model(), resources)


def _heldout(name: str, resources: Resources) -> RewardFunction:
    if resources.heldout is None:
        raise HandoffError(f"the judge {name} has no reward model to ask", fix="set reward.heldout: true")
    return _scorer_of(resources.heldout(), resources)


def _named_model(name: str, resources: Resources) -> RewardFunction:
    if resources.models is None:
        raise HandoffError(f"the reward model {name} cannot be loaded here", fix="name it as reward.model")
    return _scorer_of(resources.models(name), resources)


def _scorer_of(loaded: LoadedRewardModel, resources: Resources) -> RewardFunction:
    size, warn = resources.batch_size, resources.warn
    if isinstance(loaded.model, Classifier):
        return in_shares(ClassifierReward(loaded.model, size), resources.processes)
    if isinstance(loaded.model, Ensemble):
        members = [_scorer_of(replace(loaded, model=member), resources) for member in loaded.model]
        return EnsembleReward(members, loaded.model.aggregate, loaded.model.coefficient)
    model = loaded.model.requires_grad_(False).eval()
    if loaded.tokenizer is not None:
        return in_shares(TextModelReward(model, loaded.tokenizer, size, warn), resources.processes)
    assert loaded.pad_token_id is not None
    return in_shares(ModelReward(model, loaded.pad_token_id, size, warn), resources.processes)


def _metric(name: str, resources: Resources) -> MetricReward:
    return build_metric(name, resources.folder, resources.batch_size, resources.warn, resources.processes)


def _gold(name: str, resources: Resources) -> RewardFunction:
    assert resources.gold is not None  # the recipe's rules allow gold in the built-in task only
    return resources.gold


def _unit_tests(name: str, resources: Resources) -> RewardFunction:
    assert resources.unit_tests is not None  # required by the recipe's rules
    return (
        PassRate(resources.unit_tests, resources.processes)
        if name == PASSES
        else UnitTestsReward(resources.unit_tests, resources.processes)
    )


def _own_example(name: str, resources: Resources) -> RewardFunction:
    if resources.prompted is None:
        raise HandoffError(
            f"the judge {name} has no frozen model to ask", fix="judge with it in a run: rlhfctl compare"
        )
    return OwnExample(resources.prompted(), correct=name == CORRECT)


BUILDERS: dict[str, Callable[[str, Resources], RewardFunction]] = {
    REWARD: _reward_section,
    REWARD_MODEL: _reward_model,
    REWARD_FUNCTION: _reward_function,
    HELDOUT: _heldout,
    GOLD: _gold,
    UNIT_TESTS: _unit_tests,
    PASSES: _unit_tests,
    PROMPTED: _own_example,
    CORRECT: _own_example,
    FUNCTION: build_function,
    SERVER: build_function,
    MODEL: _named_model,
    **dict.fromkeys((*OVERLAPS, *DISTINCT, *OVER_MODELS, "length"), _metric),
}
"""Kind of scorer (recipe/sections/scorers.py) -> function that builds it from its name and the resources."""
