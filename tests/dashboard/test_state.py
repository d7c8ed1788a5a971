"""The state of a run: stages of many rounds, time left, resumed charts, and bounded memory."""

from __future__ import annotations

import math

import pytest
from streams import SAMPLE, Record, finished, ppo, rounds, run_started, started, until_ppo, whole

from rlhfctl.dashboard.series import POINTS
from rlhfctl.dashboard.state import KEPT_DETAILS, KEPT_STAGES, RunState, real
from rlhfctl.dashboard.state import whole as whole_number


def fed(records: list[Record]) -> RunState:
    state = RunState()
    for record in records:
        state.feed(record)
    return state


def test_the_thirteenth_stage_is_kept() -> None:
    state = fed(rounds(4))
    assert len(state.order) == 16 and state.over
    last = state.stages["round-4/ppo"]
    assert (last.state, last.step, last.series["score"].step) == ("done", 40, 40)


def test_hundreds_of_stages_are_kept_and_the_newest_have_their_metrics() -> None:
    state = fed(rounds(200))
    assert [stage.state for stage in state.stages.values()] == ["done"] * 800
    detailed = [stage.name for stage in state.stages.values() if stage.series]
    assert detailed == ["round-198/ppo", "round-199/ppo", "round-200/ppo"]  # of the twelve newest stages
    assert state.stages["ppo"].took == 81.0 and not state.stages["ppo"].settings


def test_made_up_stages_take_no_memory_and_push_no_real_one_out() -> None:
    state = fed([run_started(stages=("sft", "ppo")), finished("sft", 1.0, 1.0), started("ppo", 2.0, 40)])
    for index in range(3 * KEPT_STAGES):
        name = f"{index}" + "x" * 10_000
        state.feed(started(name, 3.0, 1, kl_coef="y" * 1000))
        state.feed({"event": "sample", "stage": name, "time": 3.0, "step": 1, **SAMPLE})
        values = {f"metric {n}": 1.0 for n in range(200)}
        state.feed({"event": "metrics", "stage": name, "time": 3.0, "step": 1, "split": "test", "values": values})
    assert len(state.stages) == KEPT_STAGES
    assert sum(bool(stage.series or stage.samples or stage.settings) for stage in state.stages.values()) == KEPT_DETAILS
    assert max(len(stage.name) for stage in state.stages.values()) <= 200
    assert (state.stages["sft"].state, state.stages["ppo"].total) == ("done", 40)
    for record in ppo(22):
        state.feed(record)
    assert state.stages["ppo"].series["score"].step == 22


def test_a_run_that_names_too_many_stages_is_cut() -> None:
    state = fed([run_started(stages=tuple(map(str, range(3 * KEPT_STAGES)))), started("one more", 1.0, 7)])
    assert len(state.order) == len(state.stages) == KEPT_STAGES
    assert state.current is not None and state.current.name == "one more"  # heard, not kept


def test_a_stage_to_come_counts_as_the_last_of_its_kind_took() -> None:
    state = fed(rounds(2, until="ppo"))  # 36 s of ppo left, compare 8 s, and two rounds of 60, 30, 81 and 8 s
    assert state.time_left(state.last or 0.0) == "time left about 6:42"


def test_of_many_stages_to_come_the_first_are_named() -> None:
    names = tuple(f"s{index}" for index in range(9))
    assert fed([run_started(stages=names)]).time_left(0.0) == "time left ? + s0, s1, s2, 6 more stages"


def test_memory_does_not_grow_with_the_run() -> None:
    state = fed([run_started(stages=("ppo",)), started("ppo", 1.0, None)])
    for index in range(3_000):
        for record in ppo(index, first=index, total=3_000):
            state.feed(record)
        state.feed({"event": "sample", "stage": "ppo", "time": 1.0, "step": index, **SAMPLE})
        state.feed({"event": "warning", "stage": "ppo", "time": 1.0, "message": f"the {index}th"})
        state.feed({"event": "note", "stage": f"made up {index}", "time": 1.0, "message": ""})
        state.feed({"event": "started", "stage": f"made up {index}", "time": 1.0})
    assert all(len(series.points) <= POINTS for series in state.stages["ppo"].series.values())
    assert (len(state.stages["ppo"].samples), len(state.warnings), len(state.stages)) == (4, 20, KEPT_STAGES)


def test_a_resume_keeps_the_chart_and_a_start_over_drops_it() -> None:
    state = fed([*until_ppo(22), run_started(1100.0), started("ppo", 1101.0, 40, resumed_from=12)])
    stage = state.stages["ppo"]
    assert (stage.step, stage.series["score"].step) == (12, 12)
    for record in ppo(14, first=13, start=1101.0):
        state.feed(record)
    assert [step for step, _ in stage.series["score"].points] == list(range(1, 15))
    state.feed(started("ppo", 1200.0, 40))
    assert not stage.series and not stage.samples


def test_a_stage_that_does_not_say_how_long_is_timed() -> None:
    state = fed([run_started(5000.0, ("compare",)), started("compare", 5000.0, 300)])
    for step, time in ((0, 5002.0), (100, 5012.0)):
        progress = {"event": "progress", "stage": "compare", "time": time, "step": step, "total": 300, "eta_s": None}
        state.feed({**progress, "unit": "response"})
    assert state.stages["compare"].left(5012.0) == 20.0  # 100 took 10 s, 200 are left


def test_while_a_step_hangs_the_time_left_stands_still() -> None:
    state = fed([run_started(5000.0, ("compare",)), started("compare", 5000.0, 10)])
    state.feed({"event": "progress", "stage": "compare", "time": 5004.0, "step": 2, "total": 10, "eta_s": 16.0})
    for seconds, left in ((0, 16.0), (1, 15.0), (10, 6.0), (60, 6.0), (600, 6.0)):
        assert state.stages["compare"].left(5004.0 + seconds) == left


def test_a_run_is_over_when_it_stops_or_its_process_is_gone_or_all_is_done() -> None:
    stop = {"event": "run_stopped", "stage": "run", "time": 1050.0, "reason": "Ctrl-C"}
    state = fed([*until_ppo(), stop])
    assert state.over and state.stopped == "Ctrl-C"
    state.feed(run_started(1100.0))
    assert not state.over and state.stopped is None
    state.no_more_comes("gone")
    assert state.over and state.stopped == "gone"
    done = fed(whole())
    done.no_more_comes("gone")
    assert done.over and done.stopped is None


@pytest.mark.parametrize(
    ("value", "number", "integer"),
    [(2, 2.0, 2), (2.7, 2.7, 2), *((odd, None, None) for odd in (True, "2", None, math.nan, -math.inf, 10**400, []))],
)
def test_fields_of_records_are_numbers_or_none(value: object, number: float | None, integer: int | None) -> None:
    assert real(value) == number
    assert whole_number(value) == integer


def test_records_that_are_not_understood_change_nothing() -> None:
    state = fed([])
    for record in ({}, {"stage": "ppo"}, {"stage": 3, "time": 1.0}, {"stage": "ppo", "time": "now"}):
        state.feed(record)
    assert state.last is None and not state.stages
    state.feed({"event": "from a later version", "stage": "ppo", "time": 1.0})
    assert state.last == 1.0 and not state.stages
