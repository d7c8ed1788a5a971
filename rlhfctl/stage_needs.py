"""Say of a recipe what the table of stages (graph.py) asks: which models, data, settings and functions a stage reads.

Pure functions of the recipe, one per question. Leaves out which stage asks which question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.scorers import HELDOUT_LOSS, OUTSIDE, PASSES, UNIT_TESTS, kind_of


def chosen_by(recipe: Recipe) -> str | None:
    """Return the scorer by which sft chooses its checkpoint; None if it hands over its last weights."""
    choose = recipe.sft.choose if recipe.sft is not None else None
    return choose.by if choose is not None else None


def data_of_choice(recipe: Recipe) -> tuple[str, ...]:
    """List the data set whose eval prompts sft's candidates answer."""
    return ("prompts",) if chosen_by(recipe) not in (None, HELDOUT_LOSS) else ()


def choice_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of other sections that decide on the answers of sft's candidates, and on their scores."""
    by = chosen_by(recipe)
    if by is None or by == HELDOUT_LOSS:
        return {}
    lengths = {"data.prompt_lengths": [recipe.data.max_prompt_length, recipe.data.overlong_prompts]}
    tests = reading(recipe) if by in (UNIT_TESTS, PASSES) else {}
    return lengths | tests | sampling(recipe, "response_length", "temperature")


def choosing_functions(recipe: Recipe) -> list[str]:
    """List the function, server or model that chooses sft's checkpoint, if one does."""
    by = chosen_by(recipe)
    return [by] if by is not None and kind_of(by) in OUTSIDE else []


def goes_on(recipe: Recipe) -> bool:
    """Tell whether later rounds go on from what earlier ones made."""
    return recipe.rounds is not None


def chooses(recipe: Recipe) -> bool:
    """Tell whether questions are chosen by the reward model of the round before."""
    return goes_on(recipe) and recipe.sample is not None and recipe.sample.candidates > 1


def share_of_rounds(recipe: Recipe) -> dict[str, Any]:
    """Return how the questions are divided among the rounds."""
    rounds = recipe.rounds
    return {"rounds": rounds.model_dump(mode="json", include={"count", "labels"})} if rounds is not None else {}


def ready_reward(recipe: Recipe) -> str | None:
    return recipe.reward.model if recipe.reward is not None else None


def classifies(recipe: Recipe) -> bool:
    """Tell whether a frozen language model classifies with the responses."""
    return recipe.reward is not None and recipe.reward.prompted_classifier is not None


def frozen_model(recipe: Recipe) -> str | None:
    """Return the frozen language model that the recipe names; None for base*."""
    section = recipe.reward.prompted_classifier if recipe.reward is not None else None
    return section.model if section is not None else None


def trains_reward(recipe: Recipe) -> bool:
    return recipe.reward is not None and recipe.reward.kind == "trained"


def scorer(recipe: Recipe) -> Any:
    return recipe.reward.scorer if recipe.reward is not None else None


def normalizing_data(recipe: Recipe) -> tuple[str, ...]:
    """List the data sets that `reward.normalize` reads."""
    kinds = {"demonstrations": ("demonstrations",), "reference": ("prompts",)}
    return kinds.get(recipe.reward.normalize or "", ()) if recipe.reward is not None else ()


def data_of_ptx(recipe: Recipe) -> tuple[str, ...]:
    """List the data set of the next-token loss in PPO."""
    return (recipe.ppo.ptx.data,) if recipe.ppo is not None and recipe.ppo.ptx is not None else ()


def rewards_go_on(recipe: Recipe) -> bool:
    """Tell whether each reward model goes on from that of the round before."""
    return recipe.has_steady_splits


def reward_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of other sections that decide on a reward model: the split of its pairs, and its zero."""
    steady = {"rounds.reward": "last"} if recipe.has_steady_splits else {}
    return steady | normalizing_settings(recipe)


def normalizing_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that decide on the samples of base* for `reward.normalize: reference`."""
    if recipe.reward is None or recipe.reward.normalize != "reference":
        return {}
    lengths = {"data.prompt_lengths": [recipe.data.max_prompt_length, recipe.data.overlong_prompts]}
    return lengths | sampling(recipe, "response_length", "temperature")


def trains_heldout(recipe: Recipe) -> bool:
    return recipe.reward is not None and recipe.reward.heldout


def evaluates(recipe: Recipe) -> bool:
    """Tell whether PPO evaluates the policy, and therefore asks the held-out reward model."""
    ppo, prompts = recipe.ppo, recipe.data.prompts
    return ppo is not None and ppo.eval.every > 0 and prompts is not None and prompts.eval != 0


def judged_by(judge: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.compare is not None and judge in recipe.compare.judges


def functions(scorers: Iterable[str], recipe: Recipe) -> list[str]:
    """List the functions that a stage's result depends on: that of the reward section, then those among `scorers`.

    Servers, further reward models and metrics over a local model count among them: their fingerprint is an input, too.
    """
    section = recipe.reward
    functions = [section.function] if section is not None and section.function is not None else []
    return [*functions, *(name for name in scorers if kind_of(name) in OUTSIDE)]


def asked_by_compare(recipe: Recipe) -> list[str]:
    """List the judges and metrics of the comparison."""
    return [*recipe.compare.judges, *recipe.compare.metrics] if recipe.compare is not None else []


def sampling(recipe: Recipe, *more: str) -> dict[str, Any]:
    """Return the keys of ppo that decide how responses end, and `more`: compare and card sample like PPO."""
    keys = {"stop_token", "stop_strings", "top_k", "top_p", *more}
    return {"sampling": recipe.ppo.model_dump(mode="json", include=keys)} if recipe.ppo is not None else {}


def heldout_scorer(recipe: Recipe) -> Any:
    return recipe.reward.heldout_scorer if recipe.reward is not None else None


def reading(recipe: Recipe) -> dict[str, Any]:
    """Return how the recipe's reward is read: a classifier's label, how an ensemble's scores become one, or tests."""
    if recipe.reward is None or recipe.reward.kind == "function":
        return {}
    if recipe.reward.unit_tests is not None:
        return {"reward.unit_tests": recipe.reward.unit_tests.as_input()}
    if recipe.reward.prompted_classifier is not None:
        return {"reward.prompted_classifier": recipe.reward.prompted_classifier.as_input()}
    if recipe.reward.kind == "trained":
        if recipe.reward.members == 1:
            return {}
        return {"reward.aggregate": [recipe.reward.aggregate, recipe.reward.variance_coefficient]}
    reading = [recipe.reward.label, recipe.reward.reads]
    return {"reward.label": reading} if any(option is not None for option in reading) else {}
