"""Parts of the screen: the row of stages, a bar between texts, one metric with its chart, one sample."""

from __future__ import annotations

import math

from rich.text import Text
from streams import (
    SAMPLE,
    Record,
    finished,
    rounds,
    run_started,
    started,
    until_ppo,
)

from rlhfctl.dashboard.series import Series
from rlhfctl.dashboard.state import RunState
from rlhfctl.dashboard.terminal.draw import ASCII, UNICODE
from rlhfctl.dashboard.terminal.parts import (
    LABEL_WIDTH,
    TREND_WIDTH,
    VALUE_WIDTH,
    barred,
    metric_lines,
    metric_rows,
    rail,
    sample_lines,
)
from rlhfctl.metrics import METRICS, Metric, ranked


def state_of(records: list[Record]) -> RunState:
    state = RunState()
    for record in records:
        state.feed(record)
    return state


def series_of(*values: float) -> Series:
    series = Series()
    for step, value in enumerate(values):
        series.add(step, value)
    return series


def sample(width: int, height: int, **changed: object) -> list[str]:
    record = {"event": "sample", "stage": "ppo", "time": 1.0, "step": 20, **SAMPLE, **changed}
    return [line.plain.rstrip() for line in sample_lines(record, width, height, UNICODE)]


# ---------------------------------------------------------------- the row of stages


def test_of_several_rounds_the_one_at_work_is_named_and_the_others_are_counted() -> None:
    state = state_of(rounds(2, until="ppo"))
    row = "✓ 4 done ─ round-2: ✓ sft 1:00 ─ ✓ reward 0:30 ─ ▸ ppo 22/40 ─ · compare ─ · 8 to come"
    assert rail(state, 110, UNICODE).plain == row
    assert rail(state, 80, UNICODE).plain.endswith("▸ ppo ─ · compare ─ · 8 to come")  # no room for the details
    over = "✓ 8 done ─ round-3: ✓ sft 1:00 ─ ✓ reward 0:30 ─ ✓ ppo 1:21 ─ ✓ compare 0:08"
    assert rail(state_of(rounds(3)), 110, UNICODE).plain == over


def test_many_stages_without_rounds_are_named_around_the_one_at_work() -> None:
    names = tuple(f"s{index}" for index in range(100))
    records = [run_started(stages=names), *(finished(name, 1.0, 1.0) for name in names[:50])]
    row = rail(state_of([*records, started("s50", 2.0, 9)]), 200, UNICODE).plain
    assert row.startswith("✓ 44 done ─ ✓ s44 0:01") and "▸ s50 0/9" in row
    assert row.endswith("· s55 ─ · 44 to come")


def test_a_stage_that_was_skipped_or_stopped_has_its_own_sign() -> None:
    state = state_of([run_started(stages=("sft", "ppo")), finished("sft", 1.0, 0.0, skipped=True)])
    assert rail(state, 80, UNICODE).plain == "= sft unchanged ─ · ppo"
    state.feed(started("ppo", 2.0, 40))
    state.feed({"event": "run_stopped", "stage": "run", "time": 3.0, "reason": "Ctrl-C"})
    assert rail(state, 80, UNICODE).plain == "= sft unchanged ─ ✗ ppo 0/40"
    assert rail(state, 80, ASCII).plain == "= sft unchanged - x ppo 0/40"
    assert rail(RunState(), 80, UNICODE).plain == ""


def test_each_part_of_a_line_keeps_its_own_style() -> None:
    row = rail(state_of(rounds(2, until="ppo")), 110, UNICODE)
    assert row.style == "" and {str(span.style) for span in row.spans} >= {"green", "dim", "bold", "bold cyan"}
    record = {"event": "sample", "stage": "ppo", "time": 1.0, "step": 20, **SAMPLE}
    (heads,) = [line for line in sample_lines(record, 80, 9, UNICODE) if "reference" in line.plain]
    assert heads.style == ""  # the reference's name is not in the policy's colour


# ---------------------------------------------------------------- a bar


def test_a_bar_takes_the_room_that_the_texts_leave() -> None:
    assert barred(Text("ppo"), 0.5, Text("  5/10"), 23, UNICODE).plain == "ppo  " + "━" * 6 + "─" * 6 + "  5/10"
    assert barred(Text("ppo"), None, Text("  5/10"), 23, UNICODE).plain == "ppo  5/10"
    assert barred(Text("ppo"), 0.5, Text("  5/10"), 14, UNICODE).plain == "ppo  5/10"  # no room for a bar
    assert barred(Text("a long name"), 0.5, Text("  5/10"), 12, UNICODE).plain == "a lon…  5/10"  # numbers stay


