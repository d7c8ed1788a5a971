"""A sweep runs its combinations: equal stages once, the others go on after a failure, the same command resumes.

Stages are made up: each leaves a file with its settings, and notes that it ran. cli/test_cli_sweep.py has a real sweep.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stages_of_a_run import RECIPE, recipe_at

from rlhfctl import fs
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.errors import DiskFull, RecipeError, RlhfctlError, WaitsForPeople
from rlhfctl.events import Event, RunStopped, StageStarted
from rlhfctl.stages import door
from rlhfctl.stages.door import Outcome
from rlhfctl.sweeping import Sweep, read_sweep
from rlhfctl.tools import sweep as sweeps

Broken = Callable[[str, Any], None]


class Project:
    """A recipe whose stages are made up; `ran` lists the stages that did their work, as RUN/STAGE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "sweep"
        self.recipe = str(folder / "plan.yaml")
        self.ran: list[str] = []
        self.events: list[Event] = []
        self.breaks: Callable[[str], None] = lambda stage: None

    def stage(self, name: str, section: Any, ctx: Any) -> Outcome:
        where = f"{ctx.run.root.name}/{ctx.name}"
        ctx.emit(StageStarted(stage=ctx.name, total_steps=1))
        self.breaks(where)
        self.ran.append(where)
        stated = section.model_dump(mode="json")
        (ctx.folder / "made.json").write_text(json.dumps([stated, dict(ctx.inputs)], sort_keys=True))
        return Outcome(ctx.publish(stated, {"model": "made.json"}, metrics={"loss": 1.0}), None)

    def sweep(self, *words: str, settings: tuple[str, ...] = ()) -> Sweep:
        asked, planned = sweeps.plan(self.recipe, words, settings, (), None)
        return sweeps.run(asked, planned, self.folder, self.events.append)

    def forecast(self, *words: str) -> list[str]:
        _, planned = sweeps.plan(self.recipe, words, (), (), None)
        table, sentences = sweeps.forecast(planned, self.folder)
        stages = next(column for column in table.columns if column.header == "stages")
        return [*map(str, stages.cells), *sentences]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    recipe_at(tmp_path)
    made = Project(tmp_path)
    monkeypatch.setattr(door, "run_stage", made.stage)
    monkeypatch.setattr(door, "look_ahead", lambda *args, **options: ({}, [], True))
    monkeypatch.setattr(door, "load_libraries", lambda stage: None)
    return made


KL = ("ppo.kl_coef=0,0.05,0.2",)


def test_stages_that_do_not_differ_run_once(project: Project) -> None:
    done = project.sweep(*KL)
    assert project.ran == [
        "kl_coef=0/sft", "kl_coef=0/reward", "kl_coef=0/ppo", "kl_coef=0/compare",
        "kl_coef=0.05/ppo", "kl_coef=0.05/compare", "kl_coef=0.2/ppo", "kl_coef=0.2/compare",
    ]  # fmt: skip
    assert all(one.error is None for one in done.combinations)
    files = [project.folder / one.folder / "sft" / "made.json" for one in done.combinations]
    assert len({file.stat().st_ino for file in files}) == 1  # one file with three names
    ppo = [json.loads((project.folder / one.folder / "ppo" / "made.json").read_text()) for one in done.combinations]
    assert [section["kl_coef"] for section, _ in ppo] == [0.0, 0.05, 0.2]


@pytest.mark.ci
def test_each_key_shares_what_it_does_not_touch(project: Project) -> None:
    project.sweep("reward.trainer.max_steps=1,2", "ppo.kl_coef=0,1", "seed=0,1")
    count = {kind: sum(place.endswith(f"/{kind}") for place in project.ran) for kind in ("sft", "reward", "ppo")}
    assert count == {"sft": 1, "reward": 4, "ppo": 8}  # rewards: two settings by two seeds
    assert sum(place.endswith("/summary") for place in project.ran) == 4


@pytest.mark.ci
def test_the_same_command_skips_what_is_complete_and_a_longer_grid_adds_to_it(project: Project) -> None:
    project.sweep(*KL)
    project.ran.clear()
    project.sweep(*KL)
    assert project.ran == []
    project.sweep("ppo.kl_coef=0,0.05,0.2,1")
    assert project.ran == ["kl_coef=1/ppo", "kl_coef=1/compare"]
    assert len(list((project.folder / "superseded").glob("sweep.json-*"))) == 1


def test_a_failing_combination_does_not_end_the_others(project: Project) -> None:
    def breaks(place: str) -> None:
        if place == "kl_coef=0.05/ppo":
            raise ZeroDivisionError("a defect")

    project.breaks = breaks
    done = project.sweep(*KL)
    assert [one.error for one in done.combinations] == [None, "ZeroDivisionError: a defect", None]
    assert read_sweep(project.folder) == done
    assert "kl_coef=0.2/compare" in project.ran
    run = project.folder / "kl_coef=0.05"
    assert "a defect" in (run / "libraries.log").read_text() and "Traceback" in (run / "libraries.log").read_text()
    assert list(read_events(run / "events.jsonl"))[-1]["reason"] == "ZeroDivisionError: a defect"
    assert isinstance(project.events[-1], RunStopped) and "kl_coef=0.05" in project.events[-1].reason
    project.breaks = lambda place: None
    project.ran.clear()
    assert all(one.error is None for one in project.sweep(*KL).combinations)
    assert project.ran == ["kl_coef=0.05/ppo", "kl_coef=0.05/compare"]


