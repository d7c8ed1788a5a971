"""Plain lines for pipes and log files: their words, their numbers, and how often they come."""

from __future__ import annotations

import io
import math

from rlhfctl.dashboard.terminal.plain import PlainPrinter
from rlhfctl.events import (
    CheckpointSaved,
    Event,
    Metrics,
    Note,
    Progress,
    Sample,
    StageFinished,
    StageStarted,
    Warned,
    Working,
)


def lines(*events: Event) -> list[str]:
    stream = io.StringIO()
    printer = PlainPrinter(stream)
    for event in events:
        printer(event)
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return text.split("\n")[:-1]


def test_started_and_settings() -> None:
    settings = {
        "learning_rate": 1e-3,
        "lora": None,
        "bf16": False,
        "optim": "adamw",
        "betas": [0.9, 0.95],
        "note": "a b",
    }
    assert lines(StageStarted(stage="sft", total_steps=375, resumed_from=120, settings=settings)) == [
        "[sft] started steps=375 resumed_from=120",
        '[sft] settings learning_rate=0.001 lora=null bf16=false optim=adamw betas=[0.9,0.95] note="a b"',
    ]
    assert lines(StageStarted(stage="sft")) == ["[sft] started"]
    assert lines(StageStarted(stage="sft", resumed_from=0)) == ["[sft] started resumed_from=0"]


def test_metrics_of_sft_and_ppo() -> None:
    values = {"epoch": 0.5, "learning_rate": 9.1e-4, "loss": 2.3104, "a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert lines(Metrics(stage="sft", step=40, total=375, eta_s=42.2, values=values)) == [
        "[sft] step 40/375 eta 0:42 loss=2.31 lr=9.1e-4 epoch=0.5 a=1 b=2 c=3"
    ]
    ppo = {"length": 18.2, "kl": 1.3, "score": 0.41, "policy_loss": -0.0123456}
    assert lines(Metrics(stage="ppo", step=12, total=40, eta_s=62, values=ppo)) == [
        "[ppo] update 12/40 eta 1:02 score=0.41 kl=1.3 length=18.2 policy_loss=-0.01235"
    ]
    assert lines(Metrics(stage="sft", step=7, values={"eval_loss": 2.0}, split="eval", eta_s=math.nan)) == [
        "[sft] eval step 7 eval_loss=2"
    ]


def test_progress_is_at_most_one_line_in_five_seconds_a_stage_and_always_the_last() -> None:
    events: list[Event] = [Progress(stage="sft", step=s, total=20, time=100.0 + s) for s in range(1, 21)]
    events.insert(3, Progress(stage="reward", step=1, total=2, unit="row", time=103.5))
    assert lines(*events) == [
        "[sft] step 1/20",
        "[reward] row 1/2",
        "[sft] step 6/20",
        "[sft] step 11/20",
        "[sft] step 16/20",
        "[sft] step 20/20",
    ]


def test_work_has_a_line_when_it_has_lasted_then_seldom_and_at_its_end() -> None:
    events: list[Event] = [
        Working(stage="sft", what="encoding", done=second * 10, total=1000, unit="pair", seconds=float(second))
        for second in range(1, 100)
    ]
    events.append(Working(stage="sft", what="encoding", done=1000, total=1000, unit="pair", seconds=100, over=True))
    assert lines(*events) == [
        "[sft] encoding: pair 50/1000 eta 1:35",
        "[sft] encoding: pair 350/1000 eta 1:05",
        "[sft] encoding: pair 650/1000 eta 0:35",
        "[sft] encoding: pair 950/1000 eta 0:05",
        "[sft] encoding: done in 1:40",
    ]


def test_work_that_cannot_be_counted_has_a_line_at_its_end_and_quick_work_has_none() -> None:
    def loading(seconds: float) -> list[Event]:
        over = Working(stage="ppo", what="loading x", seconds=seconds, over=True)
        return [Working(stage="ppo", what="loading x"), over]

    assert lines(*loading(4.9)) == []
    assert lines(*loading(42.0)) == ["[ppo] loading x: done in 0:42"]
    quick = Working(stage="ppo", what="sampling", done=7, total=8, unit="response", seconds=1.0)
    assert lines(quick, Progress(stage="ppo", step=1, total=2, unit="update")) == ["[ppo] update 1/2"]


