"""The screen of a run: its content, and that it fits terminals of any size for any events."""

from __future__ import annotations

import io
import random

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from streams import (
    STAGES,
    finished,
    ppo,
    random_stream,
    rounds,
    run_started,
    started,
    until_ppo,
    whole,
)

from rlhfctl.dashboard.terminal.draw import ASCII, UNICODE, Signs
from rlhfctl.dashboard.terminal.screen import Screen
from rlhfctl.events import StageStarted
from rlhfctl.metrics import METRICS, ranked

SIZES = [(80, 24), (200, 60)]


def fed(records: list[dict]) -> Screen:  # type: ignore[type-arg]
    screen = Screen()
    for record in records:
        screen.state.feed(record)
    return screen


def drawn(
    screen: Screen, width: int = 80, height: int = 24, signs: Signs = UNICODE, now: float | None = None
) -> list[str]:
    lines = screen.lines(width, height, signs, (screen.state.last or 0.0) if now is None else now)
    return [line.plain.rstrip() for line in lines]


def line_with(words: str, lines: list[str]) -> str:
    (line,) = [line for line in lines if words in line]
    return line


# ---------------------------------------------------------------- it fits


@pytest.mark.parametrize("seed", range(40))
def test_no_line_is_too_wide_and_no_screen_too_high(seed: int) -> None:
    draw = random.Random(seed)
    screen = Screen()
    sizes = [*SIZES, (1, 1), (120, 9), (draw.randrange(1, 250), draw.randrange(1, 70))]
    for index, record in enumerate(random_stream(seed)):
        screen.state.feed(record)
        if index % 12 == 0 or index > 115:
            for width, height in sizes:
                for signs in (UNICODE, ASCII):
                    lines = screen.lines(width, height, signs, 1e9 + 7.0 * index)
                    assert len(lines) <= height
                    for line in lines:
                        assert cell_len(line.plain) <= width, line.plain
                        assert "\n" not in line.plain
                        assert signs is UNICODE or line.plain.isascii(), line.plain
                for line in screen.summary(width, UNICODE, 1e9):
                    assert cell_len(line.plain) <= width


@pytest.mark.parametrize("size", SIZES)
def test_the_room_is_used(size: tuple[int, int]) -> None:
    for records in (until_ppo(), whole()):
        lines = drawn(fed(records), *size)
        assert len(lines) >= 0.75 * size[1]
        assert max(map(cell_len, lines)) > 0.9 * size[0]


def test_control_characters_never_reach_the_terminal() -> None:
    for seed in range(10):
        for line in fed(random_stream(seed)).lines(120, 40, UNICODE, 2e9):
            assert all(char.isprintable() for char in line.plain)


# ---------------------------------------------------------------- what it says


def test_the_middle_of_ppo() -> None:
    lines = drawn(fed(until_ppo()))
    assert lines[0].startswith("quickstart  running 17:24")
    assert lines[0].endswith("time left 0:36 + compare")
    assert lines[1] == "✓ sft 1:41 ─ ✓ reward 1:05 ─ ▸ ppo 22/40 ─ · compare"
    assert lines[2].startswith("ppo  ━━━")
    assert lines[2].endswith("─  update 22/40  55%  0:36 left")
    score = line_with("score   ", lines)
    assert score.startswith("score                 0.54  ↑ 0.2")
    assert "▁" in score and score.endswith("0.12 to 0.54")
    assert "── sample at update 20 ─" in line_with("sample", lines)
    assert line_with("policy", lines).split() == ["policy", "score", "0.735", "│", "reference", "score", "0.581"]
    assert line_with("the music", lines).endswith("│ it was a play.")
    assert lines[-1].startswith("── no alarms ─")


def test_time_goes_on_without_events_and_silence_is_said() -> None:
    screen = fed(until_ppo())
    now = screen.state.last or 0.0
    assert drawn(screen, now=now + 10)[0].endswith("time left 0:26 + compare")
    silent = drawn(screen, now=now + 100)[0]
    assert "no event for 1:40" in silent
    assert silent.endswith("time left 0:26 + compare")  # nothing gets done: it stands still


def test_coming_stages_count_as_they_took_last_time() -> None:
    again = [run_started(2000.0), finished("sft", 2001.0, 0.1, skipped=True), started("reward", 2002.0, 50)]
    screen = fed([*whole(), *again])
    assert drawn(screen)[1] == "= sft unchanged ─ ▸ reward 0/50 ─ · ppo ─ · compare"
    assert drawn(screen)[0].endswith("time left about 2:34")  # 65 of reward, 81 and 8 as before
    assert drawn(screen, now=2022.0)[0].endswith("time left about 2:14")


