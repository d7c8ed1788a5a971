"""The reward of programs: outcomes and their scores, what of a response is the program, and shares as metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_episodes import episodes

from rlhfctl.errors import EngineError, RewardFailed
from rlhfctl.recipe.sections.unit_tests import UnitTests
from rlhfctl.rewards.build import Resources, build_reward, build_scorer
from rlhfctl.rewards.unit_tests import (
    PassRate,
    UnitTestsReward,
    outcome_metrics,
    program_of,
    shared_sandbox,
    shares,
    unit_tests_in,
)
from rlhfctl.rewards.weighted import WeightedReward
from rlhfctl.sandbox import confine
from rlhfctl.sandbox.pool import Limits

PROGRAMS = ("def f(x): return x + 1", "def f(x): return x", "def f(x): return y", "def f(x) return x")
TESTS = ["assert f(1) == 2", "assert f(2) == 3"]


def four(**columns: Any) -> list[Any]:
    return episodes(*PROGRAMS, **({"tests": [TESTS] * 4} | columns))


def test_outcomes_have_the_scores_of_coderl(confining: None) -> None:
    reward = UnitTestsReward(UnitTests(workers=1))
    assert reward(four()) == [1.0, -0.3, -0.6, -1.0]
    assert reward.outcomes == ["passed", "failed", "runtime_error", "compile_error"]
    assert outcome_metrics(reward) == {
        "outcome/compile_error": 0.25, "outcome/runtime_error": 0.25, "outcome/failed": 0.25, "outcome/passed": 0.25
    }  # fmt: skip


def test_scores_are_settable_and_the_pass_rate_counts_what_passes(confining: None) -> None:
    section = UnitTests.model_validate({"outcomes": {"passed": 5.0, "failed": 0.0}, "workers": 1})
    assert UnitTestsReward(section)(four()) == [5.0, 0.0, -0.6, -1.0]
    assert PassRate(section)(four()) == [1.0, 0.0, 0.0, 0.0]


def test_tests_may_stand_in_another_column_and_the_program_around_the_response(confining: None) -> None:
    section = UnitTests(tests="checks", program="def f(x):\n    return {response}  # {prompt}", workers=1)
    checks = [TESTS, "assert f(1) == 5"]
    assert UnitTestsReward(section)(episodes("x + 1", "x + {}", checks=checks)) == [1.0, -0.6]


def test_the_time_limit_of_the_recipe_holds(confining: None) -> None:
    reward = UnitTestsReward(UnitTests(seconds=0.3, workers=1))
    assert reward(episodes("while True: pass", tests=[TESTS])) == [-0.6]


def test_scorers_with_the_same_limits_share_their_results(confining: None) -> None:
    assert shared_sandbox(Limits(2.0, 256), 1) is shared_sandbox(Limits(2.0, 256), 1)
    assert shared_sandbox(Limits(2.0, 256), 1) is not shared_sandbox(Limits(3.0, 256), 1)
    before = shared_sandbox.cache_info().misses
    PassRate(UnitTests(workers=1))(four())
    UnitTestsReward(UnitTests(workers=1))(four())
    assert shared_sandbox.cache_info().misses == before


def test_recipes_build_it_by_its_names(confining: None, tmp_path: Path) -> None:
    resources = Resources(tmp_path, unit_tests=UnitTests(workers=1))
    assert type(build_reward(None, resources)) is UnitTestsReward
    assert type(build_scorer("unit_tests", resources)) is UnitTestsReward
    assert type(build_scorer("passes", resources)) is PassRate


def test_a_weighted_sum_reports_its_outcomes_too(confining: None) -> None:
    tester = UnitTestsReward(UnitTests(workers=1))
    weighted = WeightedReward({"reward": (tester, 2.0)})
    assert weighted(four()) == [2.0, -0.6, -1.2, -2.0]
    assert unit_tests_in(weighted) is tester
    assert outcome_metrics(weighted)["outcome/passed"] == 0.25
    assert outcome_metrics(WeightedReward({})) == {}


def test_a_row_without_tests_is_named(confining: None) -> None:
    with pytest.raises(RewardFailed, match=r"no column 'tests' with tests; its columns are: checks, prompt"):
        UnitTestsReward(UnitTests(workers=1))(episodes("x", checks=[TESTS]))


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "has_seccomp", lambda: False)
    shared_sandbox.cache_clear()
    with pytest.raises(EngineError, match="there is no sandbox to run programs in"):
        UnitTestsReward(UnitTests())


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1", "x = 1"),
        ("Here it is:\n```python\nx = 1\n```\nand\n```\ny = 2\n```", "x = 1\n"),
        ("```\nx = 1", "x = 1"),
        ("x = '```'", "x = '```'"),
        ([{"role": "assistant", "content": "```py\nx = 1\n```"}], "x = 1\n"),
    ],
)
def test_the_program_is_the_first_block_of_code_or_all_of_it(completion: Any, program: str) -> None:
    assert program_of("p", completion) == program


def test_placeholders_are_filled_once() -> None:
    assert program_of("a{response}", "b{prompt}", "{prompt}|{response}|{x}") == "a{response}|b{prompt}|{x}"
    assert program_of([{"role": "user", "content": "q"}], "r", "# {prompt}\n{response}") == "# q\nr"


def test_shares_add_up_to_one() -> None:
    found = shares(["passed", "passed", "failed", "passed"])
    assert found == {"compile_error": 0.0, "runtime_error": 0.0, "failed": 0.25, "passed": 0.75}
