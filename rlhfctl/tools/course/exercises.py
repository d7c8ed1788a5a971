"""`rlhfctl course`: the exercises, copying one to work on, and checking a solution.

Each exercise is a shipped recipe (recipes/course) with a planted fault, a question, and a check that measures whether a
mended run is right. docs/course.md tells learners what to do, docs/course-answers.md holds the answers. `copy` writes a
folder; nothing is overwritten.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhfctl import fs
from rlhfctl.dashboard.text import number
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.shipped import course_recipes
from rlhfctl.tools.course import checks
from rlhfctl.tools.course.checks import Check, Measure
from rlhfctl.tools.recipes import SCHEMA_LINE, companion_files


@dataclass(frozen=True)
class Exercise:
    """One exercise: its number, title and question, and the check of a solution. `reads_recipe`: no run is needed."""

    number: int
    title: str
    question: str
    check: Check
    reads_recipe: bool = False


EXERCISES = (
    Exercise(1, "Right about the wrong thing", "Held-out accuracy is high. Would you train on it?", checks.labels),
    Exercise(2, "The score rises, the text falls apart", "What does the score cost, and who pays?", checks.distance),
    Exercise(3, "Whose merit is it?", "Which of eight tokens is praised for the score?", checks.credit),
    Exercise(4, "Answers without an end", "Why should an answer ever end?", checks.end),
    Exercise(5, "More and more words", "What does the reward really ask for?", checks.length),
    Exercise(6, "A model that worked until PPO asked it", "What exactly does the model read?", checks.template),
    Exercise(7, "Known prompts", "What is this verdict worth?", checks.leak, reads_recipe=True),
    Exercise(8, "A critic that sees nothing", "What should the critic foresee, and does it?", checks.critic),
    Exercise(9, "Better, or only bolder?", "What else would explain the gain?", checks.temperature),
    Exercise(10, "Too small to hear", "Which part of the loss is the louder one?", checks.scale),
)
"""The exercises of the course, in order."""


def find(wanted: int) -> Exercise:
    """Return the exercise of this number; RlhfctlError if there is none."""
    found = next((one for one in EXERCISES if one.number == wanted), None)
    if found is None:
        raise RlhfctlError(
            f"there is no exercise {wanted}", where="course", fix=f"exercises are 1 to {len(EXERCISES)}: course list"
        )
    return found


def listing() -> Table:
    """Build a table with one row per exercise."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", justify="right")
    for name in ("exercise", "question"):
        table.add_column(name)
    for one in EXERCISES:
        table.add_row(str(one.number), one.title, Text(one.question, "dim"))
    return table


def copy(wanted: int, to: Path | None) -> Iterator[str]:
    """Copy an exercise into a new folder; yield lines that say what to do next."""
    exercise = find(wanted)
    file = course_recipes()[str(exercise.number)]
    folder = to or Path(f"course-{exercise.number}")
    text = SCHEMA_LINE.sub("", file.read_text(encoding="utf-8"))
    recipe = folder / f"course-{exercise.number}.yaml"
    copies = {recipe: text.encode()}
    copies |= {folder / other.name: other.read_bytes() for other in companion_files(text, file)}
    another = f"name another folder: rlhfctl course copy {exercise.number} DIR"
    for path in copies:
        fs.require_new(path, fix=another)  # checked before the first file is written
    for path, content in copies.items():
        fs.write_new(path, content, fix=another)
    yield f"exercise {exercise.number}: {exercise.title}. {exercise.question}"
    yield f"copied to {folder}: {', '.join(path.name for path in copies)}"
    yield f"run it: rlhfctl run {shlex.quote(str(recipe))}"
    solved = shlex.quote(str(recipe)) if exercise.reads_recipe else f"runs/course-{exercise.number}"
    yield f"mend it, run it again, and check: rlhfctl course check {exercise.number} {solved}"


def check(wanted: int, path: Path) -> list[Measure]:
    """Measure a solution. `path`: its run folder, or its recipe where the exercise needs no run."""
    exercise = find(wanted)
    if not exercise.reads_recipe and path.is_file():
        raise RlhfctlError(
            "the check measures what a run made", where=str(path), fix="name the run folder: runs/course-N"
        )
    return exercise.check(path)


def report(measures: list[Measure]) -> Iterator[str]:
    """Write what was measured, what is needed, and whether that is enough."""
    for one in measures:
        needed = f"at least {number(one.least)}" if one.least is not None else f"at most {number(one.most or 0.0)}"
        yield f"{'ok  ' if one.passes else 'not '} {one.what}: {number(one.value, 3)} (needed: {needed})"
    yield "solved" if all(one.passes for one in measures) else "not solved yet"
