"""`reward-eval`: a card for a run whose recipe asks for none, made once, and a table of 80 characters."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here
from rich.console import Console

from rlhfctl.artifacts import load_artifact
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Event, StageFinished
from rlhfctl.tools.reward_eval import evaluate, print_card


@pytest.fixture
def run(carded_run: Path, tmp_path: Path) -> Path:
    """A copy of a run with a card, to change."""
    shutil.copytree(carded_run, tmp_path / "run")
    return tmp_path / "run"


def shown(card: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_card(card, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def finished(run: Path, **sizes: int) -> bool:
    """Evaluate, and tell whether the stage was skipped."""
    events: list[Event] = []
    evaluate(run, listen=events.append, **sizes)
    (end,) = [event for event in events if isinstance(event, StageFinished)]
    return end.skipped


def test_the_recipe_stays_and_the_card_is_made_once(run: Path, tiny_run: Path) -> None:
    assert (run / "recipe.yaml").read_bytes() == (tiny_run / "recipe.yaml").read_bytes()
    before = load_artifact(run / "card").fingerprint
    assert finished(run) is True  # of the sizes that it has, though the defaults are others
    assert finished(run, samples=8) is True
    assert load_artifact(run / "card").fingerprint == before
    assert finished(run, prompts=2, samples=3) is False
    card = json.loads((run / "card" / "card.json").read_text())
    assert card["optimization"]["pool"] == {"prompts": 2, "samples": 3} and card["optimization"]["n"] == [1, 2, 3]
    assert len(list((run / "superseded").glob("card-*/card.json"))) == 1  # the one before is kept
    assert (run / "recipe.yaml").read_bytes() == (tiny_run / "recipe.yaml").read_bytes()
    stages = [event["stages"] for event in read_events(run / "events.jsonl") if event["event"] == "run_started"]
    assert stages[-1] == ["card"]


def test_other_stages_are_not_touched_by_a_card(run: Path) -> None:
    again = run_here("run", run / "recipe.yaml", "--run-dir", run, cwd=run.parent)
    assert again.returncode == 0, again.stderr
    ends = [event for event in read_events(run / "events.jsonl") if event["event"] == "finished"][-4:]
    assert [(end["stage"], end["skipped"]) for end in ends] == [
        ("sft", True), ("reward", True), ("ppo", True), ("compare", True),
    ]  # fmt: skip


def test_the_gate_stops_before_ppo_and_another_threshold_opens_it_without_new_work(run: Path) -> None:
    shutil.rmtree(run / "ppo")
    card = ("--set", "reward.card={prompts: 6, samples: 8}")
    command = ("run", run / "recipe.yaml", "--run-dir", run, *card)
    closed = run_here(*command, "--set", "reward.gate={min_accuracy: 0.9}", cwd=run.parent)
    assert closed.returncode == 8, closed.stderr
    assert closed.stderr.startswith("stopped: ") and "reward.gate: the reward model does not pass" in closed.stderr
    assert "below min_accuracy 0.9" in closed.stderr and "fix: `rlhfctl reward-eval" in closed.stderr
    assert not (run / "ppo").exists() and load_artifact(run / "card")
    assert f"report: {run / 'report.html'}" in closed.stdout and "gate stopped" in (run / "report.html").read_text()
    assert list(read_events(run / "events.jsonl"))[-1]["event"] == "run_stopped"
    told = run_here("reward-eval", run, cwd=run.parent)  # the gate is the recipe's, which the command above wrote
    assert "reward.gate: closed, run stops before PPO" in told.stdout
    assert "reward.gate: closed" in run_here("show", run, cwd=run.parent).stdout
    low = "reward.gate={min_accuracy: 0.0, min_length_controlled_accuracy: null, flags: []}"
    opened = run_here(*command, "--set", low, "--until", "ppo", cwd=run.parent)
    assert opened.returncode == 0, opened.stderr
    ends = [event for event in read_events(run / "events.jsonl") if event["event"] == "finished"][-4:]
    assert [(end["stage"], end["skipped"]) for end in ends] == [
        ("sft", True), ("reward", True), ("card", True), ("ppo", False),
    ]  # fmt: skip


def test_a_run_that_cannot_be_examined_says_why(run: Path, tmp_path: Path) -> None:
    def heard(event: Event) -> None:
        raise AssertionError("nothing must begin")

    with pytest.raises(RlhfctlError, match="there is no run here"):
        evaluate(tmp_path, listen=heard)
    text = (run / "recipe.yaml").read_text()
    begin = text.index("reward:\n")
    (run / "recipe.yaml").write_text(text[:begin])
    with pytest.raises(RlhfctlError, match="the run has no reward to examine"):
        evaluate(run, listen=heard)
    (run / "recipe.yaml").write_text(text.replace("seeds: null", "seeds: {values: [0, 3]}"))
    with pytest.raises(RlhfctlError, match="one reward model per seed") as caught:
        evaluate(run, listen=heard)
    assert caught.value.fix == f"name one: {run / 'seed-0'}"
    function = text[:begin] + 'reward:\n  function: "scores:words"\n'
    pairs = text.index("  preferences:\n"), text.index("  prompts:\n")
    (run / "recipe.yaml").write_text(function[: pairs[0]] + function[pairs[1] :])
    with pytest.raises(RlhfctlError, match="the run has no pairs to examine its reward on"):
        evaluate(run, listen=heard)


# ---------------------------------------------------------------- the table


def test_the_command_prints_a_table_or_the_json(run: Path) -> None:
    out = (run / "card.txt").read_text(encoding="utf-8")
    card = json.loads((run / "card" / "card.json").read_text(encoding="utf-8"))
    assert f"accuracy                     {card['accuracy']['value']:.0%} [" in out
    for words in ("length-controlled accuracy", "calibration error", "no text at all", "best of n by it", "gold"):
        assert words in out
    for flag in card["flags"]:
        assert flag["name"] in out
    printed = run_here("reward-eval", run, "--json", cwd=run.parent)
    assert json.loads(printed.stdout) == card


def test_every_line_fits_80_characters_and_nothing_is_missing(carded_run: Path) -> None:
    card = json.loads((carded_run / "card" / "card.json").read_text(encoding="utf-8"))
    curves = card["optimization"]
    curves["heldout"] = {"mean": [0.0, 0.3, 0.4, -0.1], "ci95": [[0, 0]] * 4}
    curves["disagreement"] = [0.1, 0.2, 0.3, 0.4]
    curves["peak"] = {"n": 4, "kl": 0.64, "decline": 0.5, "decline_ci95": [0.1, 0.9]}
    card["agreement"]["heldout"] = {"pairs_same": 0.7, "spearman": None}
    card["gate"] = {"passed": False, "reasons": ["accuracy 0.5 is too low " * 8]}
    for width in (80, 120):
        text = shown(card, width)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        words = " ".join(text.split())
        for part in ("peak of held-out", "-0.10", "0.40", "70%", "reward.gate: closed", "accuracy 0.5 is too low"):
            assert part in words, part
    card |= {"calibration": None, "flags": [], "gate": {"passed": True, "reasons": []}, "base_is_policys": None}
    card["length"] |= {"length_controlled_accuracy": None, "score_correlation": None}
    text = shown(card)
    assert "calibration" not in text and "no flags" in text and "reward.gate: passed" in text and "unknown" in text
