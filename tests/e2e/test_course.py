"""The course: in each exercise the planted fault shows, and the answer on its page passes the check.

The commands of docs/course.md are typed as they stand there, and the changes of docs/course-answers.md are applied. The
quick tests do so for exercise 7, which trains nothing, and for exercise 3 with fewer updates; the slow ones for all.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, run_here

from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.shipped import course_recipes
from rlhfctl.tools.course.exercises import EXERCISES

COURSE, ANSWERS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("course.md", "course-answers.md"))
# Less of exercise 3, in which the fault still shows: 16 updates at three times the learning rate.
TOY = ("ppo.total_episodes=1024", "ppo.learning_rate=3e-3", "compare.samples_per_prompt=4", "data.prompts.test=24")


def section(page: str, number: int) -> str:
    """Return the text of one exercise on a page."""
    (found,) = re.findall(rf"^## {number}\. .*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return str(found)


def commands(number: int) -> list[list[str]]:
    """Return the commands of an exercise, in order; the last one is its check."""
    (block,) = re.findall(r"```bash\n(.*?)```", section(COURSE, number), re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


def mend(number: int, folder: Path) -> None:
    """Apply the answer of an exercise to the file that it names."""
    (block,) = re.findall(r"```diff\n(.*?)```", section(ANSWERS, number), re.DOTALL)
    head, *lines = block.splitlines()
    file = folder / head.removeprefix("--- ")
    text = file.read_text(encoding="utf-8")
    before = "\n".join(line[1:] for line in lines if not line.startswith("+")) + "\n"
    after = "\n".join(line[1:] for line in lines if not line.startswith("-")) + "\n"
    assert text.count(before) == 1, before
    file.write_text(text.replace(before, after), encoding="utf-8")


def solve(number: int, folder: Path, overrides: tuple[str, ...] = ()) -> None:
    """Do an exercise as the page says: the check fails before the answer is applied, and passes after."""
    sets = [part for override in overrides for part in ("--set", override)]
    *others, check = commands(number)
    for command in others:
        result = run_here(*command, *(sets if command[0] == "run" else ()), cwd=folder)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    failed = run_here(*check, cwd=folder)
    assert failed.returncode == 1 and failed.stdout.endswith("not solved yet\n"), failed.stdout + failed.stderr
    mend(number, folder)
    for command in others:
        if command[0] == "run":
            result = run_here(*command, *sets, cwd=folder)
            assert result.returncode == 0, result.stderr
    passed = run_here(*check, cwd=folder)
    assert passed.returncode == 0 and passed.stdout.endswith("\nsolved\n"), passed.stdout + passed.stderr


def test_every_exercise_has_its_sections_and_its_recipe() -> None:
    assert sorted(course_recipes(), key=int) == [str(one.number) for one in EXERCISES]
    assert len(EXERCISES) == 10
    for one in EXERCISES:
        title = f"## {one.number}. {one.title}\n"
        assert section(COURSE, one.number).startswith(title) and section(ANSWERS, one.number).startswith(title)
        assert "**Question.**" in section(COURSE, one.number)
        assert load_recipe(course_recipes()[str(one.number)]).recipe.name == f"course-{one.number}"


@pytest.mark.parametrize("number", [one.number for one in EXERCISES])
def test_each_answer_is_a_change_of_the_copied_exercise(number: int, tmp_path: Path) -> None:
    (copy,) = [command for command in commands(number) if command[:2] == ["course", "copy"]]
    assert run_here(*copy, cwd=tmp_path).returncode == 0
    recipe = tmp_path / f"course-{number}" / f"course-{number}.yaml"
    before = recipe.read_bytes(), *(file.read_bytes() for file in sorted(recipe.parent.glob("*.py")))
    mend(number, tmp_path)
    assert load_recipe(recipe).recipe.name == f"course-{number}"
    assert before != (recipe.read_bytes(), *(file.read_bytes() for file in sorted(recipe.parent.glob("*.py"))))


def test_leaking_prompts_are_found_and_dropped(tmp_path: Path) -> None:
    solve(7, tmp_path)


@pytest.mark.ci
def test_credit_reaches_the_first_token(tmp_path: Path) -> None:
    solve(3, tmp_path, TOY)


@pytest.mark.slow
@pytest.mark.parametrize("number", [one.number for one in EXERCISES if one.number != 7])
def test_each_fault_shows_and_its_answer_passes(number: int, tmp_path: Path) -> None:
    solve(number, tmp_path)
