"""Define the stages in one table: the section, data, parents and product of each, in the order in which they run.

`STAGES` is that table. The pipeline, `plan`, `show`, `runs` and `export` read it. A new stage is one entry here, a
module in stages/ and a section of the recipe. Functions that follow from the table are here too: the stages of a
recipe, the stages that a command chooses, parents of stages, and the state of each stage of a run.

Reads manifests. Loads no torch. Leaves out resolving models, which inputs.py does. Longer than 400 lines because
whoever changes the table needs to see what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhfctl import seeding
from rlhfctl.artifacts import MANIFEST, WORK, Artifact, Source, find_artifact, read_json
from rlhfctl.errors import HandoffError, Problem, RecipeError, RlhfctlError
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.made_data import made_data, source_stages, sources_of, stage_named
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.scorers import HELDOUT, OUTSIDE, REWARD_MODEL, is_metric, kind_of

ELSEWHERE = "from elsewhere"  # state of a stage that a model from the command line replaced
FROZEN = "frozen"  # role of the model that classifies with the responses (reward.prompted_classifier)
WAITING = "waiting.json"  # in a stage's work folder: the record of a stage that waits


@dataclass(frozen=True)
class Request:
    """The options of a command that the recipe does not hold."""

    only: str | None = None  # run this stage alone; its parents are complete
    start: str | None = None  # --from
    until: str | None = None
    force: bool = False
    external: Mapping[str, str] = field(default_factory=dict)  # role (base, reward, ...) -> path or Hub id
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_recipe: bool = False  # the run's recipe.yaml stays as it is
    siblings: tuple[Path, ...] = ()  # run folders whose complete stages with equal inputs this run takes over


@dataclass(frozen=True)
class Waiting:
    """The result of a stage that waits for people: what it waits for, and how to do it.

    The stage's work folder stays. The same command calls the stage again.
    """

    what: str
    how: str

    def __str__(self) -> str:
        return f"{self.what}; {self.how}"


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Parent:
    """One input of a stage by role: the product of an earlier stage, or a model that is named instead.

    A command names a model by the role (`Request.external`). Without `makes` only the recipe can name one.
    """

    makes: str | None = None
    used: Callable[[Recipe], bool] = lambda recipe: True
    named: Callable[[Recipe], str | None] = lambda recipe: None  # a model that the recipe names
    called: str = ""  # its name in messages (default: the role)
    earlier: bool = False  # the product of the round before: in the first round there is none
    optional: bool = False  # the stage works without it if no stage of the recipe makes it
    unless: str = ""  # an option of the command that replaces it
    missing: tuple[str, str] = ("", "")  # the error and its fix if no stage makes it


@dataclass(frozen=True)
class Stage:
    """One kind of stage. `section` is the part of the recipe that it is made from, `module` its file in stages/."""

    module: str
    section: str
    makes: str
    how_to_have: str  # fix in messages: what to add to a recipe without it
    asked: Callable[[Recipe], bool] | None = None  # whether a recipe has the stage (None: if it has the section)
    part: Callable[[Recipe], Any] | None = None  # the part of the section that it is made from (None: all of it)
    on_request: bool = False  # a command makes it, too, in a run whose recipe does not ask for it
    data: tuple[str, ...] = ()  # the data sets that it reads
    more_data: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()  # further ones that keys of the recipe ask for
    parents: Mapping[str, Parent] = field(default_factory=dict)  # by role
    model: Literal["weights", "loading"] | None = "loading"  # what it depends on of `model`: all, or loading only
    prompt_lengths: bool = False  # whether it depends on the limits of prompt lengths
    settings: Callable[[Recipe], Mapping[str, Any]] = lambda recipe: {}  # keys of other sections that it depends on
    functions: Callable[[Recipe], list[str]] = lambda recipe: []  # reward functions that it calls, "module:name"
    files: tuple[str, ...] = ()  # options of the command that name files to read
    gives_rows: bool = False  # its artifact holds rows (`data` in its layout) for `source: stage:NAME`
    repeats: bool = False  # with `rounds` it runs in every round; stages after these run once, after the last round
    extends: str = ""  # the key by which a complete stage goes on if only this number is raised
    shared: bool = False  # several processes can do it together (`launch`)
    gathers: str = ""  # a product that it reads of every seed, as parents `seed-0`, `seed-1`, ...: it runs after them


def _goes_on(recipe: Recipe) -> bool:
    """Tell whether later rounds go on from what earlier ones made."""
    return recipe.rounds is not None


def _chooses(recipe: Recipe) -> bool:
    """Tell whether questions are chosen by the reward model of the round before."""
    return _goes_on(recipe) and recipe.sample is not None and recipe.sample.candidates > 1


def _share_of_rounds(recipe: Recipe) -> dict[str, Any]:
    """Return how the questions are divided among the rounds."""
    rounds = recipe.rounds
    return {"rounds": rounds.model_dump(mode="json", include={"count", "labels"})} if rounds is not None else {}


def _ready_reward(recipe: Recipe) -> str | None:
    return recipe.reward.model if recipe.reward is not None else None


def _classifies(recipe: Recipe) -> bool:
    """Tell whether a frozen language model classifies with the responses."""
    return recipe.reward is not None and recipe.reward.prompted_classifier is not None


def _frozen_model(recipe: Recipe) -> str | None:
    """Return the frozen language model that the recipe names; None for base*."""
    section = recipe.reward.prompted_classifier if recipe.reward is not None else None
    return section.model if section is not None else None


_FROZEN_MODEL = Parent("base", used=_classifies, named=_frozen_model, called="frozen language model")


def _trains_reward(recipe: Recipe) -> bool:
    return recipe.reward is not None and recipe.reward.kind == "trained"


def _scorer(recipe: Recipe) -> Any:
    return recipe.reward.scorer if recipe.reward is not None else None


def _normalizing_data(recipe: Recipe) -> tuple[str, ...]:
    """List the data sets that `reward.normalize` reads."""
    kinds = {"demonstrations": ("demonstrations",), "reference": ("prompts",)}
    return kinds.get(recipe.reward.normalize or "", ()) if recipe.reward is not None else ()


def _data_of_ptx(recipe: Recipe) -> tuple[str, ...]:
    """List the data set of the next-token loss in PPO."""
    return (recipe.ppo.ptx.data,) if recipe.ppo is not None and recipe.ppo.ptx is not None else ()


def _rewards_go_on(recipe: Recipe) -> bool:
    """Tell whether each reward model goes on from that of the round before."""
    return recipe.has_steady_splits


def _reward_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of other sections that decide on a reward model: the split of its pairs, and its zero."""
    steady = {"rounds.reward": "last"} if recipe.has_steady_splits else {}
    return steady | _normalizing_settings(recipe)


