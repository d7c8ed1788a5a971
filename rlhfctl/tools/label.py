"""`rlhfctl label`: find the questions of a run or a file, open a screen for annotators, and tell how the labels are.

    RUN    the labelling set of the stage that waits for people, else that of the last sample stage; RUN/labels.sqlite
    FILE   a labelling set, or preferences to judge anew; FILE.labels.sqlite beside it

Reads recipes, labelling sets and labels; writes labels. Loads no torch. Leaves out the screens (labels/screen,
labels/web), and exports and imports (label_files.py).
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhfctl import run_stages, stage_order
from rlhfctl.artifacts import find_artifact
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.graph import STAGES
from rlhfctl.labels.answers import Answers
from rlhfctl.labels.desk import Desk, Order, Settings
from rlhfctl.labels.items import Item, is_labelling_set, items_of_groups, make_item, read_items
from rlhfctl.labels.store import Event, LabelStore, open_labels
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Data, Preferences
from rlhfctl.run_stages import waiting_at
from rlhfctl.stages import door
from rlhfctl.sweeping import require_run

LABELS = ".labels.sqlite"  # the ending of the labels beside a file


@dataclass(frozen=True)
class Target:
    """What is labelled: the questions, and the file of their labels. `notes`: sentences about rows left out."""

    items: list[Item]
    labels: Path
    settings: Settings
    run: Path | None = None
    notes: tuple[str, ...] = ()


def find(what: Path, *, questions: bool = True) -> Target:
    """Find the questions and the labels of a run or a file; RlhfctlError where there are none.

    Without `questions` a run that asks none is found too, if it has labels: those of `label --write`.
    """
    if what.is_dir():
        return _of_run(what, questions=questions)
    if not what.is_file():
        raise RlhfctlError("there is no such run or file", where=str(what), fix="name a run folder, or a file of pairs")
    labels = what.with_name(what.name + LABELS)
    if is_labelling_set(what):
        return Target(read_items(what), labels, Settings())
    items, notes = _items_of(what)
    return Target(items, labels, Settings(), notes=tuple(notes))


def _of_run(run: Path, *, questions: bool) -> Target:
    paths = RunPaths(run)
    require_run(run)
    recipe = load_recipe(paths.recipe).recipe
    stages = run_stages.stages_in(recipe, paths)
    waiting = [one for one in stages if STAGES[one.name].makes == "labels" and waiting_at(paths.stage(one)) is not None]
    makers = [one for one in stages if STAGES[one.name].makes == "items"]
    wanted = [stage_order.latest_before(one, {maker.name for maker in makers}, stages) for one in waiting]
    asked = [one for one in wanted if one is not None] or makers
    made = [artifact for one in asked if (artifact := find_artifact(paths.stage(one))) is not None]
    if not made and not questions and paths.labels.is_file():
        return Target([], paths.labels, Settings(), run)
    if not made:
        raise RlhfctlError(
            "the run has no questions to answer",
            where=str(run),
            fix=_how_to_have_questions(makers),
        )
    section = recipe.label
    settings = Settings()
    if section is not None:
        settings = Settings.of(section, recipe.seed)
    return Target(read_items(made[-1].part("items")), paths.labels, settings, run)


def _how_to_have_questions(makers: Sequence[StageId]) -> str:
    if makers:
        return f"its stage {makers[0]} writes them: give the command rlhfctl run again"
    return "add `sample: {}` and `label: {}` to the recipe, or make a labelling set: rlhfctl sample RUN"


def _items_of(file: Path) -> tuple[list[Item], list[str]]:
    """Read the items of a file of preferences."""
    rows = _rows(file)
    items, left_out = items_of_groups(rows.groups)
    notes = [*rows.notes, *left_out]
    if not items:
        raise DataError("none of its rows can be judged", where=str(file), fix="; ".join(notes))
    return items, notes


def _rows(file: Path) -> Any:
    """Read a file of preferences; rows that are broken are left out, and counted in the notes."""
    door.load_data_libraries()
    section = Preferences(source=str(file), bad_rows="drop")
    return door.load_data(Data(preferences=section), 0, ["preferences"])["preferences"]


def gold_items(file: Path) -> list[Item]:
    """Read questions with a known answer from a file of preferences: its own ranks are right."""
    if is_labelling_set(file):
        return [item for item in read_items(file) if item.gold is not None]
    found = []
    for group in _rows(file).groups:
        origins = [f"gold {place + 1}" for place in range(len(group.responses))]
        found.append(make_item(group.prompt, group.responses, origins, gold=group.ranks, tools=group.tools))
    return found


# ---------------------------------------------------------------- the desk


@contextmanager
def open_desk(
    target: Target,
    *,
    overlap: float | None = None,
    annotators: int | None = None,
    gold: float | None = None,
    gold_from: Path | None = None,
    order: Order | None = None,
) -> Iterator[Desk]:
    """Open the desk for people; options that are not None replace the recipe's settings."""
    changes: dict[str, Any] = {"overlap": overlap, "annotators": annotators, "gold": gold, "order": order}
    settings = replace(target.settings, **{key: value for key, value in changes.items() if value is not None})
    items = [*target.items, *(gold_items(gold_from) if gold_from is not None else ())]
    if settings.gold and not any(item.gold is not None for item in items):
        raise RlhfctlError(
            "there are no questions with a known answer", where="--gold", fix="name a file of them: --gold-from FILE"
        )
    if settings.order == "active" and all(item.disagreement is None for item in items):
        raise RlhfctlError(
            "the items say nothing of how far reward models disagree", where="--order active", fix="use random or file"
        )
    with open_labels(target.labels) as store:
        yield Desk(items, store, settings, accepts=lambda event: event.is_of_people)


