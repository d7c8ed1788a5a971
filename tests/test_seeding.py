"""Runs over several seeds: which stages run once per seed, their order and parents, and which a command names."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_here
from stages_of_a_run import publish, recipe_at

from rlhfctl import pipeline, run_stages, stage_order
from rlhfctl.artifacts import Source, find_artifact
from rlhfctl.errors import RecipeError, RlhfctlError
from rlhfctl.graph import Request
from rlhfctl.inputs import inputs_of, parents_of
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.schema import Recipe
from rlhfctl.seeding import left_over, one_named, recipe_of, require_own_samples, stands_before

ORDER = [
    "sft",
    "seed-4/reward",
    "seed-4/ppo",
    "seed-4/compare",
    "seed-9/reward",
    "seed-9/ppo",
    "seed-9/compare",
    "summary",
]


def texts(stages: list[StageId]) -> list[str]:
    return [str(stage) for stage in stages]


def recipe(folder: Path, seeds: str = "[4, 9]", *more: str) -> Recipe:
    return recipe_at(folder, f"seeds={seeds}", *more).recipe


@pytest.fixture
def stages(tmp_path: Path) -> list[StageId]:
    return stage_order.in_order(recipe(tmp_path))


# ---------------------------------------------------------------- the order


def test_shared_stages_come_first_then_each_seed_then_the_summary(stages: list[StageId]) -> None:
    assert texts(stages) == ORDER


@pytest.mark.parametrize(
    ("seeds", "more", "expected"),
    [
        ("{values: [4, 9], from: ppo}", (), "sft reward seed-4/ppo seed-4/compare seed-9/ppo seed-9/compare summary"),
        ("{values: [9, 4], from: sft}", ("compare=null", "ppo=null"), "seed-9/sft seed-9/reward seed-4/sft "
         "seed-4/reward"),
        ("2", ("sft=null", "seed=3"), "base seed-3/reward seed-3/ppo seed-3/compare seed-4/reward seed-4/ppo "
         "seed-4/compare summary"),
        ("2", ('reward={function: "scores:length"}',), "sft seed-0/ppo seed-0/compare seed-1/ppo seed-1/compare "
         "summary"),
        ("2", ("compare=null", "ppo=null"), "sft seed-0/reward seed-1/reward"),
        ("null", (), "sft reward ppo compare"),
    ],
)  # fmt: skip
def test_from_says_which_stages_run_once_per_seed(
    seeds: str, more: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert texts(stage_order.in_order(recipe(tmp_path, seeds, *more))) == expected.split()


@pytest.mark.parametrize(
    ("seeds", "more", "said"),
    [
        ("{values: 2, from: pppo}", (), "seeds.from: the recipe has no stage 'pppo' that can run once per seed"),
        ("{values: 2, from: summary}", (), "use one of sft, reward, ppo, compare"),
        ("{values: 2, from: base}", (), "seeds.from: the recipe has no stage 'base'"),
        ("2", ("reward=null", "ppo=null", "compare=null"), "seeds: no stage runs once per seed: all seeds share sft"),
    ],
)
def test_seeds_that_no_stage_has_are_refused_with_a_way_out(
    seeds: str, more: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    changed = recipe(tmp_path, seeds, *more)
    with pytest.raises(RecipeError, match=r"seeds") as caught:
        stage_order.require_sources(changed)
    assert said in str(caught.value)
    options = [part for one in (f"seeds={seeds}", *more) for part in ("--set", one)]
    refused = run_here("validate", tmp_path / "plan.yaml", *options, cwd=tmp_path)
    assert refused.returncode == 2 and said in refused.stderr


# ---------------------------------------------------------------- what a stage is made from


def test_a_stage_is_made_with_its_seed_from_stages_of_its_seed_or_shared_ones(
    stages: list[StageId], tmp_path: Path
) -> None:
    whole = recipe(tmp_path)
    handed = {str(stage): texts(stage_order.own_parents(stage, whole, stages)) for stage in stages}
    assert handed == {
        "sft": [],
        "seed-4/reward": ["sft"],
        "seed-4/ppo": ["sft", "seed-4/reward"],
        "seed-4/compare": ["sft", "seed-4/reward", "seed-4/ppo"],
        "seed-9/reward": ["sft"],
        "seed-9/ppo": ["sft", "seed-9/reward"],
        "seed-9/compare": ["sft", "seed-9/reward", "seed-9/ppo"],
        "summary": ["seed-4/compare", "seed-9/compare"],
    }
    assert [recipe_of(stage, whole).seed for stage in stages] == [0, 4, 4, 4, 9, 9, 9, 0]


def test_the_list_of_seeds_is_no_input_of_any_stage_but_the_summary(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    for text in ORDER[:-1]:
        publish(run.root / text, stage=text)
    found = {}
    for seeds in ("[4, 9]", "[4, 9, 2]", "{values: [9, 4]}"):
        whole = recipe(tmp_path, seeds)
        several = [stage for stage in stage_order.in_order(whole) if str(stage) in ORDER[:-1]]
        found[seeds] = {str(stage): inputs_of(stage, whole, run, {}, Request()) for stage in several}
    assert found["[4, 9]"] == found["[4, 9, 2]"] == found["{values: [9, 4]}"]
    alone = recipe(tmp_path, "null")
    assert inputs_of(StageId(1, "sft"), alone, run, {}, Request()) == found["[4, 9]"]["sft"]
    assert found["[4, 9]"]["seed-9/ppo"]["seed"] == "9" and found["[4, 9]"]["sft"]["seed"] == "0"
    summary = StageId(1, "summary")
    whole = recipe(tmp_path)
    assert [*parents_of(summary, whole, run, Request())] == ["seed-4", "seed-9"]
    inputs = inputs_of(summary, whole, run, {}, Request())
    assert inputs["seed-4"] == Source.of(find_artifact(run.root / "seed-4/compare")).fingerprint  # type: ignore[arg-type]
    assert inputs != inputs_of(summary, recipe(tmp_path, "[4, 9]", "compare.bootstrap_samples=100"), run, {}, Request())


# ---------------------------------------------------------------- what a command chooses


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(), ORDER),
        (Request(only="ppo"), ["seed-4/ppo", "seed-9/ppo"]),
        (Request(only="seed-9/ppo"), ["seed-9/ppo"]),
        (Request(only="sft"), ["sft"]),
        (Request(until="ppo"), ["sft", "seed-4/reward", "seed-4/ppo", "seed-9/reward", "seed-9/ppo"]),
        (Request(start="ppo"), ["seed-4/ppo", "seed-4/compare", "seed-9/ppo", "seed-9/compare", "summary"]),
        (Request(start="ppo", until="ppo"), ["seed-4/ppo", "seed-9/ppo"]),
        (Request(until="seed-4/ppo"), ORDER[:3]),
        (Request(start="seed-9/reward"), ORDER[4:]),
        (Request(start="summary"), ["summary"]),
        (Request(until="sft"), ["sft"]),
    ],
)
def test_a_command_names_a_stage_of_one_seed_or_of_all(
    request_: Request, expected: list[str], stages: list[StageId]
) -> None:
    assert texts(stage_order.choose(stages, request_)) == expected


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(only="seed-1/ppo"), "seed-1/ppo: the recipe has no such stage"),
        (Request(start="seed-9/ppo", until="seed-4/ppo"), "--from seed-9/ppo comes after --until seed-4/ppo"),
        (Request(start="compare", until="reward"), "--from compare comes after --until reward"),
    ],
)
def test_a_stage_that_no_seed_has_is_named(request_: Request, said: str, stages: list[StageId]) -> None:
    with pytest.raises(RlhfctlError, match=said):
        stage_order.choose(stages, request_)


def test_where_one_stage_is_needed_its_seed_is_asked_for(stages: list[StageId]) -> None:
    assert one_named("sft", stages) == StageId(1, "sft") and one_named("label", stages) is None
    assert one_named("seed-9/ppo", stages) == StageId(1, "ppo", 9)
    with pytest.raises(RlhfctlError, match="one stage ppo per seed") as caught:
        one_named("ppo", stages)
    assert caught.value.fix == "name one of seed-4/ppo, seed-9/ppo"
    rounds = [*map(StageId.parse, ("sft", "ppo", "round-2/ppo", "round-3/ppo", "compare"))]
    named = {
        text: str(one_named(text, rounds)) for text in ("ppo", "round-1/ppo", "round-2/ppo", "compare", "round-9/ppo")
    }
    assert named == {
        "ppo": "round-3/ppo", "round-1/ppo": "ppo", "round-2/ppo": "round-2/ppo", "compare": "compare",
        "round-9/ppo": "None",
    }  # fmt: skip
    both = [*map(StageId.parse, ("seed-1/ppo", "round-2/seed-1/ppo", "seed-2/ppo"))]
    assert str(one_named("seed-1/ppo", both)) == "round-2/seed-1/ppo"


def test_a_stage_stands_before_those_of_its_own_seed_and_shared_ones(stages: list[StageId]) -> None:
    def before(text: str, *others: str) -> bool:
        return stands_before(StageId.parse(text), map(StageId.parse, others), stages)

    assert before("sft", "seed-9/ppo") and before("seed-4/reward", "seed-4/ppo") and before("seed-4/ppo", "summary")
    assert not before("seed-4/reward", "seed-9/ppo") and not before("seed-4/compare", "seed-4/reward")
    assert not before("summary", *ORDER[:-1])


def test_samples_made_elsewhere_have_no_seeds(tmp_path: Path) -> None:
    require_own_samples(recipe(tmp_path, "null"), {"policy_samples": "a"})
    with pytest.raises(RlhfctlError, match="the same for every seed"):
        require_own_samples(recipe(tmp_path), {"policy_samples": "a"})


# ---------------------------------------------------------------- other seeds later


def test_stages_of_a_seed_that_was_taken_out_are_told(tmp_path: Path) -> None:
    found = list(
        map(StageId.parse, ["sft", "ppo", "seed-4/ppo", "seed-9/ppo", "summary", "round-2/ppo", "tensorboard"])
    )
    whole = recipe(tmp_path)
    assert texts(left_over(found, stage_order.in_order(whole))) == ["ppo", "round-2/ppo"]
    assert texts(left_over(found, stage_order.in_order(recipe(tmp_path, "[9, 11]")))) == [
        "ppo",
        "seed-4/ppo",
        "round-2/ppo",
    ]
    assert texts(left_over(found, stage_order.in_order(recipe(tmp_path, "null")))) == [
        "seed-4/ppo",
        "seed-9/ppo",
        "summary",
        "round-2/ppo",
    ]


def test_the_stages_of_a_run_keep_the_order_of_its_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for text in ("seed-9/card", "seed-7/card", "round-2/reward", "round-2/seed-9/ppo"):
        publish(run / text, stage=text)
    listed = texts(run_stages.stages_in(recipe(tmp_path, "[9, 4]"), RunPaths(run)))
    assert listed == [
        "sft", "seed-9/reward", "seed-9/card", "seed-9/ppo", "seed-9/compare",
        "seed-4/reward", "seed-4/ppo", "seed-4/compare", "summary", "round-2/reward", "round-2/seed-9/ppo",
    ]  # fmt: skip


def test_a_reward_of_another_seed_is_not_from_elsewhere(tmp_path: Path) -> None:
    run, paths = tmp_path / "run", RunPaths(tmp_path / "run")
    made = publish(run / "seed-4/reward", stage="seed-4/reward")
    publish(run / "seed-4/ppo", stage="seed-4/ppo", parents={"reward": Source.of(made)})
    states, _ = run_stages.read_stages(paths, run_stages.stages_in(recipe(tmp_path), paths))
    assert states[StageId.parse("seed-9/reward")] == "not started"
    assert states[StageId.parse("seed-4/reward")] == "complete"


def test_a_plan_names_what_a_new_seed_needs(tmp_path: Path) -> None:
    loaded = recipe_at(tmp_path, "seeds=[4, 9]")
    run = RunPaths(tmp_path / "run")
    for text in ORDER[:4]:
        stage = StageId.parse(text)
        parents = parents_of(stage, loaded.recipe, run, Request())
        inputs = inputs_of(stage, loaded.recipe, run, {}, Request())
        publish(run.root / text, stage=text, inputs=inputs, parents=parents)
    planned = pipeline.forecast(loaded, run.root, {}, Request())
    assert [str(one.stage) for one in planned] == ORDER
    assert [one.action for one in planned] == ["skip"] * 4 + ["run"] * 4
    assert planned[-1].why == "on the new seed-9/compare"
