"""Line up the stages of a run over several seeds: which are shared, which run once per seed, which a command names.

Pure functions on names of stages and on StageIds, for graph.py, which knows the table of stages. Reads the `seeds` of a
recipe; reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

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


def line_up(
    recipe: Recipe, names: Sequence[str], seeded: Collection[str], repeated: Collection[str], last: Collection[str]
) -> list[StageId]:
    """List the stages as they run: shared ones, all `seeded` ones of each seed, then the `last`.

    With `rounds` the `repeated` ones run once per round. Those that stand after them run once, after the last round.
    """
    seeds = recipe.seeds.listed if recipe.seeds is not None else []
    before = [name for name in names if name not in last]
    return [
        *_by_round(recipe, [name for name in before if name not in seeded], repeated, None),
        *(one for seed in seeds for one in _by_round(recipe, [n for n in before if n in seeded], repeated, seed)),
        *(StageId(1, name) for name in names if name in last),
    ]


def _by_round(recipe: Recipe, names: Sequence[str], repeated: Collection[str], seed: int | None) -> Iterator[StageId]:
    """List stages with the repeated ones round by round; the others are called as in the first round."""
    rounds = recipe.rounds.count if recipe.rounds is not None else 1
    places = [place for place, name in enumerate(names) if name in repeated] if rounds > 1 else []
    first, end = (places[0], places[-1] + 1) if places else (len(names), len(names))
    yield from (StageId(1, name, seed) for name in names[:first])
    yield from (StageId(number, name, seed) for number in range(1, rounds + 1) for name in names[first:end] if places)
    yield from (StageId(1, name, seed) for name in names[end:])


def recipe_of(stage: StageId, recipe: Recipe) -> Recipe:
    """Return the recipe with the seed of a stage; a stage that all seeds share has the recipe's own `seed`."""
    return recipe if stage.seed is None else recipe.model_copy(update={"seed": stage.seed})


def stages_named(text: str, stages: Iterable[StageId]) -> list[StageId]:
    """List the stages that a text names: one by its whole text, or those of its name in round 1, one per seed."""
    listed = list(stages)
    whole = [stage for stage in listed if str(stage) == text]
    return whole or [stage for stage in listed if stage.round == 1 and stage.name == text]


def one_named(text: str, stages: Iterable[StageId]) -> StageId | None:
    """Return the one stage that a text names, None without one; RlhfctlError if there is one per seed.

    `ppo` is that of the last round, `round-1/ppo` that of the first.
    """
    listed = list(stages)
    if text.startswith("round-"):
        named = [stage for stage in listed if str(stage) == text.removeprefix("round-1/")]
    else:
        alike = stages_named(text, [replace(stage, round=1) for stage in listed])
        found = [stage for stage in listed if replace(stage, round=1) in alike]
        named = [stage for stage in found if stage.round == max(one.round for one in found)]
    if len(named) > 1:
        raise RlhfctlError(
            f"the run has one stage {text} per seed", fix=f"name one of {', '.join(str(stage) for stage in named)}"
        )
    return named[0] if named else None


def between(
    stages: Sequence[StageId], start: str | None, until: str | None, place_of: Callable[[StageId], tuple[float, int]]
) -> list[StageId]:
    """List the stages from `start` to `until`. RlhfctlError if there are none.

    `seed-1/ppo` is one place in the run. `ppo` of several seeds is a place in each seed, which `place_of` compares.
    """

    def position(stage: StageId, text: str) -> int:
        """Return 0 at the place that `text` names, a number below 0 before it, and one above 0 after it."""
        named = stages_named(text, stages)
        if len(named) == 1:
            return stages.index(stage) - stages.index(named[0])
        place, there = place_of(stage), place_of(named[0])
        return (place > there) - (place < there)

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
    """List the stages among those `found` in a run that its recipe has lost because its seeds or rounds changed.

    `asked`: the stages of the recipe.
    """
    names = {SUMMARY, *(stage.name for stage in asked if stage.seed is not None)}
    known = {stage.name for stage in asked}
    lost = [stage for stage in found if stage not in asked]
    later = [stage for stage in lost if stage.round > 1 and stage.name in known]
    return [stage for stage in lost if stage in later or stage.seed is not None or stage.name in names]


def describe_left_over(stages: Iterable[StageId]) -> str:
    """Say that stages stay as they are though the recipe has lost them."""
    return f"kept as they are, and not read, since the recipe's seeds or rounds changed: {', '.join(map(str, stages))}"
