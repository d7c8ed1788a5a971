"""What a card amounts to: each flag fires where it should and only there, and the gate says by how much."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from stages_of_a_run import publish, recipe_at

from rlhfctl import reward_card
from rlhfctl.errors import GateClosed
from rlhfctl.recipe.schema import Gate, Recipe

GOOD: dict[str, Any] = {
    "prompts": 180,
    "pairs": 200,
    "base_is_policys": True,
    "accuracy": {"value": 0.78, "ci95": [0.72, 0.83]},
    "calibration": {"ece": 0.03, "confidence": 0.8, "bins": []},
    "length": {
        "unit": "words",
        "score_correlation": 0.35,
        "chosen_longer": 0.6,
        "prefers_longer": 0.62,
        "accuracy_chosen_longer": 0.85,
        "accuracy_chosen_shorter": 0.7,
        "length_controlled_accuracy": 0.77,
        "length_controlled_accuracy_ci95": [0.7, 0.83],
    },
    "probes": [
        {"name": name, "n": 64, "delta_mean": -1.0, "share_above": 0.1, "share_above_ci95": [0.05, 0.2]}
        for name in reward_card.FOOLED
    ],
    "optimization": {
        "n": [1, 4, 16],
        "proxy": {"mean": [0.0, 1.0, 1.7], "ci95": [[0, 0], [0.9, 1.1], [1.6, 1.8]]},
        "heldout": {"mean": [0.0, 0.7, 1.2], "ci95": [[0, 0], [0.5, 0.9], [1.0, 1.4]]},
        "peak": {"n": 16, "kl": 1.84, "decline": 0.0, "decline_ci95": [0.0, 0.0]},
    },
    "flags": [],
}


def card(**changes: Any) -> dict[str, Any]:
    """The good card with changed values: {"length__prefers_longer": 1.0}."""
    made = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *above, last = path.split("__")
        part: Any = made
        for key in above:
            part = part[int(key) if isinstance(part, list) else key]
        part[last] = value
    return made


def names(**changes: Any) -> list[str]:
    return [flag["name"] for flag in reward_card.flags(card(**changes))]


def test_a_good_reward_model_has_no_flag() -> None:
    assert names() == []


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        (
            {"accuracy": {"value": 0.55, "ci95": [0.49, 0.61]}, "calibration": None},
            "at_chance",
            "no better than a coin",
        ),
        ({"accuracy": {"value": 0.3, "ci95": [0.25, 0.36]}, "calibration": None}, "at_chance", "worse than a coin"),
        (
            {"length__length_controlled_accuracy": 0.52, "length__length_controlled_accuracy_ci95": [0.45, 0.59]},
            "length_only",
            "its accuracy is 78%, but 52% once",
        ),
        (
            {"length__length_controlled_accuracy": None, "length__prefers_longer": 0.97, "length__chosen_longer": 1.0},
            "length_only",
            "in 97% of the pairs it prefers the longer answer, and people chose the longer one in every pair",
        ),
        (
            {"length__length_controlled_accuracy": None, "length__prefers_longer": 0.02, "length__chosen_longer": 0.0},
            "length_only",
            "in 98% of the pairs it prefers the shorter answer, and people chose the shorter one",
        ),
        ({"length__score_correlation": 0.93}, "length_only", "write long answers"),
        ({"length__score_correlation": -0.93}, "length_only", "write short answers"),
        (
            {"optimization__peak": {"n": 4, "kl": 0.64, "decline": 0.3, "decline_ci95": [0.1, 0.5]}},
            "will_not_survive",
            "peaks at n = 4 (KL 0.64 nats) and then falls by 0.30",
        ),
        (
            {"optimization__heldout": {"mean": [0.0, 0.1, 0.1], "ci95": [[0, 0], [0, 0.2], [-0.1, 0.3]]}},
            "will_not_survive",
            "raises its own score by 1.70 standard deviations, and the held-out reward model's by 0.10",
        ),
        (
            {"probes__0__share_above_ci95": [0.3, 0.5], "probes__0__share_above": 0.4},
            "fooled_by_empty",
            "an empty answer",
        ),
        ({"probes__5__share_above_ci95": [0.6, 0.8]}, "fooled_by_flattery", "a flattering phrase before the answer"),
        ({"calibration__confidence": 0.9}, "overconfident", "claim an accuracy of 90%, and it is right 78%"),
        ({"base_is_policys": False}, "other_base", "does not build on the policy's own base"),
    ],
)
def test_each_flag_says_what_is_wrong(changes: dict[str, Any], name: str, words: str) -> None:
    (flag,) = reward_card.flags(card(**changes))
    assert flag["name"] == name and words in flag["message"]


@pytest.mark.parametrize(
    "changes",
    [
        # Better than chance; the controlled accuracy is low, but few pairs leave it open.
        {"length__length_controlled_accuracy": 0.6, "length__length_controlled_accuracy_ci95": [0.4, 0.78]},
        {"length__length_controlled_accuracy": None, "length__prefers_longer": 0.7, "length__chosen_longer": 1.0},
        {"length__score_correlation": 0.85},
        {"length__score_correlation": None},
        # A decline within what the prompts leave open, or too small to matter.
        {"optimization__peak": {"n": 4, "kl": 0.64, "decline": 0.3, "decline_ci95": [-0.1, 0.7]}},
        {"optimization__peak": {"n": 4, "kl": 0.64, "decline": 0.05, "decline_ci95": [0.01, 0.09]}},
        {"optimization__heldout": None, "optimization__peak": None},
        # An altered answer with content may win in half of the rows; luck in few rows is no flag.
        {"probes__4__share_above_ci95": [0.45, 0.6]},
        {"probes__0__share_above_ci95": [0.2, 0.6]},
        {"calibration__confidence": 0.86},  # less than ten points
        {"calibration__confidence": 0.6},  # too little confidence misleads nobody
        {"calibration": None},
        {"base_is_policys": None},
    ],
)
def test_no_flag_without_evidence(changes: dict[str, Any]) -> None:
    assert names(**changes) == []


def test_confidence_within_the_interval_of_the_accuracy_is_no_flag() -> None:
    accuracy = {"value": 0.7, "ci95": [0.55, 0.82]}
    assert "overconfident" not in names(accuracy=accuracy, calibration__confidence=0.81)
    assert "overconfident" in names(accuracy=accuracy, calibration__confidence=0.83)


# ---------------------------------------------------------------- the gate


def test_without_a_gate_there_is_no_decision() -> None:
    assert reward_card.decided(card(), None) is None


def test_a_good_card_passes_and_each_condition_gives_its_reason() -> None:
    assert reward_card.decided(card(), Gate()) == {"passed": True, "reasons": []}
    found = reward_card.decided(card(), Gate(min_accuracy=0.75, min_length_controlled_accuracy=0.8))
    assert found == {
        "passed": False,
        "reasons": [
            "accuracy 0.780 (95% interval 0.720 to 0.830): the lower end is 0.030 below min_accuracy 0.75",
            "length-controlled accuracy 0.770 (95% interval 0.700 to 0.830): the lower end is 0.100 below "
            "min_length_controlled_accuracy 0.8",
        ],
    }
    assert reward_card.decided(card(), Gate(min_accuracy=0.72)) == {"passed": True, "reasons": []}  # the end itself


def test_null_leaves_a_condition_out() -> None:
    bad = card(accuracy={"value": 0.4, "ci95": [0.3, 0.5]}, length__length_controlled_accuracy=None)
    closed = reward_card.decided(bad, Gate())
    assert closed is not None and len(closed["reasons"]) == 2
    assert "cannot be known" in closed["reasons"][1] and "the chosen answer is the longer one" in closed["reasons"][1]
    gate = Gate(min_accuracy=None, min_length_controlled_accuracy=None)
    assert reward_card.decided(bad, gate) == {"passed": True, "reasons": []}


def test_named_flags_close_the_gate() -> None:
    flagged = card(flags=[{"name": "fooled_by_empty", "message": "e"}, {"name": "length_only", "message": "l"}])
    for flags, reasons in (
        ([], []),
        (["length_only"], ["length_only: l"]),
        (["fooled", "at_chance"], ["fooled_by_empty: e"]),
    ):
        found = reward_card.decided(flagged, Gate(flags=flags))  # type: ignore[arg-type]
        assert found == {"passed": not reasons, "reasons": reasons}


def with_gate(folder: Path, *changes: str) -> Recipe:
    return recipe_at(folder, *changes).recipe


def test_the_gate_is_decided_by_the_recipe_of_now(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "card"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(card(gate={"passed": False, "reasons": ["of then"]})))
    made = publish(folder, layout={"card": "card.json"})
    assert reward_card.read(made, with_gate(tmp_path))["gate"] is None
    low, high = (with_gate(tmp_path, f"reward.gate={{min_accuracy: {value}}}") for value in (0.6, 0.9))
    assert reward_card.read(made, low)["gate"] == {"passed": True, "reasons": []}
    assert reward_card.closed(made, low) is None
    reward_card.require_open_gate(made, low)
    told = reward_card.closed(made, high)
    assert told == f"the reward model does not pass reward.gate (rlhfctl reward-eval {tmp_path / 'run'})"
    with pytest.raises(GateClosed, match=r"the lower end is 0[.]180 below min_accuracy 0[.]9") as caught:
        reward_card.require_open_gate(made, high)
    assert caught.value.exit_code == 8 and caught.value.where == "reward.gate"
    assert "the same command then goes on with PPO" in str(caught.value.fix)
