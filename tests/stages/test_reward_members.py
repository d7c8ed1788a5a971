"""Members of a reward stage: their seeds, layout, and steps as those of one stage. test_members.py runs a stage."""

from __future__ import annotations

from rlhfctl.events import Event, Metrics, Note, Progress, StageStarted
from rlhfctl.recipe.sections.seeds import LARGEST_SEED
from rlhfctl.stages import reward_members


def test_the_first_member_has_the_seed_of_the_recipe_and_all_are_legal() -> None:
    assert reward_members.seed_of(7, 0) == 7
    assert len({reward_members.seed_of(7, number) for number in range(64)}) == 64
    assert all(0 <= reward_members.seed_of(LARGEST_SEED, number) <= LARGEST_SEED for number in range(64))


def test_the_layout_names_the_members_after_the_first() -> None:
    assert reward_members.layout(3) == {"members": 3, "member-1": "member-1", "member-2": "member-2"}


def test_accuracy_counts_ties_as_wrong() -> None:
    assert reward_members._accuracy([2.0, 1.0, 0.0, 5.0, 1.0, 1.0, 1.0, 1.0]) == 0.5


def test_steps_count_on_and_the_stage_starts_once() -> None:
    heard: list[Event] = []
    emit = reward_members._CountingOn(heard.append, 3)
    emit.number, emit.before = 1, 10  # the first member was finished before a kill, in 10 steps
    emit(StageStarted(stage="reward", total_steps=10, resumed_from=4, settings={"pairs": 5}))
    emit(Progress(stage="reward", step=5, total=10, eta_s=2.0))
    emit(Note(stage="reward", message="as it is"))
    emit.number, emit.before = 2, 20
    emit(StageStarted(stage="reward", total_steps=10))
    emit(Metrics(stage="reward", step=10, total=10, values={"loss": 0.5}))
    started, progress, note, metrics = heard
    assert isinstance(started, StageStarted) and isinstance(progress, Progress) and isinstance(metrics, Metrics)
    assert (started.total_steps, started.resumed_from) == (30, 14)
    assert started.settings == {"pairs": 5, "members": 3}
    assert (progress.step, progress.total, progress.eta_s) == (15, 30, 4.0)
    assert note == Note(stage="reward", message="as it is", time=note.time)
    assert (metrics.step, metrics.total, metrics.values) == (30, 30, {"loss": 0.5})


def test_a_first_member_that_begins_is_not_resumed() -> None:
    heard: list[Event] = []
    reward_members._CountingOn(heard.append, 2)(StageStarted(stage="reward", total_steps=5))
    (started,) = heard
    assert isinstance(started, StageStarted) and (started.total_steps, started.resumed_from) == (10, None)