def test_one_stage_alone_and_a_run_that_says_no_stages() -> None:
    assert drawn(fed([run_started(stages=("ppo",)), started("ppo", 1.0, 40)]))[1] == "▸ ppo 0/40"
    older = fed([record for record in until_ppo() if record["event"] != "run_started"])
    assert drawn(older)[1] == "✓ sft 1:41 ─ ✓ reward 1:05 ─ ▸ ppo 22/40"
    assert not older.state.over


def working(what: str, stage: str = "reward", time: float = 1000.0, **said: object) -> dict[str, object]:
    told = {"done": 0, "total": None, "unit": "", "seconds": 0.0, "over": False}
    return {"event": "working", "stage": stage, "time": time, "what": what} | told | said


def test_work_beside_the_steps_has_a_line_of_its_own() -> None:
    counted = {"done": 16, "total": 64, "unit": "response", "seconds": 5.0}
    screen = fed([*until_ppo(), working("sampling", "ppo", 1044.0, **counted)])
    lines = drawn(screen)
    assert lines[2].endswith("update 22/40  55%  0:36 left")
    assert lines[3].startswith("sampling  ━━━") and lines[3].endswith("─  response 16/64  25%  0:15 left")
    assert drawn(screen, now=1048.0)[3].endswith("0:11 left")
    screen.state.feed(working("loading x", "ppo", 1045.0))  # inside it, and not to be counted
    assert not drawn(screen, now=1045.2)[3].startswith("loading x")  # yet
    assert drawn(screen, now=1052.0)[3] == "loading x  0:07"
    long = fed([*until_ppo(), working("loading " + "x" * 99, "ppo", 1045.0)])
    assert drawn(long, now=1052.0)[3] == "loading " + "x" * 65 + "…  0:07"  # the name is cut, not the number
    screen.state.feed(working("loading x", "ppo", 1052.0, over=True))
    assert drawn(screen)[3].startswith("sampling")
    screen.state.feed(working("sampling", "ppo", 1053.0, over=True))
    assert drawn(screen)[3] == ""
    screen.state.feed({"event": "checkpoint", "stage": "ppo", "time": 1054.0, "step": 22, "path": "p"})
    assert drawn(screen, now=1059.0)[3] == "last checkpoint: update 22, 0:05 ago"
    assert len(drawn(screen)) == len(lines)  # nothing jumps


def test_a_stage_that_gets_ready_is_at_work() -> None:
    records = [run_started(), started("sft", 10.0, 100), finished("sft", 111.0, 101.0)]
    records.append(working("encoding pairs", done=500, total=1000, unit="pair", seconds=10.0))
    screen = fed(records)
    lines = drawn(screen)
    assert lines[1] == "✓ sft 1:41 ─ ▸ reward ─ · ppo ─ · compare"
    assert lines[2] == "reward  getting ready"
    assert lines[3].endswith("pair 500/1000  50%  0:10 left")
    screen.state.feed(started("reward", 1020.0, 50))
    assert "step 0/50" in drawn(screen)[2] and drawn(screen)[3] == ""
    assert screen.state.stages["reward"].began == 1000.0  # getting ready is a part of it
    assert drawn(fed([run_started(), working("reading a.jsonl", "run", 1.0)]), now=9.0)[3] == "reading a.jsonl  0:08"


def test_a_run_that_is_over_works_no_more() -> None:
    screen = fed([*until_ppo(), working("sampling", "ppo", 1044.0)])
    screen.state.no_more_comes("gone")
    assert not [line for line in drawn(screen, now=2000.0) if "sampling" in line]


def test_before_the_first_stage_the_note_is_shown() -> None:
    screen = fed([run_started(), {"event": "note", "stage": "run", "time": 1.0, "message": "checking data"}])
    lines = drawn(screen)
    assert lines[0].endswith("time left ? + sft, reward, ppo, compare")
    assert lines[2] == "checking data"
    assert drawn(Screen())[0].startswith("run")


def test_the_end() -> None:
    screen = fed(whole())
    assert screen.state.over
    lines = drawn(screen)
    assert lines[0].endswith("done after 18:10")
    assert lines[1] == "✓ sft 1:41 ─ ✓ reward 1:05 ─ ✓ ppo 1:21 ─ ✓ compare 0:08"
    assert line_with("win rate", lines).split()[-1] == "0.72"
    assert any(line.startswith("── ppo (done) ─") for line in lines)
    assert [line.plain for line in screen.summary(80, UNICODE, 0.0)] == [drawn(screen)[0], lines[1]]


def test_a_run_that_stops_says_why_and_a_new_start_forgets_it() -> None:
    stop = {"event": "run_stopped", "stage": "run", "time": 1050.0, "reason": "Ctrl-C"}
    screen = fed([*until_ppo(), stop])
    assert screen.state.over
    lines = drawn(screen)
    assert lines[0].endswith("stopped after 17:30")
    assert "✗ ppo" in lines[1]
    assert "✗ stopped: Ctrl-C" in lines
    screen.state.feed(run_started(1100.0))
    assert not screen.state.over
    assert "stopped" not in "".join(drawn(screen))


