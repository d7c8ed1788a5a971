"""Exercises: the table, copies to work on, and the report of a check."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.course import exercises
from rlhfctl.tools.course.checks import Measure


@pytest.mark.parametrize("number", [one.number for one in exercises.EXERCISES])
def test_a_copy_holds_all_that_the_recipe_names(number: int, tmp_path: Path) -> None:
    lines = list(exercises.copy(number, tmp_path / "mine"))
    recipe = load_recipe(tmp_path / "mine" / f"course-{number}.yaml").recipe
    assert recipe.name == f"course-{number}"
    for spec in filter(None, [recipe.reward.function if recipe.reward is not None else None]):
        assert (tmp_path / "mine" / f"{spec.split(':')[0]}.py").is_file()
    text = (tmp_path / "mine" / f"course-{number}.yaml").read_text(encoding="utf-8")
    assert "yaml-language-server" not in text and text.startswith(f"# Course, exercise {number}:")
    assert f"course check {number} " in lines[-1]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text("mine", encoding="utf-8")
    with pytest.raises(RlhfctlError, match="course copy 3 DIR"):
        list(exercises.copy(3, tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["letters.py"]


def test_an_exercise_that_is_not_there(tmp_path: Path) -> None:
    for call in (lambda: list(exercises.copy(11, tmp_path)), lambda: exercises.check(0, tmp_path)):
        with pytest.raises(RlhfctlError, match="exercises are 1 to 10"):
            call()


def test_a_recipe_is_no_solution_where_a_run_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "course-3.yaml"
    file.touch()
    with pytest.raises(RlhfctlError, match="name the run folder"):
        exercises.check(3, file)


def test_the_report_says_what_was_measured_and_what_is_needed() -> None:
    lines = list(exercises.report([Measure("share", 0.25, least=0.5), Measure("updates", 40.0, most=40)]))
    assert lines == [
        "not  share: 0.25 (needed: at least 0.5)",
        "ok   updates: 40 (needed: at most 40)",
        "not solved yet",
    ]
    assert list(exercises.report([Measure("known", 0.0, most=0)])) == ["ok   known: 0 (needed: at most 0)", "solved"]


def test_no_question_or_title_names_the_key_that_is_wrong() -> None:
    keys = ("kl_coef", "lam", "missing_eos", "leaks", "vf_coef", "controls", "whiten", "as_conversations", "label")
    for one in exercises.EXERCISES:
        assert not [key for key in keys if key in f"{one.title} {one.question}"], one.number
