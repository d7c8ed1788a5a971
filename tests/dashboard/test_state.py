"""What is known of a run: all stages of many rounds, in bounded memory."""

from __future__ import annotations

from streams import SAMPLE, Record, finished, ppo, rounds, run_started, started

from rlhfctl.dashboard.state import KEPT_DETAILS, KEPT_STAGES, RunState


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