def test_a_resumed_stage_says_its_step_and_a_stage_without_eta_is_timed() -> None:
    resumed = fed([*until_ppo(22), run_started(1100.0), started("ppo", 1101.0, 40, resumed_from=12)])
    assert drawn(resumed)[2].endswith("resumed from 12")
    assert "update 12/40" in drawn(resumed)[2]
    timed = fed([run_started(5000.0, ("compare",)), started("compare", 5000.0, 300)])
    for step, time in ((0, 5002.0), (100, 5012.0)):
        progress = {"event": "progress", "stage": "compare", "time": time, "step": step, "total": 300, "eta_s": None}
        timed.state.feed({**progress, "unit": "response"})
    assert drawn(timed)[2].endswith("response 100/300  33%  0:20 left")


def test_warnings_stand_below_alarms_the_newest_first_each_once() -> None:
    records = until_ppo(22)
    for message in ("the first", "the second", "the first"):
        records.append({"event": "warning", "stage": "sft", "time": 1044.0, "message": message})
    records += ppo(30, first=23, kl=30.0)
    lines = drawn(fed(records), 200, 60)
    said = [line.split("│ ")[-1] for line in lines if "│ ! " in line or "│ - " in line]
    assert said[0].startswith("! ppo: KL is 30 nats per response")
    assert said[1:] == ["- sft: the first", "- sft: the second"]
    assert "1 alarm, 2 warnings" in line_with("1 alarm", lines)
    small = drawn(fed(records))
    assert any("KL is 30 nats" in line for line in small)
    assert small[-1].strip().startswith(("and ", "- sft"))


def test_markup_in_samples_is_text() -> None:
    records = until_ppo()
    records[-1] = {
        **records[-1],
        "response": "[bold]x[/bold] :smile: [/]",
        "prompt": [{"role": "user", "content": "hi"}],
    }
    lines = drawn(fed(records))
    assert any(line.startswith("[bold]x[/bold] :smile: [/]") for line in lines)
    assert "prompt  hi" in lines


# ---------------------------------------------------------------- rounds


def test_the_stage_at_work_of_a_later_round_is_shown_with_its_metrics() -> None:
    lines = drawn(fed(rounds(2, until="ppo")), 110)
    assert "▸ ppo 22/40" in lines[1]
    assert lines[2].startswith("round-2/ppo  ━━") and "update 22/40" in lines[2]
    assert line_with("score   ", lines).split()[:2] == ["score", "0.54"]  # a ppo of any round has ppo's metrics


def test_an_alarm_of_a_later_round_is_raised() -> None:
    records = rounds(2, until="ppo")
    for record in ppo(30, first=23, kl=30.0):
        records.append({**record, "stage": "round-2/ppo"})
    assert any("! round-2/ppo: KL is 30 nats" in line for line in drawn(fed(records), 110, 40))


# ---------------------------------------------------------------- signs and colours


def test_ascii_has_the_same_picture() -> None:
    lines = drawn(fed(until_ppo()), signs=ASCII)
    assert lines[1] == "* sft 1:41 - * reward 1:05 - > ppo 22/40 - . compare"
    assert len(lines) == len(drawn(fed(until_ppo())))


def output(screen: Screen, **options: object) -> str:
    console = Console(file=io.StringIO(), width=80, height=24, legacy_windows=False, **options)  # type: ignore[arg-type]
    for line in screen.lines(80, 24, UNICODE, 1044.0):
        console.print(line, no_wrap=True, overflow="crop")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_colour_there_is_not_one_escape_code() -> None:
    assert "\x1b" not in output(fed(until_ppo()), color_system=None, force_terminal=False)


def test_no_color_leaves_weight_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = output(fed(until_ppo()), force_terminal=True, color_system="truecolor")
    assert not [code for code in text.split("\x1b[")[1:] if code.split("m")[0] not in ("0", "1", "2", "1;2", "2;1")]


def test_colours_are_those_that_show_on_light_and_dark() -> None:
    allowed = {"", "cyan", "green", "red", "magenta"}
    for records in (until_ppo(), whole(), *(random_stream(seed) for seed in range(5))):
        for line in fed(records).lines(200, 60, UNICODE, 2e9):
            for style in (line.style, *(span.style for span in line.spans)):
                assert set(str(style).split()) <= allowed | {"bold", "dim"}, style


def test_the_events_own_records_are_understood() -> None:
    screen = fed([run_started(), StageStarted(stage="sft", total_steps=7, time=5.0).to_record()])
    assert drawn(screen)[1].startswith("▸ sft 0/7")
    assert {stage for stage in METRICS if ranked(stage, "screen")} == {
        *STAGES, "dpo", "card", "sample", "label", "summary",
    }  # fmt: skip
    assert all(isinstance(line, Text) for line in screen.lines(80, 24, UNICODE, 6.0))