def user_name() -> str:
    """Return the name of the person at this terminal, for labels without another name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry in the system's list
        return "me"


def label(
    what: Path,
    *,
    annotator: str | None,
    web: bool,
    host: str,
    port: int | None,
    tls: tuple[Path | None, Path | None],
    say: Callable[[str], None],
    **options: Any,
) -> None:
    """Ask people the questions of a run or a file, in the terminal or in browsers."""
    target = find(what)
    for sentence in target.notes:
        say(sentence)
    with open_desk(target, **options) as desk:
        if web:
            from rlhfctl.labels.web.serve import serve

            serve(desk, host=host, port=port, tls_cert=tls[0], tls_key=tls[1], announce=say)
        else:
            from rlhfctl.labels.screen.start import label_in_terminal

            given = label_in_terminal(desk, annotator or user_name())
            say(f"{given} labels given")
        left, wanted = desk.open_questions(), desk.wanted_answers()
    say(f"{wanted - left} of {wanted} answers are there, in {target.labels}")
    if target.run is None:
        say(f"use them: rlhfctl label export {what} --to pairs.jsonl")
    elif left:
        say(f"go on later: rlhfctl label {what}")
    else:
        say("all questions are answered: give the command rlhfctl run RECIPE again, and the run goes on")


def answered(target: Target, store: LabelStore) -> tuple[Desk, list[Event]]:
    """Return the desk of a target and its labels by people, in the order of the items."""
    known = {item.id for item in target.items}
    others = [item for item in store.items() if item.id not in known and item.gold is not None]
    desk = Desk([*target.items, *others], store, target.settings, accepts=lambda event: event.is_of_people)
    return desk, desk.answers.labels([item.id for item in desk.items])


def written(store: LabelStore) -> tuple[list[Item], list[Event]]:
    """Return the labels that people gave while they wrote conversations (`label --write`), and their items."""
    answers = Answers()
    answers.add(event for event in store.events() if event.is_written)
    texts = {item.id: item for item in store.items()}
    return [texts[item] for item in answers.by_item], answers.labels(answers.by_item)