def _normalizing_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that decide on the samples of base* for `reward.normalize: reference`."""
    if recipe.reward is None or recipe.reward.normalize != "reference":
        return {}
    lengths = {"data.prompt_lengths": [recipe.data.max_prompt_length, recipe.data.overlong_prompts]}
    return lengths | _sampling(recipe, "response_length", "temperature")


def _trains_heldout(recipe: Recipe) -> bool:
    return recipe.reward is not None and recipe.reward.heldout


def _evaluates(recipe: Recipe) -> bool:
    """Tell whether PPO evaluates the policy, and therefore asks the held-out reward model."""
    ppo, prompts = recipe.ppo, recipe.data.prompts
    return ppo is not None and ppo.eval.every > 0 and prompts is not None and prompts.eval != 0


def _judged_by(judge: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.compare is not None and judge in recipe.compare.judges


def _functions(scorers: Iterable[str], recipe: Recipe) -> list[str]:
    """List the functions that a stage's result depends on: that of the reward section, then those among `scorers`.

    Servers, further reward models and metrics over a local model count among them: their fingerprint is an input, too.
    """
    section = recipe.reward
    functions = [section.function] if section is not None and section.function is not None else []
    return [*functions, *(name for name in scorers if kind_of(name) in OUTSIDE)]


def _asked_by_compare(recipe: Recipe) -> list[str]:
    """List the judges and metrics of the comparison."""
    return [*recipe.compare.judges, *recipe.compare.metrics] if recipe.compare is not None else []


def _sampling(recipe: Recipe, *more: str) -> dict[str, Any]:
    """Return the keys of ppo that decide how responses end, and `more`: compare and card sample like PPO."""
    keys = {"stop_token", "stop_strings", "top_k", "top_p", *more}
    return {"sampling": recipe.ppo.model_dump(mode="json", include=keys)} if recipe.ppo is not None else {}


def _heldout_scorer(recipe: Recipe) -> Any:
    return recipe.reward.heldout_scorer if recipe.reward is not None else None


def _reading(recipe: Recipe) -> dict[str, Any]:
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


STAGES: dict[str, Stage] = {
    "base": Stage(
        module="base",
        section="model",
        makes="base",
        how_to_have="base is there where `sft:` is not",
        asked=lambda recipe: recipe.sft is None,
        data=("demonstrations", "prompts"),
        model="weights",
    ),
    "sft": Stage(
        module="sft",
        section="sft",
        makes="base",
        shared=True,
        how_to_have="add an `sft:` section",
        data=("demonstrations",),
        model="weights",
    ),
    "sample": Stage(
        module="sample",
        section="sample",
        makes="items",
        how_to_have="add a `sample:` section",
        repeats=True,
        data=("prompts",),
        parents={
            "base": Parent("base"),
            "policy": Parent("policy", used=_goes_on, earlier=True, called="policy of the round before"),
            "reward": Parent("reward", used=_chooses, earlier=True, called="reward model of the round before"),
        },
        prompt_lengths=True,
        settings=lambda recipe: _sampling(recipe, "response_length", "temperature") | _share_of_rounds(recipe),
    ),
    "label": Stage(
        module="label",
        section="label",
        makes="labels",
        how_to_have="add a `label:` section",
        repeats=True,
        data=(),
        parents={
            "items": Parent("items"),
            "labels": Parent("labels", used=_goes_on, earlier=True, called="labels of the round before"),
        },
        model=None,
        functions=lambda recipe: [recipe.label.by] if recipe.label is not None and recipe.label.is_function else [],
        gives_rows=True,
    ),
    "reward": Stage(
        module="reward",
        section="reward",
        makes="reward",
        shared=True,
        how_to_have="add a `reward:` section that trains a model",
        asked=_trains_reward,
        part=_scorer,
        repeats=True,
        data=("preferences",),
        more_data=_normalizing_data,
        parents={
            "base": Parent("base"),
            "start": Parent("reward", used=_rewards_go_on, earlier=True, called="reward model of the round before"),
        },
        settings=_reward_settings,
    ),
    "heldout": Stage(
        module="reward",
        section="reward",
        makes="heldout",
        shared=True,
        how_to_have="set `reward.heldout: true`",
        asked=_trains_heldout,
        part=_heldout_scorer,
        repeats=True,
        data=("preferences",),
        more_data=_normalizing_data,
        parents={
            "base": Parent("base"),
            "start": Parent("heldout", used=_rewards_go_on, earlier=True, called="held-out one of the round before"),
        },
        settings=_reward_settings,
    ),
    "card": Stage(
        module="card",
        section="reward",
        makes="card",
        how_to_have="add `card: {}` to the reward section, or give the command rlhfctl reward-eval RUN",
        asked=lambda recipe: recipe.reward is not None and recipe.reward.resolved_card is not None,
        part=lambda recipe: recipe.reward.resolved_card if recipe.reward is not None else None,
        on_request=True,
        repeats=True,
        data=("preferences", "prompts"),
        parents={
            "base": Parent("base"),
            "reward": Parent("reward", named=_ready_reward, called="reward model", optional=True),
            "heldout": Parent("heldout", called="held-out reward model", optional=True),
        },
        prompt_lengths=True,
        settings=lambda recipe: _reading(recipe) | _sampling(recipe, "response_length", "temperature"),
        functions=lambda recipe: _functions((), recipe),
    ),
    "dpo": Stage(
        module="dpo",
        section="dpo",
        makes="policy",
        how_to_have="add a `dpo:` section in place of `ppo:`",
        data=("preferences",),
        parents={"base": Parent("base")},
    ),
    "ppo": Stage(
        module="ppo",
        section="ppo",
        makes="policy",
        shared=True,
        how_to_have="add a `ppo:` section",
        repeats=True,
        extends="total_episodes",
        data=("prompts",),
        more_data=_data_of_ptx,
        parents={
            "base": Parent("base"),
            "start": Parent("policy", used=_goes_on, earlier=True, called="policy of the round before"),
            "reward": Parent("reward", named=_ready_reward, called="reward model", optional=True),
            "heldout": Parent("heldout", used=_evaluates, called="held-out reward model", optional=True),
            FROZEN: _FROZEN_MODEL,
            "critic": Parent(named=lambda recipe: recipe.ppo.critic_from if recipe.ppo is not None else None),
        },
        prompt_lengths=True,
        settings=_reading,
        functions=lambda recipe: _functions((recipe.ppo.rewards if recipe.ppo is not None else None) or (), recipe),
    ),
    "compare": Stage(
        module="compare",
        section="compare",
        makes="verdict",
        how_to_have="add a `compare:` section",
        data=("prompts",),
        parents={
            "policy": Parent(
                "policy",
                unless="policy_samples",
                missing=(
                    "there is no policy to compare: the recipe has no ppo section",
                    "add `ppo:` or `dpo:`, take `compare:` out, or give the command rlhfctl compare a --policy",
                ),
            ),
            "reference": Parent("base", unless="reference_samples"),
            "reward": Parent(
                "reward", used=_judged_by(REWARD_MODEL), named=_ready_reward, called="reward model", optional=True
            ),
            "heldout": Parent("heldout", used=_judged_by(HELDOUT), called="held-out reward model", optional=True),
            FROZEN: _FROZEN_MODEL,
        },
        prompt_lengths=True,
        settings=lambda recipe: _reading(recipe) | _sampling(recipe),
        functions=lambda recipe: _functions(_asked_by_compare(recipe), recipe),
        files=("policy_samples", "reference_samples"),
    ),
    seeding.SUMMARY: Stage(
        module="summary",
        section="seeds",
        makes="summary",
        how_to_have="add `seeds:` and a `compare:` section",
        asked=lambda recipe: recipe.seeds is not None and recipe.compare is not None,
        model=None,
        settings=lambda recipe: {"bootstrap_samples": recipe.compare.bootstrap_samples if recipe.compare else None},
        gathers="verdict",
    ),
}
"""The stages by name, in the order in which they run."""


# ---------------------------------------------------------------- the stages of a recipe


def stages_of(recipe: Recipe) -> list[str]:
    """List the stages of a recipe, in order. Without `sft`, base* is the recipe's model unchanged."""
    return [name for name, stage in STAGES.items() if _is_asked(stage, recipe)]


