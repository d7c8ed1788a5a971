"""Which stages a command chooses, whose products a stage is handed, and what a recipe must have for that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_here
from stages_of_a_run import NAMES, RECIPE, recipe_at

from rlhfctl.errors import HandoffError, RecipeError, RlhfctlError
from rlhfctl.graph import STAGES, Request, makers_of
from rlhfctl.paths import StageId
from rlhfctl.stage_order import choose, in_order, latest_before, require_parents, require_sources


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
