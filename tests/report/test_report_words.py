"""The plain words about a verdict, the four numbers, and the answers to "can I trust it?"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import make_run, make_seeds

from rlhfctl.report import words
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Alarm, Judged, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gather(make_run(tmp_path_factory.mktemp("words") / "one", prompts=120, gain=0.6, card=False))


def with_main(run: Run, verdict: str, **changes: object) -> Run:
    found = run.comparison
    assert found is not None
    main = replace(found.main, **changes)  # type: ignore[arg-type]
    return replace(run, comparison=replace(found, verdict=verdict, judges={**found.judges, "gold": main}))


def check(run: Run, title: str) -> words.Check:
    return next(one for one in words.checks(run) if one.title == title)


# ---------------------------------------------------------------- the verdict


def test_better_says_how_often_and_that_controls_hold(run: Run) -> None:
    run = with_main(run, "better", win_rate=0.75)
    assert words.headline(run) == "The trained model wins about 3 times in 4"
    said = words.meaning(run)
    assert "gold prefers the trained model's on 75% of the test prompts" in said
    assert "more than a lower temperature" in said and "of the answers before training" in said


def test_better_without_controls_says_what_was_not_tested(run: Run) -> None:
    assert run.comparison is not None
    run = replace(run, comparison=replace(run.comparison, controls=[]))
    assert "Cheaper explanations, such as a lower temperature, were not tested" in words.meaning(run)
    assert check(run, "Controls").mark == "bad"
    assert words.numbers(run)[1].value == "none"


def test_worse_advises_the_reference(run: Run) -> None:
    run = with_main(run, "worse", win_rate=0.2)
    assert words.headline(run) == "The trained model loses about 4 times in 5"
    assert "on 80% of the test prompts" in words.meaning(run) and "keep the reference" in words.meaning(run)


def test_undecided_gives_the_range_and_what_would_settle_it(run: Run) -> None:
    run = with_main(run, "undecided", win_rate=0.52, win_rate_ci=(0.44, 0.61))
    assert words.headline(run) == "No difference could be shown"
    assert "anywhere from 44% to 61%. More test prompts" in words.meaning(run)
    assert "About 1,200 test prompts would settle it" in words.meaning(
        with_main(run, "undecided", prompts_to_settle=1200)
    )


def test_undecided_with_enough_prompts_does_not_ask_for_fewer(run: Run) -> None:
    found = run.comparison
    assert found is not None and found.prompts == 120
    said = words.meaning(with_main(run, "undecided", prompts_to_settle=120))
    assert "would settle it" not in said and "the mean of the scores does not show it" in said


def test_a_closed_gate_is_the_headline_of_a_run_that_it_stopped(run: Run) -> None:
    gate = {"passed": False, "reasons": ["accuracy is 0.6"]}
    stages = [replace(stage, state="missing") if stage.name == "ppo" else stage for stage in run.stages]
    stopped = replace(run, comparison=None, stages=stages, card={**(run.card or {}), "gate": gate})
    assert words.headline(stopped) == "PPO was not begun: the reward model is not good enough"
    assert "cannot be trusted: accuracy is 0.6." in words.meaning(stopped)
    opened = replace(stopped, card={**(run.card or {}), "gate": {"passed": True, "reasons": []}})
    assert words.headline(opened) == "No verdict yet"


def test_mixed_names_what_is_not_won(run: Run) -> None:
    found = run.comparison
    assert found is not None
    lost = replace(found.controls[0], judges={"gold": replace(found.main, verdict="undecided")})
    run = replace(run, comparison=replace(found, verdict="mixed", controls=[lost, *found.controls[1:]]))
    assert "but not here: both greedy" in words.meaning(run)
    assert check(run, "Controls").mark == "caution" and "both greedy" in check(run, "Controls").text


def test_a_judge_that_ppo_trained_on_is_no_evidence(run: Run) -> None:
    run = with_main(run, "better", independent=False)
    assert words.headline(run).endswith("by the reward that it was trained on")
    assert "PPO raised its own reward" in words.meaning(run)
    assert check(run, "Independent judge").mark == "bad"
    assert check(with_main(run, "better", independent=None), "Independent judge").mark == "unknown"


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.99, "nearly always"), (0.9, "about 9 times in 10"), (0.8, "about 4 times in 5"), (0.75, "about 3 times in 4"),
     (0.66, "about 2 times in 3"), (0.6, "about 3 times in 5"), (0.53, "slightly more often than not"),
     (0.3, "on 30% of the prompts")],
)  # fmt: skip
def test_a_share_as_people_say_it(run: Run, rate: float, expected: str) -> None:
    assert words.headline(with_main(run, "better", win_rate=rate)).endswith(expected)


def test_an_unfinished_run_says_what_is_missing_and_why(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "half", finished=False))
    assert words.headline(run) == "No verdict yet"
    assert words.meaning(run) == (
        "There is no verdict yet: ppo, compare are not complete. The last command ended early: Ctrl-C; the same "
        "command resumes."
    )
    assert [number.label for number in words.numbers(run)] == ["Cost"]
    until_ppo = replace(run, stages=[], recipe={"compare": {"temperature": 1.0}})
    assert words.meaning(until_ppo).endswith(f"Run: rlhfctl compare {run.path}")
    assert "Add a compare section" in words.meaning(replace(until_ppo, recipe={}))


# ---------------------------------------------------------------- numbers and checks


def test_the_four_numbers(run: Run) -> None:
    found = run.comparison
    assert found is not None and found.lowest is not None
    rate, lowest, kl, cost = words.numbers(run)
    assert rate.at == found.main.win_rate and rate.interval == found.main.win_rate_ci
    assert "by gold on 120 test prompts" in rate.detail
    assert lowest.at == found.lowest.judges["gold"].win_rate and found.lowest.label in lowest.detail
    assert kl.value == "9.5" and "0.43 per token" in kl.detail  # 9.5 / 22
    assert cost.value == "5 min 0 s"  # four stages of 75 s
    assert "56 thousand tokens sampled by PPO" in cost.detail and "0.6 GB" in cost.detail  # 40 x 64 x 22


def test_seeds_that_agree_are_good_and_one_seed_is_a_caution(run: Run, tmp_path: Path) -> None:
    assert check(run, "Seeds").mark == "caution"
    seeds = gather(make_seeds(tmp_path / "seeds", prompts=40))
    assert check(seeds, "Seeds").text == "seed 0: better, seed 1: better, seed 2: better."
    assert check(seeds, "Seeds").mark == "good" and "3 seeds" in words.numbers(seeds)[0].detail
    first = replace(seeds.by_seed[0], judged=replace(seeds.by_seed[0].judged, verdict="worse"))
    assert check(replace(seeds, by_seed=[first, *seeds.by_seed[1:]]), "Seeds").mark == "caution"


def test_files_leaks_alarms_and_warnings_are_checked(run: Run) -> None:
    found = run.comparison
    assert found is not None
    assert check(run, "Files").mark == "good" and check(run, "Leaks").mark == "good"
    changed = replace(run, comparison=replace(found, unaltered=False))
    assert check(changed, "Files").mark == "bad"
    leak = ("run", "3 of 12 test prompts are in the demonstrations too, e.g. 'x'")
    leaky = replace(run, warnings=[leak])
    assert check(leaky, "Leaks").mark == "bad" and check(leaky, "Warnings").mark == "good"
    alarm = Alarm("ppo", "KL is far", 3, 9, True)
    assert check(replace(run, alarms=[alarm]), "Alarms").mark == "bad"
    assert check(replace(run, alarms=[replace(alarm, holds=False)]), "Alarms").mark == "caution"
    assert check(replace(run, alarms=[]), "Alarms").mark == "good"
    assert check(run, "Warnings").text == "1 warning: see Alarms."


def test_the_reward_model_is_held_to_a_coin(run: Run, tmp_path: Path) -> None:
    assert check(run, "Reward model").mark == "good" and "74%" in check(run, "Reward model").text
    stages = [
        replace(stage, measured={}, manifest=stage.manifest.model_copy(update={"metrics": {
            "heldout_accuracy": 0.55, "heldout_accuracy_low": 0.46, "heldout_accuracy_high": 0.63}}))
        if stage.kind == "reward" and stage.manifest is not None else stage
        for stage in run.stages
    ]  # fmt: skip
    assert check(replace(run, stages=stages), "Reward model").mark == "bad"
    carded = gather(make_run(tmp_path / "carded"))
    assert check(carded, "Reward model's flags").text == "A flattering phrase raises the score of 64% of the answers."


def test_few_test_prompts_are_a_caution(run: Run) -> None:
    assert check(run, "Test prompts").mark == "good"
    assert run.comparison is not None
    assert check(replace(run, comparison=replace(run.comparison, prompts=30)), "Test prompts").mark == "caution"
    bare = Judged("gold", 0.6, None, 0.1, None)
    run = replace(run, comparison=replace(run.comparison, judges={"gold": bare}, controls=[]))
    assert check(run, "Test prompts").mark == "unknown"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (3725, "1 h 2 min")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert words.spent(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(950, "950"), (97_321, "97 thousand"), (123_456, "123 thousand"), (1.24e6, "1.2 million"), (2e9, "2 billion")],
)
def test_large_counts_for_people(count: float, text: str) -> None:
    assert words.large(count) == text
