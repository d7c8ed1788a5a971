"""The campaign that certifies the alarms: its bookkeeping on made-up results, and one seed of it for real (slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alarms import FAULTS, HEALTHY, RECIPE, Found, campaign, detected, kept, silent, slug, table, with_function

from rlhfctl.dashboard.causes import CAUSES
from rlhfctl.recipe.load import load_recipe

SHRUNK = next(fault for fault in FAULTS if fault.words == "responses shrank from")
CHANCE = next(fault for fault in FAULTS if fault.words == "at_chance")


def test_only_the_signal_that_is_named_counts() -> None:
    assert detected(SHRUNK, Found(0, alarms={"responses shrank from": 12}))
    assert not detected(SHRUNK, Found(0, alarms={"KL more than doubled in": 3}, flags=["at_chance"]))
    assert detected(CHANCE, Found(0, flags=["at_chance"]))
    assert not detected(CHANCE, Found(0, warnings=["at_chance: said as a warning alone"]))


def test_alarms_that_are_named_exist() -> None:
    for fault in FAULTS:
        assert fault.signal != "alarm" or fault.words in CAUSES, fault.name
    assert len({slug(fault.name) for fault in FAULTS}) == len(FAULTS)


def test_silence_is_no_alarm_no_warning_and_an_open_gate() -> None:
    probe = "fooled_by_doubled: the answer said twice scores higher"
    assert silent(Found(0)) and silent(Found(0, warnings=[probe], flags=["fooled_by_doubled"]))
    assert not silent(Found(0, warnings=["data.prompts: something else"], flags=["fooled_by_doubled"]))
    assert not silent(Found(0, alarms={"KL more than doubled in": 3}))
    assert not silent(Found(0, gate=["accuracy 0.5"]))


def test_the_table_counts_and_names_what_else_was_told() -> None:
    runs = [
        Found(0, alarms={"responses shrank from": 10, "KL more than doubled in": 3}),
        Found(1, alarms={"responses shrank from": 20}),
        Found(2, alarms={"KL more than doubled in": 5}),
    ]
    healthy = [Found(0, flags=["fooled_by_doubled"]), Found(1, alarms={"the policy has hardly moved": 20})]
    lines = table({SHRUNK.name: runs, HEALTHY: healthy}).splitlines()
    assert "| 2 of 3 | 15 | KL more than doubled in (2) |" in lines[2]
    assert "silent 1 of 2" in lines[3] and "seed 1: the policy has hardly moved" in lines[3]
    assert lines[-1].endswith("fooled_by_doubled 1.")


def test_what_was_found_is_kept_and_not_looked_for_again(tmp_path: Path) -> None:
    made = []

    def make() -> Found:
        made.append(1)
        return Found(3, alarms={"KL more than doubled in": 7})

    first, second = (kept(tmp_path, "a fault", 3, make) for _ in range(2))
    assert first == second and len(made) == 1
    assert json.loads((tmp_path / "found" / "a-fault-3.json").read_text())["seed"] == 3


def test_the_recipes_are_valid_with_and_without_their_reward_model(tmp_path: Path) -> None:
    assert load_recipe(RECIPE).recipe.reward is not None
    for fault in FAULTS:
        text = RECIPE.read_text(encoding="utf-8")
        file = tmp_path / f"{slug(fault.name)}.yaml"
        file.write_text(with_function(text, fault.function) if fault.function else text, encoding="utf-8")
        (tmp_path / "alarm_rewards.py").write_text("", encoding="utf-8")
        changes = [*fault.changes, *(fault.make(tmp_path, 0) if fault.make is not None else ())]
        assert load_recipe(file, changes).recipe.ppo is not None, fault.name


@pytest.mark.slow
def test_every_fault_is_told_at_a_seed_that_no_threshold_was_chosen_on(tmp_path: Path) -> None:
    results = campaign(tmp_path, seeds=1, healthy=1, first=7, only=())
    print(table(results))
    assert all(detected(fault, found) for fault in FAULTS for found in results[fault.name])
    assert all(silent(found) for found in results[HEALTHY])