# ---------------------------------------------------------------- metrics


def test_meanings_fit_under_their_numbers() -> None:
    for stage in METRICS:
        for metric in ranked(stage, "screen"):
            assert 0 < len(metric.label) <= LABEL_WIDTH
            assert len(metric.hint) + 2 <= LABEL_WIDTH + VALUE_WIDTH + 2 + TREND_WIDTH, metric.hint


def test_key_metrics_come_first_and_an_unknown_stage_shows_its_first_eight() -> None:
    state = state_of(until_ppo())
    assert next(metric.name for metric, _ in metric_rows(state.stages["ppo"])) == "score"
    assert "policy_loss" not in [metric.name for metric, _ in metric_rows(state.stages["ppo"])]
    state.feed(started("from a later version", 2000.0, 1))
    values = {f"m{index}": 1.0 for index in range(20)}
    state.feed({"event": "metrics", "stage": "from a later version", "time": 2001.0, "step": 1, "values": values})
    assert [metric.name for metric, _ in metric_rows(state.stages["from a later version"])] == list(values)[:8]


def test_a_metric_is_a_line_of_name_number_trend_chart_and_range() -> None:
    series = series_of(*range(8))
    metric = Metric("score", "score", "", better=1, hint="higher is better")
    (line,) = metric_lines(metric, series, [series], 1, 80, UNICODE)
    assert line.plain.split() == ["score", "7", "↑", "4", "▁▁▂▂▂▃▃▄▄▄▅▅▅▆▆▇▇▇███", "0", "to", "7"]
    first, second = metric_lines(metric, series, [series], 2, 80, UNICODE)
    assert first.plain == line.plain and second.plain.strip() == "higher is better"
    top, middle, bottom, _ = (line.plain.split() for line in metric_lines(metric, series, [series], 4, 80, UNICODE))
    assert (top[-1], bottom[-1]) == ("7", "0")  # the ends of the range stand at the ends of the chart
    assert len(top[-2]) < len(middle[-1]) < len(bottom[-2])  # a rising line is wider below


def test_the_colour_of_a_trend_says_whether_it_is_good() -> None:
    rising = series_of(*range(8))
    for better, style in ((1, "green"), (-1, "red"), (0, "cyan")):
        (line,) = metric_lines(Metric("m", "m", "", better=better), rising, [rising], 1, 80, UNICODE)
        assert style in {str(span.style) for span in line.spans if "↑" in line.plain[span.start : span.end]}


def test_a_number_that_is_not_finite_is_red_and_one_report_has_no_chart() -> None:
    (line,) = metric_lines(Metric("m", "m", ""), series_of(1.0, math.nan), [], 1, 80, UNICODE)
    assert "bold red" in {str(span.style) for span in line.spans}
    (line,) = metric_lines(Metric("m", "m", ""), series_of(1.0), [], 1, 80, UNICODE)
    assert line.plain.split() == ["m", "1"]


# ---------------------------------------------------------------- a sample


def test_a_sample_has_the_responses_side_by_side_and_one_below_the_other_on_a_narrow_screen() -> None:
    lines = sample(80, 9)
    assert lines[0].startswith("── sample at update 20 ──")
    assert lines[1] == "prompt  review of the school play:"
    assert lines[2].split() == ["policy", "score", "0.735", "│", "reference", "score", "0.581"]
    assert lines[3].endswith("│ it was a play.")
    narrow = sample(49, 12)
    assert narrow[2].split() == ["policy", "score", "0.735"]
    assert "reference  score 0.581" in narrow and "it was a play." in narrow


def test_a_sample_may_lack_a_reference_scores_and_words() -> None:
    lines = sample(80, 9, reference=None, response="", scores=None, step=0)
    assert lines[0].startswith("── sample before the first update ──")
    assert lines[2:] == ["policy", "(empty)"]
    assert "score nan" in sample(80, 9, scores={"score": None})[2]


def test_a_long_prompt_takes_a_third_of_the_height() -> None:
    lines = sample(60, 11, prompt="word " * 200)
    assert sum(line.startswith(("prompt", "        word")) for line in lines) == 3
    assert len(lines) <= 11 and any("policy" in line for line in lines)