@pytest.mark.ci
def test_a_shared_stage_that_fails_is_not_tried_for_every_combination(project: Project) -> None:
    tried = []

    def breaks(place: str) -> None:
        tried.append(place)
        if place.endswith("/reward") and "max_steps=1" in place:
            raise MemoryError

    project.breaks = breaks
    done = project.sweep("reward.trainer.max_steps=1,2", "ppo.kl_coef=0,1")
    errors = [one.error or "" for one in done.combinations]
    assert errors[0].startswith("memory ran out") and errors[2:] == ["", ""]
    assert errors[1] == "shares the stage reward with max_steps=1,kl_coef=0, which failed there"
    assert tried.count("max_steps=1,kl_coef=0/reward") == 1 and "max_steps=1,kl_coef=1/reward" not in tried


@pytest.mark.parametrize(
    "error", [WaitsForPeople("labels", fix="label"), DiskFull("full", fix="free"), KeyboardInterrupt()]
)
def test_what_is_no_matter_of_one_combination_ends_the_sweep(project: Project, error: BaseException) -> None:
    def breaks(place: str) -> None:
        raise error

    project.breaks = breaks
    with pytest.raises(type(error)):
        project.sweep(*KL)
    assert [one.error for one in read_sweep(project.folder).combinations] == [None, None, None]
    assert not (project.folder / "kl_coef=0.05").exists()


@pytest.mark.ci
@pytest.mark.parametrize("number", [1, 4])
def test_a_kill_while_a_stage_is_taken_over_leaves_all_or_nothing(
    project: Project, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, calls = os.link, []

    def killed(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        link(*args, **options)

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        project.sweep(*KL)
    monkeypatch.setattr(os, "link", link)
    assert all(one.error is None for one in project.sweep(*KL).combinations)
    assert len(project.ran) == 8  # no stage ran again
    assert not list(project.folder.rglob("*.partial"))


@pytest.mark.ci
def test_files_are_copied_where_there_are_no_hard_links(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    project.sweep(*KL)
    files = [project.folder / f"kl_coef={value}" / "sft" / "made.json" for value in ("0", "0.05", "0.2")]
    assert len(project.ran) == 8 and len({file.stat().st_ino for file in files}) == 3
    assert len({fs.hash_file(file) for file in files}) == 1


@pytest.mark.ci
def test_events_carry_the_name_of_their_combination(project: Project) -> None:
    project.sweep(*KL)
    assert {event.stage for event in project.events if isinstance(event, StageStarted)} == set(project.ran)
    own = {event["stage"] for event in read_events(project.folder / "kl_coef=0.2" / "events.jsonl")}
    assert {"run", "sft", "ppo"} <= own and not any("=" in stage for stage in own)


@pytest.mark.ci
def test_a_forecast_says_what_will_run(project: Project) -> None:
    said = project.forecast(*KL, "seed=0,1")
    assert said[0] == "sft, summary to run; seeds 0, 1: reward, ppo, compare to run"
    assert said[1] == said[2] == "sft shared; summary to run; seeds 0, 1: reward shared; ppo, compare to run"
    assert said[3] == "3 combinations, 24 stages: 18 to run, 6 shared, 0 complete" and "not known before" in said[4]
    assert project.ran == [] and not project.folder.exists()
    project.sweep(*KL, "seed=0,1")
    assert len(project.ran) == 18  # as foreseen
    after = project.forecast("ppo.kl_coef=0,0.05,0.2,1", "seed=0,1")
    assert after[2] == "sft, summary complete; seeds 0, 1: reward, ppo, compare complete"
    assert after[4] == "4 combinations, 32 stages: 5 to run, 3 shared, 24 complete" and "time: about" in after[5]


def test_rows_that_stages_make_count_too(project: Project, tmp_path: Path) -> None:
    recipe_at(tmp_path, text=RECIPE.replace("sft: {}", "sft: {trainer: {max_steps: 1}}"))
    said = project.forecast("data.demonstrations.rows=20,30", "ppo.kl_coef=0,1")
    assert [line.split(";")[0] for line in said[:4]] == [
        *("sft, reward, ppo, compare to run", "sft, reward shared"),
        *("sft, reward, ppo, compare to run", "sft, reward shared"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ppo.kl_coef=0,high"], "ppo.kl_coef=high: ppo.kl_coef: expected a number"),
        (["ppo.kl_coof=0,1"], "did you mean"),
        (["ppo.kl_coef=0.1,1e-1"], "kl_coef=0.1 and kl_coef=1e-1 are the same recipe"),
        (["reward.trainer.optim=adamw_torch,magic"], "reward.trainer"),
        (["ppo.kl_coef=0,1", "seed=0,x"], "seeds.values"),
        (["ppo.kl_coef=0,1", "ppo.engine=trl,rlhfctl", "ppo.top_k=5"], "ppo.top_k"),
    ],
)
def test_wrong_values_are_refused_before_anything_runs(project: Project, words: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        project.sweep(*words)
    assert said in str(raised.value)
    assert project.ran == [] and not project.folder.exists()


def test_several_machines_are_refused(project: Project) -> None:
    launch = ("launch={num_machines: 2, num_processes: 2, main_process_ip: a}",)
    with pytest.raises(RecipeError, match="a sweep runs on one machine"):
        project.sweep(*KL, settings=launch)


def test_the_limit_is_the_recipes_own_unless_it_is_varied(project: Project) -> None:
    best = ("ppo.use=best", "ppo.best_kl_limit=3")
    assert sweeps.plan(project.recipe, KL, best, (), None)[0].kl_limit == 3
    assert sweeps.plan(project.recipe, KL, best, (), 1.5)[0].kl_limit == 1.5
    varied = ("ppo.best_kl_limit=1,2",)
    assert sweeps.plan(project.recipe, varied, best[:1], (), None)[0].kl_limit is None


def test_a_runs_folder_is_no_place_for_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a")
    with pytest.raises(RlhfctlError, match="is the folder of a run"):
        sweeps.require_free(tmp_path)
