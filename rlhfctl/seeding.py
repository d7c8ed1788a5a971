"""Line up the stages of a run over several seeds: which are shared, which run once per seed, which a command names.

Pure functions on names of stages and on StageIds, for graph.py, which knows the table of stages. Reads the `seeds` of a
recipe; reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rlhfctl.errors import Problem, RecipeError, RlhfctlError
from rlhfctl.paths import StageId
from rlhfctl.recipe.schema import Recipe

SUMMARY = "summary"  # the stage that reads the verdicts of all seeds


def seeded_names(recipe: Recipe, names: Sequence[str], supervised: Collection[str]) -> list[str]:
    """List those of the stages `names` that run once per seed, in order; none in a run with one seed.

    They begin with the stage that `seeds.from` names, else after the `supervised` stages (sft or base), which are the
    common start of all seeds. RecipeError if there is no such stage.
    """
    if recipe.seeds is None:
        return []
    named = recipe.seeds.start
    later = [name for name in names if name not in supervised]
    if named is not None and named not in names:
        what = f"the recipe has no stage {named!r} that can run once per seed"
        raise RecipeError([Problem("seeds.from", what, fix=f"use one of {', '.join(names)}")])
    if named is None and not later:
        what = f"no stage runs once per seed: all seeds share {', '.join(names)}"
        fix = f"name the first that does, for example seeds: {{values: 3, from: {names[0]}}}"
        raise RecipeError([Problem("seeds", what, fix=fix)])
    return list(names[names.index(named or later[0]) :])


def line_up(recipe: Recipe, names: Sequence[str], seeded: Collection[str], last: Collection[str]) -> list[StageId]:
    """List the stages of the first round as they run: shared ones, all `seeded` ones of each seed, then the `last`."""
    seeds = recipe.seeds.listed if recipe.seeds is not None else []
    return [
        *(StageId(1, name) for name in names if name not in seeded and name not in last),
        *(StageId(1, name, seed) for seed in seeds for name in names if name in seeded),
        *(StageId(1, name) for name in names if name in last),
    ]


def recipe_of(stage: StageId, recipe: Recipe) -> Recipe:
    """Return the recipe with the seed of a stage; a stage that all seeds share has the recipe's own `seed`."""
    return recipe if stage.seed is None else recipe.model_copy(update={"seed": stage.seed})


def stages_named(text: str, stages: Iterable[StageId]) -> list[StageId]:
    """List the stages that a text names: one by its whole text, or those of its name in round 1, one per seed."""
    listed = list(stages)
    whole = [stage for stage in listed if str(stage) == text]
    return whole or [stage for stage in listed if stage.round == 1 and stage.name == text]


def one_named(text: str, stages: Iterable[StageId]) -> StageId | None:
    """Return the one stage that a text names, None without one; RlhfctlError if there is one per seed."""
    named = stages_named(text, stages)
    if len(named) > 1:
        raise RlhfctlError(
            f"the run has one stage {text} per seed", fix=f"name one of {', '.join(str(stage) for stage in named)}"
        )
    return named[0] if named else None


def between(stages: Sequence[StageId], start: str | None, until: str | None, order: Sequence[str]) -> list[StageId]:
    """List the stages from `start` to `until`. RlhfctlError if there are none.

    `seed-1/ppo` is one place in the run. `ppo` of several seeds is a place in each seed. `order`: names in the order of
    the table.
    """

    def position(stage: StageId, text: str) -> int:
        """Return 0 at the place that `text` names, a number below 0 before it, and one above 0 after it."""
        named = stages_named(text, stages)
        if len(named) == 1:
            return stages.index(stage) - stages.index(named[0])
        return order.index(stage.name) - order.index(text)

    chosen = [stage for stage in stages if start is None or position(stage, start) >= 0]
    chosen = [stage for stage in chosen if until is None or position(stage, until) <= 0]
    if not chosen:
        raise RlhfctlError(f"--from {start} comes after --until {until}", fix="swap them")
    return chosen


def stands_before(stage: StageId, others: Iterable[StageId], stages: Sequence[StageId]) -> bool:
    """Tell whether one of `others` comes after `stage` and may depend on it: a stage of its seed, or a shared one."""
    place = stages.index(stage)
    return any(
        stages.index(other) > place and (None in (stage.seed, other.seed) or stage.seed == other.seed)
        for other in others
    )


def require_own_samples(recipe: Recipe, options: Collection[str]) -> None:
    """Raise RlhfctlError if the `options` of a command give samples made elsewhere to a recipe with several seeds."""
    if recipe.seeds is not None and "policy_samples" in options:
        raise RlhfctlError(
            "samples made elsewhere are the same for every seed", fix="compare them once: add --set seeds=null"
        )


def left_over(found: Iterable[StageId], asked: Collection[StageId]) -> list[StageId]:
    """List the stages among those `found` in a run that its recipe has lost because its seeds changed.

    `asked`: the stages of the recipe.
    """
    names = {SUMMARY, *(stage.name for stage in asked if stage.seed is not None)}
    lost = [stage for stage in found if stage.round == 1 and stage not in asked]
    return [stage for stage in lost if stage.seed is not None or stage.name in names]


def describe_left_over(stages: Iterable[StageId]) -> str:
    """Say that stages stay as they are though the recipe has lost them."""
    return f"kept as they are, and not read, since the recipe's seeds changed: {', '.join(map(str, stages))}"
