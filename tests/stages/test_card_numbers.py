"""The sections of the card: by hand, on scores that are made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhfctl.stages import card_numbers
from rlhfctl.stages.card_numbers import PairScores
from rlhfctl.stats.best_of_n import best_of_n, standardized
from rlhfctl.stats.paired import wilson_ci


def pairs(chosen: list[float], rejected: list[float], prompts: str | None = None, **lengths: list[float]) -> PairScores:
    """Pairs with one prompt each; `lengths`: of chosen then rejected responses, by unit."""
    count = len(chosen)
    given = lengths or {"tokens": [1.0] * 2 * count}
    sides = {unit: (np.array(values[:count]), np.array(values[count:])) for unit, values in given.items()}
    return PairScores(list(prompts or map(str, range(count))), np.array(chosen), np.array(rejected), sides)


def test_accuracy_by_prompt() -> None:
    found = card_numbers.accuracy_of(pairs([1, 1, 0, 2], [0, 0, 1, 2], "aabc"))
    assert found["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    alone = card_numbers.accuracy_of(pairs([1, 1, 0, 2, 5], [0, 0, 1, 1, 4]))
    expected = wilson_ci(4, 5)
    assert alone["ci95"] == pytest.approx([expected.low, expected.high])


def test_calibration_of_margins() -> None:
    found = card_numbers.calibration_of(pairs([3.0, -3.0], [0.0, 0.0]))
    confidence = 1 / (1 + np.exp(-3.0))
    assert found["confidence"] == pytest.approx(confidence)
    assert found["ece"] == pytest.approx(confidence - 0.5)
    assert found["bins"] == [
        {"low": pytest.approx(0.95), "high": 1.0, "n": 2, "predicted": pytest.approx(confidence), "observed": 0.5}
    ]


def test_margins() -> None:
    found = card_numbers.margins_of(pairs([1.0, 2.0, 6.0], [0.0, 0.0, 0.0]), 0)
    assert found["mean"] == 3.0 and found["std"] == pytest.approx(np.std([1, 2, 6]))
    assert found["values"] == [1.0, 2.0, 6.0]
    assert found["quantiles"]["0.5"] == 2.0 and set(found["quantiles"]) == {"0.05", "0.25", "0.5", "0.75", "0.95"}
    many = pairs(list(range(5_000)), [0.0] * 5_000)
    kept = card_numbers.margins_of(many, 3)["values"]
    assert len(kept) == card_numbers.MOST_MARGINS == len(set(kept)) and kept == sorted(kept)
    assert kept == card_numbers.margins_of(many, 3)["values"] != card_numbers.margins_of(many, 4)["values"]
    assert np.mean(kept) == pytest.approx(2_500, abs=150)  # of all pairs, not of the first ones


def test_length_is_in_the_unit_that_tells_which_response_scores_higher() -> None:
    words, tokens = [9.0, 8.0, 7.0, 1.0, 2.0, 3.0], [1.0, 9.0, 2.0, 8.0, 3.0, 7.0]
    found = card_numbers.length_of(pairs(words[:3], words[3:], tokens=tokens, words=words))
    assert found["unit"] == "words" and found["score_correlation"] == pytest.approx(1)
    assert found["chosen_longer"] == 1.0 and found["length_controlled_accuracy"] is None
    # Over all responses the scores follow words, within pairs the shorter one in tokens always wins.
    within = pairs([9.0, 1.0], [8.0, 0.0], words=[9.0, 1.0, 8.0, 1.0], tokens=[1.0, 2.0, 5.0, 6.0])
    assert card_numbers.length_of(within)["unit"] == "words"  # 1 of 1 against 0 of 2: the first of equals
    mixed = pairs([9.0, 1.0], [8.0, 0.0], words=[9.0, 1.0, 8.0, 2.0], tokens=[1.0, 2.0, 5.0, 6.0])
    found = card_numbers.length_of(mixed)
    assert found["unit"] == "tokens" and found["prefers_longer"] == 0.0 and found["score_correlation"] < 0
    against = card_numbers.length_of(pairs(words[:3], words[3:], tokens=[-v for v in words]))
    assert against["unit"] == "tokens" and against["score_correlation"] == pytest.approx(-1)
    constant = card_numbers.length_of(pairs([1.0, 2.0], [0.0, 3.0], tokens=[4.0] * 4, words=[4.0] * 4))
    assert constant["score_correlation"] is None and constant["length_controlled_accuracy"] == 0.5


def test_agreement() -> None:
    one, other = pairs([1, 1, 0, 1], [0, 0, 1, 1]), pairs([5, 0, 0, 9], [0, 5, 9, 0])
    pool = np.array([[1.0, 2.0, 3.0]])
    found = card_numbers.agreement_of(one, other, pool, -pool)
    assert found == {"pairs_same": pytest.approx((1 + 0 + 1 + 0.5) / 4), "spearman": pytest.approx(-1)}
    assert card_numbers.agreement_of(one, None, pool, None) == {"pairs_same": None, "spearman": None}


def test_probes() -> None:
    found = card_numbers.probe_of("empty", [1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 0.0, -3.0])
    interval = wilson_ci(1, 4)
    assert found == {
        "name": "empty",
        "n": 4,
        "delta_mean": -1.0,
        "share_above": 0.25,
        "share_above_ci95": [interval.low, interval.high],
    }


def curves(**pool: Any) -> dict[str, Any]:
    return card_numbers.curves_of(pool, "reward", "heldout", "gold", 0)


def test_curves_of_scorers_in_any_unit_lie_on_one_scale() -> None:
    rng = np.random.default_rng(0)
    proxy, noise = rng.normal(size=(2, 50, 16))
    found = curves(reward=proxy, heldout=100 * (0.6 * proxy + 0.8 * noise) + 7, gold=-proxy)
    assert found["n"] == [1, 2, 4, 8, 16] and found["pool"] == {"prompts": 50, "samples": 16}
    assert found["proxy"]["mean"][0] == found["heldout"]["mean"][0] == found["gold"]["mean"][0] == 0.0
    assert found["proxy"]["mean"][-1] == pytest.approx(1.77, abs=0.1)
    assert found["heldout"]["mean"][-1] == pytest.approx(0.6 * 1.77, abs=0.2)
    assert found["gold"]["mean"] == pytest.approx([-value for value in found["proxy"]["mean"]])
    for curve in (found["proxy"], found["heldout"], found["gold"]):
        assert all(low <= mean <= high for mean, (low, high) in zip(curve["mean"], curve["ci95"], strict=True))
    expected = best_of_n(proxy, standardized(proxy), found["n"], seed=0)
    assert found["proxy"]["mean"] == expected.mean
    assert found["peak"]["n"] == 16 and found["peak"]["kl"] == found["kl"][-1]


def test_disagreement_is_the_standard_deviation_of_both_at_what_was_chosen() -> None:
    # Two prompts, two samples: z-scores are +-sqrt(1/2) within each prompt.
    proxy = np.array([[0.0, 2.0], [0.0, 2.0]])
    found = curves(reward=proxy, heldout=np.array([[0.0, 2.0], [2.0, 0.0]]))
    z = np.sqrt(0.5)
    assert found["disagreement"] == pytest.approx([(0 + z) / 2, (0 + z) / 2])
    assert found["heldout"]["mean"] == pytest.approx([0.0, 0.0])
    alone = curves(reward=proxy)
    assert alone["heldout"] is alone["gold"] is alone["peak"] is alone["disagreement"] is None


def test_a_heldout_scorer_that_turns_has_its_peak_before_the_end() -> None:
    proxy = np.random.default_rng(1).normal(size=(60, 64))
    found = curves(reward=proxy, heldout=-((proxy - 1.2) ** 2))
    assert 1 < found["peak"]["n"] < 64 and found["peak"]["decline"] > 0.1 and found["peak"]["decline_ci95"][0] > 0


def test_metrics_leave_out_what_is_not_known() -> None:
    proxy = np.random.default_rng(2).normal(size=(4, 4))
    scored = pairs([1.0, 2.0, 0.0], [0.0, 1.0, 1.0], tokens=[4.0, 2.0, 3.0, 1.0, 3.0, 3.0])
    card = {
        "accuracy": card_numbers.accuracy_of(scored),
        "calibration": None,
        "length": card_numbers.length_of(scored),
        "optimization": curves(reward=proxy),
        "flags": [{}, {}],
    }
    found = card_numbers.metrics_of(card)
    assert set(found) == {
        "accuracy", "accuracy_low", "accuracy_high", "length_controlled_accuracy", "score_length_correlation",
        "proxy_gain", "flags",
    }  # fmt: skip
    assert found["accuracy"] == pytest.approx(2 / 3) and found["flags"] == 2.0
