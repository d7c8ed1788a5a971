"""Rules on judges and on the search for prompts: what they need of the other sections."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_recipe import problems, recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()


def test_gold_is_for_the_builtin_task_alone() -> None:
    (problem,) = problems("data.prompts={source: rows.jsonl}")
    assert problem.key == "compare.judges" and "gold scores only builtin:reviews" in problem.what
    assert recipe("data.prompts={source: rows.jsonl}", "compare={judges: [reward_model], primary_judge: null}").compare


def test_judges_fit_the_reward() -> None:
    (problem,) = problems("compare.judges=[gold, heldout]")
    assert "heldout needs reward.heldout: true" in problem.what
    assert recipe("compare.judges=[gold, heldout]", "reward.heldout=true").compare
    (problem,) = problems("reward.function=scores:length")
    assert "reward_model needs a reward section that trains or names a model" in problem.what
    compare = recipe("reward.function=scores:length", "compare.judges=[reward_function, gold, my.judges:score]").compare
    assert compare is not None and compare.primary_judge == "gold"  # as the sample states
    (shape,) = problems("reward.function=scores.length", "compare.judges=[gold]")
    assert (
        shape.key == "reward.function"
        and shape.fix == "write it as module:name, or as the address of a server: http://..."
    )


@pytest.mark.parametrize("judge", ["unit_tests", "passes", "prompted_classifier", "correct"])
def test_judges_of_a_kind_of_reward_need_that_reward(judge: str) -> None:
    (problem,) = problems(f"compare.judges=[gold, {judge}]")
    kind = "unit_tests" if judge in ("unit_tests", "passes") else "prompted_classifier"
    assert problem.key == "compare.judges" and problem.what == f"{judge} needs reward.{kind}"


def test_a_search_for_prompts_needs_a_frozen_classifier() -> None:
    (problem,) = problems("compare.prompt_search={random: 5}")
    assert problem.key == "compare.prompt_search" and "reward.prompted_classifier is not set" in problem.what
