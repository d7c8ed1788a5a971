"""The live bar: what it shows, that it fits, and that it gives the terminal back."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from rlhfctl.dashboard.live import LivePrinter
from rlhfctl.events import CheckpointSaved, Metrics, Note, Progress, Sample, StageFinished, StageStarted, Warned

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
PPO = {"entropy": 2.2, "length": 18.234, "kl": 1.3456, "score": 0.4123, "value_loss": 0.5}


def terminal(width: int = 80, *, escapes: bool = False) -> Console:
    """A console that writes to memory: with `escapes` as to a terminal, else as plain text."""
    return Console(file=io.StringIO(), width=width, height=20, force_terminal=escapes, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def bar(printer: LivePrinter) -> str:
    """The bar as it stands."""
    with printer.console.capture() as capture:
        printer.console.print(printer._progress.get_renderable())
    return capture.get()


@pytest.mark.parametrize(("width", "shown"), [(80, ["score", "kl"]), (120, ["score", "kl", "length", "entropy"])])
def test_the_bar_fits_on_one_line(width: int, shown: list[str]) -> None:
    printer = LivePrinter(terminal(width))
    printer(StageStarted(stage="ppo", total_steps=2560))
    printer(Metrics(stage="ppo", step=1212, total=2560, eta_s=3723, values=PPO))
    text = bar(printer)
    assert text.count("\n") == 1
    assert cell_len(text.rstrip("\n")) <= width
    assert text.startswith("ppo ")
    assert "1212/2560  1:02:03 left  score 0.412   kl 1.35" in text
    names = ["score", "kl", "length", "entropy", "value_loss"]
    present = [name for name in names if f" {name} " in text]
    assert present == shown


def test_progress_keeps_the_metrics_and_a_new_stage_drops_them() -> None:
    printer = LivePrinter(terminal())
    printer(StageStarted(stage="sft", total_steps=10))
    printer(Metrics(stage="sft", step=1, values={"loss": 2.0}))
    printer(Metrics(stage="sft", step=1, values={"eval_loss": 3.0}, split="eval"))
    printer(Progress(stage="sft", step=2, total=10, eta_s=5))
    assert " 2/10   0:05 left  loss 2       eval_loss 3" in bar(printer)
    printer(StageStarted(stage="reward", total_steps=7, resumed_from=4))
    text = bar(printer)
    assert "reward" in text
    assert "4/7" in text
    assert "loss" not in text
    assert "sft" not in text
    assert "reward  resumes from step 4" in written(printer.console)


def test_an_unknown_total_and_a_stage_that_did_not_announce_itself() -> None:
    printer = LivePrinter(terminal())
    printer(Progress(stage="compare", step=3, total=None, unit="prompt"))
    assert "3/?" in bar(printer)
    printer(Metrics(stage="other", step=1, values={"x": 1.5}))
    assert "x 1.5" in bar(printer)


def test_what_was_said_stands_above_with_markup_taken_literally() -> None:
    console = terminal()
    printer = LivePrinter(console)
    printer(Warned(stage="sft", message="[red]hot[/red] :smile: \x1b[31m"))
    printer(Note(stage="run", message="[/] a note"))
    printer(StageFinished(stage="sft", path="runs/[x]/sft", seconds=53, metrics={"loss": 1.9213}))
    printer(StageFinished(stage="reward", path="runs/x/reward", seconds=0, skipped=True))
    printer(Sample(stage="ppo", step=1, prompt="p", response="r"))
    printer(CheckpointSaved(stage="ppo", step=1, path="p"))
    assert [line.rstrip() for line in written(console).splitlines()] == [
        "! sft     [red]hot[/red] :smile: \\x1b[31m",
        "  run     [/] a note",
        "✓ sft     finished in 0:53  loss 1.92  runs/[x]/sft",
        "- reward  skipped: already complete in runs/x/reward",
    ]


def test_a_long_message_wraps_under_itself() -> None:
    console = terminal(60)
    LivePrinter(console)(Note(stage="run", message="word " * 30))
    said = written(console).splitlines()
    assert len(said) > 2
    assert all(line.startswith(" " * 10 + "word") for line in said[1:])
    assert all(cell_len(line) <= 60 for line in said)


def test_the_cursor_comes_back_after_an_exception_and_the_bar_stays() -> None:
    console = terminal(escapes=True)
    with pytest.raises(KeyboardInterrupt), LivePrinter(console) as printer:
        printer(StageStarted(stage="ppo", total_steps=40))
        printer(Progress(stage="ppo", step=25, total=40))
        raise KeyboardInterrupt
    text = written(console)
    assert text.count(HIDE) == 1
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert "25/40" in text[text.rindex("ppo") :]
    assert text[text.rindex("25/40") :].count("\n") == 1  # the shell goes on below the bar


def test_nothing_is_left_of_a_bar_that_is_over() -> None:
    console = terminal(escapes=True)
    with LivePrinter(console) as printer:
        printer(StageStarted(stage="sft", total_steps=2))
        printer(Progress(stage="sft", step=2, total=2))
        printer(StageFinished(stage="sft", path="runs/x/sft", seconds=1))
    text = written(console)
    assert SHOW in text
    assert "2/2" not in text[text.rindex("finished") :]
    assert text[text.rindex("finished") :].count("\n") == 1  # no empty line either


def test_an_ascii_terminal_gets_ascii() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    LivePrinter(console)(StageFinished(stage="sft", path="p", seconds=1))
    console.file.flush()
    assert raw.getvalue().startswith(b"* sft ")