def _is_asked(stage: Stage, recipe: Recipe) -> bool:
    return stage.asked(recipe) if stage.asked is not None else getattr(recipe, stage.section) is not None


def data_of_kind(name: str, recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the data sets that the stage `name` of `recipe` reads."""
    return (*STAGES[name].data, *STAGES[name].more_data(recipe))


def section_of(name: str, recipe: Recipe) -> Any:
    """Return the section of the recipe that a stage is made from, or its part of one."""
    part = STAGES[name].part
    return part(recipe) if part is not None else getattr(recipe, STAGES[name].section)


def trainer_options(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """Return the options under `trainer:`, by stage."""
    sections = {name: section_of(name, recipe) for name in STAGES}
    return {name: section.trainer for name, section in sections.items() if hasattr(section, "trainer")}


def functions_of(recipe: Recipe) -> list[str]:
    """List the reward functions that any stage calls, each once."""
    return list(dict.fromkeys(name for stage in STAGES.values() for name in stage.functions(recipe)))


def metrics_of(recipe: Recipe) -> dict[str, list[str]]:
    """List the metrics that a recipe names, by the key that names them (`ppo.rewards`, ...)."""
    ppo, compare = recipe.ppo, recipe.compare
    named = {
        "ppo.rewards": list((ppo.rewards if ppo is not None else None) or ()),
        "compare.judges": compare.judges if compare is not None else [],
        "compare.metrics": compare.metrics if compare is not None else [],
    }
    return {key: [name for name in names if is_metric(name)] for key, names in named.items()}


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


# ---------------------------------------------------------------- parents


def makers_of(product: str) -> list[str]:
    """List the stages that make `product`."""
    return [name for name, stage in STAGES.items() if stage.makes == product]


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


def stages_in(recipe: Recipe, paths: RunPaths) -> list[StageId]:
    """List the stages of a run: those of its recipe, made on request, or of later rounds with a folder, in order."""
    asked = stages_of(recipe)
    extra = {name for name, stage in STAGES.items() if stage.on_request and name not in asked}
    asked_for = in_order(recipe)
    seeds = list(dict.fromkeys(stage.seed for stage in asked_for))  # None: shared by all seeds
    found = [stage for stage in paths.stages() if stage.name in STAGES]
    made = [one for one in found if one.round == 1 and one.name in extra and one.seed in (None, *seeds)]
    made = [one for one in made if (paths.stage(one) / MANIFEST).is_file()]
    later = [one for one in found if one.round > 1 and one not in asked_for]

    def position(one: StageId) -> tuple[bool, bool, int, tuple[float, int]]:
        seed = -1 if one.seed is None else seeds.index(one.seed) if one.seed in seeds else len(seeds)
        return one in later, bool(STAGES[one.name].gathers), seed, place_of(one)

    return sorted([*asked_for, *made, *later], key=position)


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


def base_among(name: str, parents: Mapping[str, Source]) -> Source | None:
    """Return the base* among the parents of a stage; None if it has none."""
    roles = (role for role, parent in STAGES[name].parents.items() if parent.makes == "base" and role in parents)
    return next((parents[role] for role in roles), None)


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


# ---------------------------------------------------------------- the stages of a run


def read_stages(paths: RunPaths, stages: Sequence[StageId]) -> tuple[dict[StageId, str], dict[StageId, Artifact]]:
    """Return the state of each stage, and the artifacts of complete stages, in the order of `stages`.

    A state is complete, waiting, under way, not started, or from elsewhere.
    """
    found = {stage: find_artifact(paths.stage(stage)) for stage in stages}
    artifacts = {stage: made for stage, made in found.items() if made is not None}

    def state(stage: StageId) -> str:
        if stage in artifacts:
            return "complete"
        folder = paths.stage(stage)
        if folder.is_dir():
            return "under way" if waiting_at(folder) is None else "waiting"
        return ELSEWHERE if _given_from_elsewhere(stage, artifacts) else "not started"

    return {stage: state(stage) for stage in stages}, artifacts


def waiting_at(folder: Path) -> Waiting | None:
    """Return what the stage in `folder` waits for; None if it does not wait."""
    file = folder / WORK / WAITING
    return Waiting(**read_json(file)) if file.is_file() else None


def _given_from_elsewhere(stage: StageId, artifacts: Mapping[StageId, Artifact]) -> bool:
    """Tell whether a command named a model instead of a stage that the run lacks (`--policy`, `--reward-model`).

    `artifacts`: the run's complete stages. Their manifests record the path of each parent.
    """
    role = STAGES[stage.name].makes  # stages that read it use this role
    readers = [one for one in artifacts if stage.seed in (None, one.seed)]
    parents = [artifacts[one].manifest.parents.get(role) for one in readers]
    return any(parent is not None and not _lies_in(parent.path, stage) for parent in parents)


def _lies_in(path: str, stage: StageId) -> bool:
    return path == str(stage) or path.startswith(f"{stage}/")
