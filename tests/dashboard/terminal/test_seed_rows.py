"""The rows of the stages of several seeds: every stage is there, in columns, at any width, and others are counted."""

from __future__ import annotations

import pytest
from rich.console import Console

from rlhfctl.dashboard.state import RunState
from rlhfctl.dashboard.terminal.draw import signs_for
from rlhfctl.dashboard.terminal.screen import Screen
from rlhfctl.dashboard.terminal.seed_rows import group_of, seed_rows
from rlhfctl.events import Event, Metrics, RunStarted, RunStopped, StageFinished, StageStarted, VerdictReached

SIGNS = signs_for(Console(force_terminal=True), {})


def fed(seeds: int, done: int, *more: Event, kinds: tuple[str, ...] = ("reward", "ppo", "compare")) -> RunState:
    """A run whose first `done` stages are complete and whose next one has done 12 of 40 steps."""
    order = ["sft", *(f"seed-{seed}/{kind}" for seed in range(seeds) for kind in kinds), "summary"]
    events: list[Event] = [RunStarted(stage="run", name="three", stages=order, time=0.0)]
    for name in order[:done]:
        events.append(StageStarted(stage=name, time=1.0, total_steps=40))
        if name.endswith(("compare", "summary")):
            events.append(VerdictReached(stage=name, verdict="better", sentence="better: it is", time=1.0))
        events.append(StageFinished(stage=name, path=name, seconds=74.0, time=1.0))
    if done < len(order):
        events.append(StageStarted(stage=order[done], time=2.0, total_steps=40))
        events.append(Metrics(stage=order[done], time=2.0, step=12, total=40, values={"score": 1.0}))
    state = RunState()
    for event in (*events, *more):
        state.feed(event.to_record())
    return state


def rows(state: RunState, width: int = 80, most: int = 6) -> list[str]:
    return [line.plain.rstrip() for line in seed_rows(state, width, most, SIGNS)]


def test_shared_stages_then_a_row_per_seed() -> None:
    assert rows(fed(3, 5)) == [
        "shared  ✓ sft 1:14   · summary",
        "seed-0  ✓ reward 1:14   ✓ ppo 1:14    ✓ compare 1:14   better",
        "seed-1  ✓ reward 1:14   ▸ ppo 12/40   · compare",
        "seed-2  · reward        · ppo         · compare",
    ]


def test_a_run_with_one_seed_has_no_such_rows() -> None:
    state = RunState()
    state.feed(RunStarted(stage="run", name="one", stages=["sft", "ppo", "round-2/ppo"], time=0.0).to_record())
    assert seed_rows(state, 80, 6, SIGNS) == []
    assert group_of("round-2/ppo") == "" and group_of("round-2/seed-1/ppo") == "round-2/seed-1"


def test_the_runs_of_a_sweep_have_a_row_each() -> None:
    state = RunState()
    names = [f"{run}/{kind}" for run in ("kl_coef=0", "kl_coef=0.5", "kl_coef=2") for kind in ("sft", "seed-1/ppo")]
    state.feed(RunStarted(stage="run", name="one", stages=names, time=0.0).to_record())
    assert rows(state, most=20) == [
        "kl_coef=0           · sft",
        "kl_coef=0/seed-1    · ppo",
        "kl_coef=0.5         · sft",
        "kl_coef=0.5/seed-1  · ppo",
        "kl_coef=2           · sft",
        "kl_coef=2/seed-1    · ppo",
    ]
    assert rows(state, most=3)[0].strip() == "4 more runs to come"


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_no_row_is_wider_than_the_screen(width: int) -> None:
    kinds = ("reward", "heldout", "card", "ppo", "compare")
    state = fed(3, 4, kinds=kinds)
    for line in seed_rows(state, width, 6, SIGNS):
        assert line.cell_len <= width
    if width >= 80:
        named = "\n".join(rows(state, width))
        assert all(named.count(kind) == 3 for kind in kinds) and "12/40" in named


def test_seeds_that_find_no_row_are_counted() -> None:
    found = rows(fed(10, 17), most=4)
    assert found[0] == "shared  ✓ sft 1:14   · summary   4 more seeds done, 3 more seeds to come"
    assert [row.split()[0] for row in found[1:]] == ["seed-4", "seed-5", "seed-6"]
    assert "▸ ppo 12/40" in found[2]
    over = rows(fed(10, 32), most=4)
    assert [row.split()[0] for row in over[1:]] == ["seed-7", "seed-8", "seed-9"] and "7 more seeds done" in over[0]
    assert len(rows(fed(10, 17), most=12)) == 11


def test_a_stopped_stage_and_an_older_verdict() -> None:
    stopped = rows(fed(2, 2, RunStopped(stage="run", reason="Ctrl-C", time=3.0)))
    assert SIGNS.stopped in stopped[1] and "▸" not in stopped[1]
    again = fed(2, 4, StageStarted(stage="seed-0/compare", time=4.0))
    assert "better" not in "\n".join(rows(again))


def test_the_screen_has_the_rows_and_keeps_the_metrics() -> None:
    state = fed(3, 5)
    for height in (12, 24, 60):
        drawn = [line.plain for line in Screen(state).lines(80, height, SIGNS, 3.0)]
        assert len(drawn) <= height
        text = "\n".join(drawn)
        assert "seed-1/ppo" in text and "update 12/40" in text and "score" in text
        if height >= 24:
            assert all(f"seed-{seed}  " in text for seed in range(3))
    summary = [line.plain for line in Screen(fed(3, 11)).summary(80, SIGNS, 3.0)]
    assert any("better: it is" in line for line in summary) and sum("better" in line for line in summary) == 4
