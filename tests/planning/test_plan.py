"""`rlhfctl plan`: which stages would run, how many steps, what they need, and what to change."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli
from small_plans import planned, shown

from rlhfctl import pipeline
from rlhfctl.artifacts import WORK
from rlhfctl.data import load
from rlhfctl.graph import Request
from rlhfctl.inputs import inputs_of
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.planning.meter import ACTIVATIONS, GRADIENTS, WEIGHTS
from rlhfctl.planning.plan import Plan
from rlhfctl.planning.stages import StagePlan
from rlhfctl.recipe.load import load_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, cli_of_module: Cli) -> Path:
    """A complete run of sft and reward."""
    folder = recipe.parent / "run"
    done = cli_of_module("run", recipe, "--run-dir", folder, "--until", "reward")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def new(recipe: Path) -> Plan:
    return planned(recipe, recipe.parent / "nothing")


# ---------------------------------------------------------------- what would run


def actions(found: Plan) -> dict[str, str]:
    return {stage.name: stage.action for stage in found.stages}


def test_nothing_is_there_yet(new: Plan) -> None:
    assert actions(new) == dict.fromkeys(("sft", "reward", "ppo", "compare"), "run")
    assert [stage.why for stage in new.stages] == [
        "nothing is there yet",
        "on the new sft",
        "on the new sft, reward",
        "on the new sft, reward, ppo",
    ]


def test_what_is_complete_is_skipped_and_what_changed_runs(recipe: Path, run: Path) -> None:
    assert list(actions(planned(recipe, run)).values()) == ["skip", "skip", "run", "run"]
    changed = planned(recipe, run, "reward.trainer.learning_rate=0.5", request=Request(until="reward"))
    assert list(actions(changed).values()) == ["skip", "run", "skip", "skip"]
    assert changed.stages[1].why == "changed: section (trainer.learning_rate 0.01 -> 0.5)"
    forced = planned(recipe, run, request=Request(force=True, until="sft"))
    assert list(actions(forced).values()) == ["run", "skip", "skip", "skip"]
    assert forced.stages[1].why == "not asked for"


def test_what_was_begun_goes_on(recipe: Path, run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "run"
    shutil.copytree(run, begun)
    (begun / "reward" / "manifest.json").unlink()
    loaded = load_recipe(recipe)
    rows = load.check_all(loaded.recipe.data, loaded.recipe.seed)
    inputs = inputs_of(StageId(1, "reward"), loaded.recipe, RunPaths(begun), rows, Request())
    (begun / "reward" / WORK).mkdir()
    (begun / "reward" / WORK / "inputs.json").write_text(json.dumps(inputs))
    found = pipeline.forecast(loaded, begun, rows, Request())
    assert [(str(one.stage), one.action) for one in found] == [
        ("sft", "skip"),
        ("reward", "continue"),
        ("ppo", "run"),
        ("compare", "run"),
    ]


def test_a_plan_leaves_nothing_behind(recipe: Path, new: Plan) -> None:
    assert sorted(path.name for path in recipe.parent.iterdir() if path.name != "run") == ["tiny.yaml"]


# ---------------------------------------------------------------- how much


def test_steps_and_parameters_are_those_of_the_run(recipe: Path, run: Path) -> None:
    request = Request(until="reward", force=True)
    found = {stage.name: stage for stage in planned(recipe, run, request=request).stages}
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in (event for event in events if event["event"] == "started"):
        stage = found[record["stage"]]
        assert stage.outlook is not None
        assert stage.steps == record["total_steps"]
        assert stage.outlook.trainable == record["settings"]["trainable_parameters"]
        assert stage.outlook.parameters == record["settings"]["parameters"]
    for record in (event for event in events if event["event"] == "finished"):
        outlook = found[record["stage"]].outlook
        assert outlook is not None and record["peak_memory"] > outlook.peak.total
    assert found["reward"].rows == f"{events_setting(events, 'reward', 'pairs')} pairs, 16 held out"


def events_setting(events: list[dict[str, Any]], stage: str, name: str) -> Any:
    return next(e["settings"][name] for e in events if e["event"] == "started" and e["stage"] == stage)


def test_disk_is_that_of_the_run(recipe: Path, run: Path) -> None:
    found = planned(recipe, recipe.parent / "other", request=Request(until="reward"))
    written = sum(
        file.stat().st_size for name in ("sft", "reward") for file in (run / name).rglob("*") if file.is_file()
    )
    assert found.disk.kept == pytest.approx(written, rel=0.25)  # small files weigh in so small a run
    assert found.disk.highest > found.disk.kept


# ---------------------------------------------------------------- the command


def test_the_command_for_scripts(here: Cli, recipe: Path) -> None:
    done = here("plan", recipe, "--json", "--until", "sft", "--memory", "24")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["memory_limit"] == 24_000_000_000
    sft = found["stages"][0]
    assert sft["fit"] == "fits" and sft["memory"] == found["memory_overhead"] + max(sft["moments"].values())


def test_a_mistake_is_one_message(here: Cli, recipe: Path) -> None:
    done = here("plan", recipe, "--set", "sft.trainer.learning_rat=1")
    assert done.returncode == 2 and "learning_rate" in done.stderr and "Traceback" not in done.stderr


def test_a_mistake_in_the_data_has_its_line(here: Cli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n', encoding="utf-8")
    text = recipe.read_text(encoding="utf-8").replace('"builtin:reviews", rows: 60,', "prompts.jsonl,")
    (tmp_path / "two.yaml").write_text(text, encoding="utf-8")
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "prompts.jsonl" in line)
    done = here("plan", tmp_path / "two.yaml", "--set", "compare.judges=[reward_model]")
    assert done.returncode == 2
    assert f"two.yaml:{line}: data.prompts: 2 distinct prompts" in done.stderr


@pytest.mark.slow
def test_a_probe_measures_each_stage(recipe: Path) -> None:
    place = recipe.parent / "probed"
    found = planned(recipe, place, probe=True)
    assert not place.exists() and not list(recipe.parent.glob(".rlhfctl-probe-*"))
    for stage in found.stages:
        assert stage.measured is not None and stage.outlook is not None
        assert found.total(stage) == stage.measured > stage.outlook.peak.total
    assert "measured by the probe" in shown(found)


def test_memory_is_that_of_one_of_several_processes(recipe: Path, new: Plan) -> None:
    """Each holds the weights and a share of the batch; on a CPU they share the machine's memory."""
    two = planned(recipe, recipe.parent / "nothing", "launch.num_processes=2")
    before, after = ({stage.name: stage for stage in found.stages} for found in (new, two))

    def kinds(stage: StagePlan) -> Counter[str]:
        assert stage.outlook is not None
        return sum((Counter(dict(needs)) for needs in stage.outlook.peak.needs.values()), Counter())

    for name in ("sft", "reward", "ppo"):
        assert kinds(after[name])[ACTIVATIONS] < kinds(before[name])[ACTIVATIONS]
        assert kinds(after[name])[WEIGHTS] == kinds(before[name])[WEIGHTS]
    assert kinds(after["sft"])[GRADIENTS] > kinds(before["sft"])[GRADIENTS]  # the buffers in which they are added up
    assert kinds(after["compare"]) == kinds(before["compare"])
    assert two.processes == 2 and two.limit is not None
    assert two.limit_of("ppo") == two.limit // 2 and two.limit_of("compare") == two.limit
    assert "of each of 2 processes" in shown(two) and "processes" not in shown(new)
    assert two.to_json()["processes"] == 2
