"""Put the stages of a recipe in order, choose those of a command, and say whose products each stage reads.

Follows from the table of graph.py. Raises where a stage lacks a parent or a data set its maker. Reads no files.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from rlhfctl import seeding
from rlhfctl.errors import HandoffError, Problem, RecipeError, RlhfctlError
from rlhfctl.graph import STAGES, Request, data_of_kind, makers_of, stages_of
from rlhfctl.paths import StageId
from rlhfctl.recipe.made_data import made_data, source_stages, sources_of, stage_named
from rlhfctl.recipe.schema import Recipe


def choose(stages: Sequence[StageId], request: Request) -> list[StageId]:
    """Return the stages that a command asks for; RlhfctlError if the recipe has no stage of that name.

    In a run over several seeds `ppo` means that stage of every seed, `seed-1/ppo` that of one seed.
    """
    for option, value in (("", request.only), ("--from ", request.start), ("--until ", request.until)):
        if value is not None and not seeding.stages_named(value, stages):
            raise RlhfctlError(
                f"{option}{value}: the recipe has no such stage",
                fix=f"its stages are {', '.join(map(str, stages))}"
                + (f"; {STAGES[value].how_to_have}" if value in STAGES else ""),
            )
    if request.only is not None:
        return seeding.stages_named(request.only, stages)
    return seeding.between(stages, request.start, request.until, place_of)


def latest_before(stage: StageId, names: Collection[str], known: Iterable[StageId]) -> StageId | None:
    """Return the last of the `known` stages before `stage` that has one of `names`; None without one.

    A stage of the same round counts if it stands above in the table, then stages of the round before, and so on. It has
    the seed of `stage`, or is shared by all seeds.
    """
    related = [one for one in known if one.name in names and one.seed in (None, stage.seed)]
    earlier = [one for one in related if place_of(one) < place_of(stage)]
    return max(earlier, key=lambda one: (*place_of(one), one.seed is not None), default=None)


def within_rounds(stage: StageId, recipe: Recipe, known: Iterable[StageId]) -> list[StageId]:
    """Return the `known` stages but those of rounds that the recipe has lost: what runs at the end reads none of them.

    A stage of such a round still reads what it was made from.
    """
    last = max(stage.round, recipe.rounds.count if recipe.rounds is not None else 1)
    return [one for one in known if one.round <= last]


def place_of(stage: StageId) -> tuple[float, int]:
    """Return the place of a stage in time, to compare with: its round, and its row in the table.

    Stages below the repeated ones run once, after the last round: their round counts as infinite.
    """
    names = list(STAGES)
    last = max(names.index(name) for name, kind in STAGES.items() if kind.repeats)
    row = names.index(stage.name)
    return (math.inf if row > last else stage.round), row


def in_order(recipe: Recipe) -> list[StageId]:
    """Return the stages of a recipe as they run: shared ones, those of each seed by round, then what gathers them."""
    last = [name for name, stage in STAGES.items() if stage.gathers]
    repeated = [name for name, stage in STAGES.items() if stage.repeats]
    return seeding.line_up(recipe, stages_of(recipe), seeded_stages(recipe), repeated, last)


def seeded_stages(recipe: Recipe) -> list[str]:
    """List the stages that run once per seed, in order: from `seeds.from` on; none in a run with one seed."""
    names = [name for name in stages_of(recipe) if not STAGES[name].gathers]
    return seeding.seeded_names(recipe, names, makers_of("base"))


# ---------------------------------------------------------------- parents


def own_parents(stage: StageId, recipe: Recipe, known: Sequence[StageId]) -> list[StageId]:
    """List the `known` stages that `stage` reads unless a model is named instead, in order."""
    known = within_rounds(stage, recipe, known)
    parents = [parent for parent in STAGES[stage.name].parents.values() if parent.used(recipe) or not parent.earlier]
    kinds = [makers_of(parent.makes) for parent in parents if parent.makes is not None]
    kinds += [[name] for name in source_stages(data_of_kind(stage.name, recipe), recipe.data)]
    found = {latest_before(stage, names, known) for names in kinds} | set(gathered_by(stage, known))
    return [one for one in known if one in found]


def gathered_by(stage: StageId, known: Iterable[StageId]) -> list[StageId]:
    """List the `known` stages of all seeds that `stage` reads, in order; none for a stage that gathers nothing."""
    kind = STAGES[stage.name].gathers
    return [one for one in known if kind and STAGES[one.name].makes == kind and one.round == stage.round]


# ---------------------------------------------------------------- what a recipe must have


def require_parents(stages: Iterable[StageId], recipe: Recipe, request: Request) -> None:
    """Raise HandoffError if a stage needs a product that no stage of the recipe makes and the command does not name."""
    names = stages_of(recipe)
    for stage in stages:
        for role, parent in STAGES[stage.name].parents.items():
            made = parent.makes is None or any(name in names for name in makers_of(parent.makes))
            given = role in request.external or parent.unless in request.options
            if not made and not given and not parent.optional:
                what, fix = parent.missing
                raise HandoffError(what, where=str(stage), fix=fix)


def require_sources(recipe: Recipe) -> None:
    """Raise RecipeError if `seeds` or a data set names a stage that the recipe lacks, or that makes no rows for it."""
    seeded_stages(recipe)
    names, problems = stages_of(recipe), []
    givers = [name for name in names if STAGES[name].gives_rows]
    for data_name in made_data(recipe.data):
        for key, source in sources_of(getattr(recipe.data, data_name)):
            name = stage_named(source)
            if name is not None and (what := _why_unfit(name, data_name, recipe)) is not None:
                givers_said = "a stage that makes rows: " + ", ".join(givers) if givers else "no stage here makes rows"
                fix = f"name a file, a folder or an id on the Hub; {givers_said}"
                problems.append(Problem(f"data.{data_name}.{key}", what, fix=fix))
    if problems:
        raise RecipeError(problems)


def _why_unfit(name: str, data_name: str, recipe: Recipe) -> str | None:
    """Explain why the stage `name` cannot make the data set `data_name` of `recipe`."""
    names = stages_of(recipe)
    if name not in names:
        return f"the recipe has no stage {name!r}: its stages are {', '.join(names)}"
    if not STAGES[name].gives_rows:
        return f"the stage {name} makes no rows of data"
    early = [reader for reader in names[: names.index(name) + 1] if data_name in data_of_kind(reader, recipe)]
    return f"the stage {early[0]} reads it before the stage {name} has made it" if early else None
