"""Define the rules on several processes beside the other sections of a recipe, as data.

rules.py puts them among the others. Rules about the keys of `launch` alone are in its section (sections/). Keys and
placeholders here are paths from the top of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlhfctl.recipe.sections.base import Rule
from rlhfctl.recipe.sections.reward import Reward
from rlhfctl.recipe.sections.sft import Sft
from rlhfctl.recipe.sections.training import DEFAULT_TRAINER_BATCH
from rlhfctl.recipe.sections.whole import Sections, classifies, divides


def _trainer_batch(section: Sft | Reward | None) -> int | None:
    """Return the rows of a batch of one of TRL's trainers; None if the stage trains nothing."""
    if section is None or not section.trains:
        return None
    given = section.trainer.get("per_device_train_batch_size", DEFAULT_TRAINER_BATCH)
    return given if isinstance(given, int) else None


def _if_several(broken: Callable[[Sections, int], bool]) -> Callable[[Sections], list[Mapping[str, str]]]:
    """Make a rule of several processes, which knows their number as {processes}."""

    def found(recipe: Sections) -> list[Mapping[str, str]]:
        count = recipe.launch.num_processes if recipe.launch is not None else 1
        return [{"processes": str(count)}] if count > 1 and broken(recipe, count) else []

    return found


def _rows_for_all(stage: str) -> Callable[[Sections], list[Mapping[str, str]]]:
    def broken(recipe: Sections) -> list[Mapping[str, str]]:
        rows = _trainer_batch(getattr(recipe, stage))
        several = _if_several(lambda recipe, count: rows is not None and 0 < rows < count)
        return [{**values, "rows": str(rows)} for values in several(recipe)]

    return broken


PROCESSES: tuple[Rule[Sections], ...] = (
    Rule(
        "launch.shard",
        "ppo.outcome_critic is a whole copy of base* in each process",
        "take one of the two out",
        lambda recipe: divides(recipe) and recipe.ppo is not None and recipe.ppo.outcome_critic is not None,
        about=("ppo.outcome_critic",),
    ),
    Rule(
        "launch.shard",
        "the frozen model of reward.prompted_classifier is whole in each process",
        "take one of the two out",
        lambda recipe: divides(recipe) and classifies(recipe),
        about=("reward.prompted_classifier",),
    ),
    Rule(
        "launch.shard",
        "weights in few bits ({model.quantization}) cannot be divided over processes",
        "take one of the two out; model.dtype: bfloat16 halves what is divided",
        lambda recipe: divides(recipe) and recipe.model.quantization is not None,
        about=("model.quantization",),
    ),
    *(
        Rule(
            f"{stage}.trainer.per_device_train_batch_size",
            "a batch of {rows} rows has no part for each of {processes} processes, which divide it",
            "raise it (and lower gradient_accumulation_steps), or take fewer processes",
            _rows_for_all(stage),
            about=("launch.num_processes",),
        )
        for stage in ("sft", "reward")
    ),
    Rule(
        "ppo.num_mini_batches",
        "a minibatch of {ppo.mini_batch_size} episodes has no part for each of {processes} processes",
        "lower it, raise per_device_train_batch_size, or take fewer processes",
        _if_several(lambda recipe, count: recipe.ppo is not None and recipe.ppo.mini_batch_size < count),
        about=("launch.num_processes", "ppo.per_device_train_batch_size", "ppo.gradient_accumulation_steps"),
    ),
    Rule(
        "ppo.engine",
        "TRL's PPOTrainer would take other batches in {processes} processes",
        "use engine: rlhfctl, or launch.num_processes: 1",
        _if_several(lambda recipe, count: recipe.ppo is not None and recipe.ppo.engine == "trl"),
        about=("launch.num_processes",),
    ),
    Rule(
        "launch.shard",
        "the stage dpo trains in one process, which holds all weights",
        "leave shard out; with dpo.lora the weights are there once",
        lambda recipe: recipe.dpo is not None and divides(recipe),
        about=("dpo",),
    ),
)
