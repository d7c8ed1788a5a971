"""The gate before PPO, measured: shuffled labels are stopped, length alone is flagged as such, a good reward passes.

Marked slow: nine reward models, about six minutes on one core. The figures go to LOG.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli

from rlhfctl.world import reviews

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).resolve().parent / "gate.yaml"
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def start(seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The supervised start of a seed, which the runs with other labels share."""
    run = tmp_path_factory.mktemp(f"seed-{seed}") / "start"
    result = run_cli("run", RECIPE, "--run-dir", run, "--until", "sft", *seeded(seed))
    assert result.returncode == 0, result.stderr
    return run


def seeded(seed: int) -> tuple[str, ...]:
    return ("--set", f"seed={seed}", "--set", f"data_seed={seed}")


def examined(
    start: Path, name: str, seed: int, *changes: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run up to the gate with changed labels, on the shared start; return the command's result and the card."""
    run = start.parent / name
    run.mkdir()
    shutil.copytree(start / "sft", run / "sft")
    sets = [part for change in changes for part in ("--set", change)]
    result = run_cli("run", RECIPE, "--run-dir", run, "--until", "card", *seeded(seed), *sets)
    card: dict[str, Any] = json.loads((run / "card" / "card.json").read_text(encoding="utf-8"))
    print(figures(name, seed, card))
    return result, card


def figures(name: str, seed: int, card: dict[str, Any]) -> str:
    """A row of the table in LOG.md."""
    length, curves = card["length"], card["optimization"]
    accuracy, (low, high) = card["accuracy"]["value"], card["accuracy"]["ci95"]
    flags = ", ".join(flag["name"] for flag in card["flags"])
    numbers = f"{accuracy:.3f} [{low:.3f}, {high:.3f}] | {length['length_controlled_accuracy']} | "
    numbers += f"{length['score_correlation']:+.2f} {length['unit']} | {curves['proxy']['mean'][-1]:+.2f} | "
    numbers += f"{curves['gold']['mean'][-1]:+.2f} | {card['calibration']['ece']:.3f}"
    return f"| {name} | {seed} | {numbers} | {flags} | {'passed' if card['gate']['passed'] else 'closed'} |"


def names(card: dict[str, Any]) -> set[str]:
    return {flag["name"] for flag in card["flags"]}


def longer_chosen(seed: int, file: Path, wrong: float = 0.0) -> Path:
    """Pairs of the built-in task of which the longer review was chosen; a share of the labels is turned round."""
    rows = []
    for index, row in enumerate(reviews.preferences(2_200, seed, 0.0)):
        longer, shorter = sorted((row["chosen"], row["rejected"]), key=lambda text: -len(text.split()))
        if len(longer.split()) > len(shorter.split()):
            sides = (shorter, longer) if wrong and index % round(1 / wrong) == 0 else (longer, shorter)
            rows.append({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:1_500]), encoding="utf-8")
    return file


def test_a_good_reward_model_passes(start: Path, seed: int) -> None:
    result, card = examined(start, "good", seed)
    assert result.returncode == 0, result.stderr
    assert card["gate"] == {"passed": True, "reasons": []}
    assert names(card).isdisjoint({"at_chance", "length_only", "overconfident", "other_base", "will_not_survive"})
    assert card["accuracy"]["value"] > 0.7


def test_shuffled_labels_are_stopped(start: Path, seed: int) -> None:
    result, card = examined(start, "shuffled", seed, "data.preferences.label_noise=0.5")
    assert result.returncode == 8, result.stderr
    assert "below min_accuracy 0.55" in result.stderr and "at_chance" in names(card)
    assert not (start.parent / "shuffled" / "ppo").exists()


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_labels_that_follow_length_alone_are_flagged_as_such(start: Path, seed: int, wrong: float) -> None:
    file = longer_chosen(seed, start.parent / f"length-{wrong}.jsonl", wrong)
    changed = f"data.preferences={{source: {file}, heldout: 0.3}}"
    result, card = examined(start, f"length-{wrong}", seed, changed)
    assert "length_only" in names(card) and "at_chance" not in names(card)
    assert result.returncode == 8 and "length_only: " in result.stderr
