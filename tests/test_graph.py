"""The table of stages, and what follows from it: the stages of a recipe, of a command, of a run, and who hands over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_here
from stages_of_a_run import NAMES, RECIPE, publish, recipe_at

from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.errors import HandoffError, RecipeError, RlhfctlError
from rlhfctl.events import RunStarted, StageFinished, StageStarted
from rlhfctl.graph import (
    STAGES,
    Request,
    choose,
    in_order,
    latest_before,
    makers_of,
    own_parents,
    read_stages,
    require_parents,
    require_sources,
    section_of,
    stages_in,
    stages_of,
)
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.schema import Card


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ((), ["sft", "reward", "ppo", "compare"]),
        (("sft:",), ["base", "reward", "ppo", "compare"]),
        (("compare:",), ["sft", "reward", "ppo"]),
        (("compare:", "ppo:"), ["sft", "reward"]),
        (("sft:", "ppo:", "reward:"), ["base", "compare"]),
    ],
)
def test_the_stages_are_the_sections_in_order(tmp_path: Path, without: tuple[str, ...], expected: list[str]) -> None:
    lines = [line for line in RECIPE.splitlines(keepends=True) if not line.startswith(without)]
    assert stages_of(recipe_at(tmp_path, text="".join(lines)).recipe) == expected


@pytest.mark.parametrize(
    "reward", ["{card: {}}", "{gate: {}}", '{function: "scores:length", card: {}}', "{model: org/scorer, gate: {}}"]
)
def test_the_card_is_a_stage_between_reward_and_ppo_where_it_is_asked_for(tmp_path: Path, reward: str) -> None:
    recipe = recipe_at(tmp_path, text=RECIPE.replace("reward: {}", f"reward: {reward}")).recipe
    assert [name for name in stages_of(recipe) if name != "reward"] == ["sft", "card", "ppo", "compare"]
    assert section_of("card", recipe) == Card()
    assert section_of("card", recipe_at(tmp_path).recipe) is None


def test_a_card_that_a_command_made_is_listed_with_the_stages_of_the_recipe(tmp_path: Path) -> None:
    recipe, paths = recipe_at(tmp_path).recipe, RunPaths(tmp_path / "run")
    (tmp_path / "run" / "card").mkdir(parents=True)
    assert [str(one) for one in stages_in(recipe, paths)] == NAMES  # it is not complete
    publish(tmp_path / "run" / "card", layout={"card": "card.json"})
    publish(tmp_path / "run" / "base")  # of another recipe: no command makes it on request
    assert [str(one) for one in stages_in(recipe, paths)] == ["sft", "reward", "card", "ppo", "compare"]


def test_a_held_out_reward_model_is_a_stage_that_ppo_reads_where_it_evaluates(tmp_path: Path) -> None:
    asked = recipe_at(tmp_path, "reward.heldout=true").recipe
    assert stages_of(asked) == ["sft", "reward", "heldout", "ppo", "compare"]
    parent = STAGES["ppo"].parents["heldout"]
    assert parent.used(asked)
    for never in ("ppo.eval.every=0", "data.prompts.eval=0"):
        assert not parent.used(recipe_at(tmp_path, "reward.heldout=true", never).recipe), never
    judge = STAGES["compare"].parents["heldout"]
    assert not judge.used(asked)
    assert judge.used(recipe_at(tmp_path, "reward.heldout=true", "compare.judges=[heldout,gold]",
        "compare.primary_judge=gold").recipe)  # fmt: skip


@pytest.mark.parametrize("scorer", ['{function: "scores:length"}', "{model: org/scorer}"])
def test_a_ready_reward_is_no_stage(tmp_path: Path, scorer: str) -> None:
    recipe = recipe_at(tmp_path, text=RECIPE.replace("reward: {}", f"reward: {scorer}")).recipe
    assert stages_of(recipe) == ["sft", "ppo", "compare"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(), NAMES),
        (Request(only="reward"), ["reward"]),
        (Request(start="reward"), ["reward", "ppo", "compare"]),
        (Request(until="reward"), ["sft", "reward"]),
        (Request(start="reward", until="ppo"), ["reward", "ppo"]),
        (Request(start="ppo", until="ppo"), ["ppo"]),
    ],
)
def test_a_command_chooses_among_the_stages(request_: Request, expected: list[str]) -> None:
    assert [str(stage) for stage in choose([StageId(1, name) for name in NAMES], request_)] == expected


@pytest.mark.parametrize(
    ("names", "request_", "said", "fix"),
    [
        (["sft"], Request(only="ppo"), "ppo: the recipe has no such stage", "its stages are sft; add a `ppo:` section"),
        (["sft", "ppo"], Request(start="reward"), "--from reward: ", "add a `reward:` section that trains a model"),
        (["sft"], Request(until="base"), "--until base: ", "its stages are sft; base is there where `sft:` is not"),
        (["sft"], Request(until="pppo"), "--until pppo: ", "its stages are sft"),
        (NAMES, Request(start="ppo", until="sft"), "--from ppo comes after --until sft", "swap them"),
    ],
)
def test_a_stage_that_is_not_there_is_named_with_a_way_out(
    names: list[str], request_: Request, said: str, fix: str
) -> None:
    with pytest.raises(RlhfctlError) as caught:
        choose([StageId(1, name) for name in names], request_)
    assert said in str(caught.value) and fix in str(caught.value)
    assert "pppo:` section" not in str(caught.value)


# ---------------------------------------------------------------- rounds


def stage(text: str) -> StageId:
    return StageId.parse(text)


@pytest.mark.parametrize(
    ("reader", "product", "known", "maker"),
    [
        ("reward", "base", "sft reward", "sft"),
        ("compare", "policy", "sft reward ppo compare", "ppo"),
        ("reward", "base", "ppo", None),
        ("ppo", "policy", "sft ppo", None),  # never itself
        ("round-2/ppo", "reward", "sft reward ppo round-2/reward round-2/ppo", "round-2/reward"),
        ("round-2/ppo", "base", "sft reward ppo round-2/reward round-2/ppo", "sft"),
        ("round-2/ppo", "reward", "sft reward ppo round-2/ppo", "reward"),
        ("round-2/reward", "policy", "sft ppo round-2/reward round-2/ppo", "ppo"),  # its own round's comes after it
        ("round-3/reward", "policy", "sft ppo round-2/ppo round-3/reward round-3/ppo", "round-2/ppo"),
        ("round-3/reward", "policy", "sft ppo round-3/reward", "ppo"),
        ("reward", "policy", "round-2/ppo", None),
    ],
)
def test_a_stage_is_handed_the_latest_before_it(reader: str, product: str, known: str, maker: str | None) -> None:
    found = latest_before(stage(reader), makers_of(product), map(stage, known.split()))
    assert found == (None if maker is None else stage(maker))


def test_the_stages_of_later_rounds_are_listed_after_those_of_the_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for text in ("sft", "reward", "ppo", "round-2/ppo", "round-2/reward", "round-10/ppo"):
        publish(run / text, stage=text)
    for text in ("round-1/sft", "round-x/sft", "round-2/.ppo.partial", "round-2/notes", "round-2/round-3"):
        (run / text).mkdir(parents=True)
    recipe = recipe_at(tmp_path).recipe
    listed = stages_in(recipe, RunPaths(run))
    assert [str(one) for one in listed] == [*NAMES, "round-2/reward", "round-2/ppo", "round-10/ppo"]
    states, artifacts = read_stages(RunPaths(run), listed)
    assert states[StageId(2, "reward")] == "complete" and states[StageId(1, "compare")] == "not started"
    assert artifacts[StageId(10, "ppo")].stage == StageId(10, "ppo")
    assert [str(one) for one in own_parents(StageId(2, "ppo"), recipe, listed)] == ["sft", "round-2/reward"]


def test_show_runs_and_watch_list_a_second_round(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "plan"
    for text in ("sft", "reward", "ppo", "compare", "round-2/reward"):
        publish(run / text, stage=text, layout={"model": "model"})
    (run / "recipe.yaml").write_text(RECIPE.replace(', "scores:length"', ""))
    shown = run_here("show", run, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "round-2/reward" in shown.stdout
    listed = run_here("runs", tmp_path / "runs", "--json", cwd=tmp_path)
    assert '"round-2/reward": "complete"' in listed.stdout
    name = str(StageId(2, "reward"))
    with JsonlWriter(run / "events.jsonl") as tell:
        tell(RunStarted(stage="run", name="plan", stages=[name]))
        tell(StageStarted(stage=name, total_steps=2))
        tell(StageFinished(stage=name, path="round-2/reward", seconds=1.0))
    watched = run_here("watch", run, cwd=tmp_path)
    assert "[round-2/reward] started steps=2" in watched.stdout and "[round-2/reward] finished" in watched.stdout


# ---------------------------------------------------------------- what a recipe must have


def test_a_comparison_needs_a_policy(tmp_path: Path) -> None:
    text = "".join(line for line in RECIPE.splitlines(keepends=True) if not line.startswith("ppo:"))
    recipe = recipe_at(tmp_path, text=text).recipe
    chosen = in_order(recipe)
    with pytest.raises(HandoffError, match="no policy to compare: the recipe has no ppo section") as caught:
        require_parents(chosen, recipe, Request())
    assert caught.value.where == "compare" and "--policy" in str(caught.value.fix)
    require_parents(chosen, recipe, Request(external={"policy": "elsewhere"}))
    require_parents(chosen, recipe, Request(options={"policy_samples": "a.jsonl"}))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("stage:label", "the recipe has no stage 'label': its stages are sft, reward, ppo, compare"),
        ("stage:sft", "the stage sft makes no rows of data"),
    ],
)
def test_data_of_a_stage_that_cannot_give_it_is_refused(source: str, said: str, tmp_path: Path) -> None:
    text = RECIPE.replace('preferences: {source: "builtin:reviews", rows: 20}', f'preferences: {{source: "{source}"}}')
    recipe = recipe_at(tmp_path, text=text).recipe
    with pytest.raises(RecipeError) as caught:
        require_sources(recipe)
    assert said in str(caught.value) and "name a file, a folder or an id on the Hub" in str(caught.value)
    for command in ("validate", "run", "plan", "data"):
        refused = run_here(command, tmp_path / "plan.yaml", cwd=tmp_path)
        assert refused.returncode == 2, command
        assert said in refused.stderr and "plan.yaml:5: data.preferences.source" in refused.stderr, refused.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("recipe.yaml"))


def test_rows_come_from_a_stage_before_the_first_that_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPE.replace('preferences: {source: "builtin:reviews", rows: 20}', 'preferences: {source: "stage:ppo"}')
    recipe = recipe_at(tmp_path, text=text).recipe
    monkeypatch.setitem(STAGES, "ppo", replace(STAGES["ppo"], gives_rows=True))
    with pytest.raises(RecipeError, match="the stage reward reads it before the stage ppo has made it"):
        require_sources(recipe)
