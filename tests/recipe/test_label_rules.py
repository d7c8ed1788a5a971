"""Rules on labels and rounds between the sections of a recipe: what they name, and what satisfies them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_recipe import problems, recipe

MADE = "data.preferences={source: 'stage:label'}"
LABELS = ("sample={prompts: 12}", "label={by: builtin}", MADE)
OURS = "ppo.engine=rlhfctl"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()


def test_labels_need_questions_and_a_reward_that_learns_from_them() -> None:
    assert recipe(*LABELS).label is not None
    (unasked,) = problems("label={}", MADE)
    assert unasked.key == "label" and unasked.fix == "add one: `sample: {}`"
    for change in (("label={}", "sample={}"), (*LABELS, "reward={function: 'a:b'}", "compare=null")):
        assert "nobody reads the labels" in str(problems(*change)[0])
    beside = "data.preferences={sources: [{source: rows.jsonl}, {source: 'stage:label'}]}"
    assert recipe("label={}", "sample={}", beside).label is not None  # labels beside a file are read, too


def test_the_builtin_judge_knows_the_builtin_task_alone() -> None:
    found = problems(*LABELS, "data.prompts={source: rows.jsonl}", "compare=null")
    assert [problem.key for problem in found] == ["label.by"]


def test_rounds_need_all_that_they_repeat_and_a_question_for_each() -> None:
    assert recipe("rounds=3", *LABELS, OURS).rounds is not None
    found = problems("rounds=3", *LABELS, "ppo=null", "compare=null")
    assert [problem.key for problem in found] == ["rounds"] and "not all of them are there" in found[0].what
    (many,) = problems("rounds=13", *LABELS, OURS)
    assert many.key == "rounds.count" and many.fix == "lower it, or raise sample.prompts"
    (early,) = problems("rounds=3", *LABELS, OURS, "seeds={values: 2, from: reward}")
    assert early.key == "seeds.from"
    assert recipe("rounds=3", *LABELS, OURS, "seeds={values: 2, from: sample}").seeds is not None
    assert "rounds" in [problem.key for problem in problems("rounds=3", *LABELS, "ppo.engine=trl")]


@pytest.mark.parametrize("lacks", ["rounds", "members"])
def test_candidates_need_members_of_a_round_before(lacks: str) -> None:
    choice = [*LABELS, OURS, "sample={prompts: 12, candidates: 10}"]
    rounds, members = "rounds=3", "reward.members=2"
    assert recipe(*choice, rounds, members).sample is not None
    (problem,) = problems(*choice, *([members] if lacks == "rounds" else [rounds]))
    assert problem.key == "sample.candidates" and problem.fix.startswith("set rounds and reward.members above 1")