def test_progress_right_after_metrics_is_silent() -> None:
    assert lines(
        Metrics(stage="sft", step=9, total=10, values={"loss": 1.0}, time=10.0),
        Progress(stage="sft", step=9, total=10, time=20.0),
        Metrics(stage="sft", step=10, total=10, values={"loss": 0.5}, time=21.0),
        Progress(stage="sft", step=10, total=10, time=21.0),
    ) == ["[sft] step 9/10 loss=1", "[sft] step 10/10 loss=0.5"]


def test_an_eval_line_does_not_stand_for_progress() -> None:
    assert lines(
        Metrics(stage="sft", step=10, total=10, split="eval", values={"eval_loss": 1.0}, time=1.0),
        Progress(stage="sft", step=10, total=10, time=1.0, eta_s=0),
    ) == ["[sft] eval step 10/10 eval_loss=1", "[sft] step 10/10 eta 0:00"]


def test_a_stage_that_starts_again_shows_its_first_progress() -> None:
    progress = Progress(stage="sft", step=1, total=9, time=1.0)
    assert lines(progress, StageStarted(stage="sft", time=1.5), progress)[-1] == "[sft] step 1/9"


def test_said_and_finished() -> None:
    assert lines(
        Note(stage="run", message="two\n  lines [red]"),
        Warned(stage="sft", message="careful\x1b[31m"),
        CheckpointSaved(stage="ppo", step=12, path="runs/x/ppo/checkpoint-12"),
        StageFinished(stage="sft", path="runs/x/sft", seconds=53.4, metrics={"loss": 1.92}),
        StageFinished(stage="compare", path="runs/x/compare", seconds=3725),
        StageFinished(stage="sft", path="runs/x/sft", seconds=0, skipped=True, metrics={"loss": 1.92}),
    ) == [
        "[run] note two lines [red]",
        "[sft] warning: careful\\x1b[31m",
        "[ppo] checkpoint update 12 runs/x/ppo/checkpoint-12",
        "[sft] finished in 0:53 (loss=1.92) runs/x/sft",
        "[compare] finished in 1:02:05 runs/x/compare",
        "[sft] skipped: already complete in runs/x/sft",
    ]


def test_a_sample_is_one_line() -> None:
    sample = Sample(
        stage="ppo",
        step=3,
        prompt='say "hi"\n',
        response="a\\b\r\n\x85\u2028c",
        reference="",
        scores={"reward": 0.123456},
    )
    (line,) = lines(sample)
    assert line == (
        r'[ppo] sample update 3 prompt="say \"hi\"\n" response="a\\b\r\n\x85\u2028c" reference="" reward=0.1235'
    )
    assert len(line.splitlines()) == 1


def test_a_stream_that_cannot_hold_a_character_does_not_stop_the_run() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainPrinter(stream)(Note(stage="run", message="é → \ud800"))
    assert raw.getvalue() == b"[run] note \\xe9 \\u2192 \\ud800\n"


def test_an_alarm_has_a_line_when_it_begins_and_when_it_ends() -> None:
    kl = [1.0] * 6 + [40.0 + step for step in range(8)] + [1.0] * 8
    events = [Metrics(stage="ppo", step=step, values={"kl": value, "length": 20.0}) for step, value in enumerate(kl, 1)]
    told = [line for line in lines(StageStarted(stage="ppo", settings={"kl_coef": 0.1}), *events) if "alarm" in line]
    assert len(told) == 2  # other numbers make no other alarm
    assert told[0].startswith("[ppo] alarm: KL is 4") and "the policy is far from the reference" in told[0]
    assert told[1].startswith("[ppo] alarm over: KL is 4")


def test_an_alarm_compares_with_the_beginning_of_earlier_attempts() -> None:
    lengths = [20.0] * 10 + [5.0] * 6
    events = [Metrics(stage="ppo", step=step, values={"length": length}) for step, length in enumerate(lengths, 1)]
    stream = io.StringIO()
    printer = PlainPrinter(stream, [event.to_record() for event in (StageStarted(stage="ppo"), *events[:10])])
    for event in (StageStarted(stage="ppo", resumed_from=10), *events[10:]):
        printer(event)
    assert "[ppo] alarm: responses shrank from 20 to 5 tokens" in stream.getvalue()
    assert not any("alarm" in line for line in lines(StageStarted(stage="ppo", resumed_from=10), *events[10:]))
