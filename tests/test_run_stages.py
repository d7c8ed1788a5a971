"""The stages of a run on disk: those of its recipe, those a command made, those of later rounds, and their states."""

from __future__ import annotations

from pathlib import Path

from conftest import run_here
from stages_of_a_run import NAMES, RECIPE, publish, recipe_at

from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.events import RunStarted, StageFinished, StageStarted
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.run_stages import read_stages, stages_in
from rlhfctl.stage_order import own_parents


def test_a_card_that_a_command_made_is_listed_with_the_stages_of_the_recipe(tmp_path: Path) -> None:
    recipe, paths = recipe_at(tmp_path).recipe, RunPaths(tmp_path / "run")
    (tmp_path / "run" / "card").mkdir(parents=True)
    assert [str(one) for one in stages_in(recipe, paths)] == NAMES  # it is not complete
    publish(tmp_path / "run" / "card", layout={"card": "card.json"})
    publish(tmp_path / "run" / "base")  # of another recipe: no command makes it on request
    assert [str(one) for one in stages_in(recipe, paths)] == ["sft", "reward", "card", "ppo", "compare"]


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
