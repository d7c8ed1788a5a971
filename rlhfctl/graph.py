"""Define the stages in one table: the section, data, parents and product of each, in the order in which they run.

`STAGES` is that table. The pipeline, `plan`, `show`, `runs` and `export` read it. A new stage is one entry here, a
module in stages/ and a section of the recipe. Functions that look up rows for a recipe are here too.

Loads no torch. Leaves out what a row asks of a recipe (stage_needs.py), order and parents (stage_order.py), the stages
of a run (run_stages.py), and resolving models (inputs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhfctl import seeding
from rlhfctl import stage_needs as needs
from rlhfctl.artifacts import Source
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.scorers import HELDOUT, REWARD_MODEL, is_metric

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


_FROZEN_MODEL = Parent("base", used=needs.classifies, named=needs.frozen_model, called="frozen language model")


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
        more_data=needs.data_of_choice,
        model="weights",
        settings=needs.choice_settings,
        functions=needs.choosing_functions,
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
            "policy": Parent("policy", used=needs.goes_on, earlier=True, called="policy of the round before"),
            "reward": Parent("reward", used=needs.chooses, earlier=True, called="reward model of the round before"),
        },
        prompt_lengths=True,
        settings=lambda recipe: (
            needs.sampling(recipe, "response_length", "temperature") | needs.share_of_rounds(recipe)
        ),
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
            "labels": Parent("labels", used=needs.goes_on, earlier=True, called="labels of the round before"),
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
        asked=needs.trains_reward,
        part=needs.scorer,
        repeats=True,
        data=("preferences",),
        more_data=needs.normalizing_data,
        parents={
            "base": Parent("base"),
            "start": Parent(
                "reward", used=needs.rewards_go_on, earlier=True, called="reward model of the round before"
            ),
        },
        settings=needs.reward_settings,
    ),
    "heldout": Stage(
        module="reward",
        section="reward",
        makes="heldout",
        shared=True,
        how_to_have="set `reward.heldout: true`",
        asked=needs.trains_heldout,
        part=needs.heldout_scorer,
        repeats=True,
        data=("preferences",),
        more_data=needs.normalizing_data,
        parents={
            "base": Parent("base"),
            "start": Parent(
                "heldout", used=needs.rewards_go_on, earlier=True, called="held-out one of the round before"
            ),
        },
        settings=needs.reward_settings,
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
            "reward": Parent("reward", named=needs.ready_reward, called="reward model", optional=True),
            "heldout": Parent("heldout", called="held-out reward model", optional=True),
        },
        prompt_lengths=True,
        settings=lambda recipe: needs.reading(recipe) | needs.sampling(recipe, "response_length", "temperature"),
        functions=lambda recipe: needs.functions((), recipe),
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
        more_data=needs.data_of_ptx,
        parents={
            "base": Parent("base"),
            "start": Parent("policy", used=needs.goes_on, earlier=True, called="policy of the round before"),
            "reward": Parent("reward", named=needs.ready_reward, called="reward model", optional=True),
            "heldout": Parent("heldout", used=needs.evaluates, called="held-out reward model", optional=True),
            FROZEN: _FROZEN_MODEL,
            "critic": Parent(named=lambda recipe: recipe.ppo.critic_from if recipe.ppo is not None else None),
        },
        prompt_lengths=True,
        settings=needs.reading,
        functions=lambda recipe: needs.functions(
            (recipe.ppo.rewards if recipe.ppo is not None else None) or (), recipe
        ),
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
                "reward",
                used=needs.judged_by(REWARD_MODEL),
                named=needs.ready_reward,
                called="reward model",
                optional=True,
            ),
            "heldout": Parent("heldout", used=needs.judged_by(HELDOUT), called="held-out reward model", optional=True),
            FROZEN: _FROZEN_MODEL,
        },
        prompt_lengths=True,
        settings=lambda recipe: needs.reading(recipe) | needs.sampling(recipe),
        functions=lambda recipe: needs.functions(needs.asked_by_compare(recipe), recipe),
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
    ppo, compare, by = recipe.ppo, recipe.compare, needs.chosen_by(recipe)
    named = {
        "sft.choose.by": [by] if by is not None else [],
        "ppo.rewards": list((ppo.rewards if ppo is not None else None) or ()),
        "compare.judges": compare.judges if compare is not None else [],
        "compare.metrics": compare.metrics if compare is not None else [],
    }
    return {key: [name for name in names if is_metric(name)] for key, names in named.items()}


def makers_of(product: str) -> list[str]:
    """List the stages that make `product`."""
    return [name for name, stage in STAGES.items() if stage.makes == product]


def base_among(name: str, parents: Mapping[str, Source]) -> Source | None:
    """Return the base* among the parents of a stage; None if it has none."""
    roles = (role for role, parent in STAGES[name].parents.items() if parent.makes == "base" and role in parents)
    return next((parents[role] for role in roles), None)
