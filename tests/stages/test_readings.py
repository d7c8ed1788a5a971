"""The readings beside the verdict: by hand, from the judges' values and the lengths of responses."""

from __future__ import annotations

import math

import pytest

from rlhfctl.rewards.episode import Episode
from rlhfctl.stages.readings import length_differences, length_of, of_judges, text_of

# Eight prompts: six wins by 1, a loss by 1, a tie.
WON = dict.fromkeys(range(6), (1.0, 0.0)) | {6: (0.0, 1.0), 7: (0.5, 0.5)}
EQUAL = [0.0] * 8


def test_the_numbers_of_a_judge_by_hand() -> None:
    found = of_judges({"gold": WON}, {"gold": EQUAL}, seed=0, samples=200)["gold"]
    # differences: six times 1, -1, 0; their mean 5/8, their sum of squares 7
    assert found["effect_size"] == pytest.approx(5 / 8 / math.sqrt((7 - 8 * (5 / 8) ** 2) / 7))
    assert found["effect_size_ci95"][0] < found["effect_size"] < found["effect_size_ci95"][1]
    # the reference: six times 0, 1, 0.5; their mean 1.5/8, their sum of squares 1.25
    assert found["reference_deviations"] == pytest.approx(5 / 8 / math.sqrt((1.25 - 8 * (1.5 / 8) ** 2) / 7))
    assert found["length_controlled_win_rate"] == pytest.approx(6.5 / 8)  # equal lengths: the plain win rate
    assert found["length_control_missing"] is None
    # the test rejects with 7 prompts where all or none are won
    assert found["power"] == pytest.approx((6 / 7) ** 7 + (1 / 7) ** 7)
    assert found["prompts_to_settle"] == 18  # 15 that are no ties (stats/test_power.py), 8/7 times
    assert found["p_adjusted"] == pytest.approx(2 * (1 + 7) / 2**7)  # one judge: nothing to correct


def test_p_is_corrected_for_the_number_of_judges() -> None:
    lost = {prompt: (-a, -b) for prompt, (a, b) in WON.items()}
    even = dict.fromkeys(range(8), (1.0, 1.0))
    found = of_judges(
        {"gold": WON, "mirror": lost, "blind": even},
        dict.fromkeys(("gold", "mirror", "blind"), EQUAL),
        seed=0,
        samples=100,
    )
    # Holm: 3 times the smallest p; the other is no smaller; 1 stays 1
    assert [found[name]["p_adjusted"] for name in ("gold", "mirror", "blind")] == [0.375, 0.375, 1.0]
    assert found["mirror"]["effect_size"] == pytest.approx(-found["gold"]["effect_size"])
    assert found["mirror"]["length_controlled_win_rate"] == pytest.approx(1.5 / 8)
    assert found["mirror"]["prompts_to_settle"] == found["gold"]["prompts_to_settle"]


def test_what_a_comparison_with_itself_cannot_tell_is_null() -> None:
    same = dict.fromkeys(range(8), (0.25, 0.25))
    found = of_judges({"gold": same}, {"gold": EQUAL}, seed=0, samples=100)["gold"]
    assert found["length_controlled_win_rate"] == 0.5
    for key in ("effect_size", "effect_size_ci95", "reference_deviations", "prompts_to_settle", "power"):
        assert found[key] is None, key


def test_a_win_rate_at_equal_length_that_cannot_be_known_says_why() -> None:
    found = of_judges({"gold": WON}, {"gold": [4.0] * 8}, seed=0, samples=100)["gold"]
    assert found["length_controlled_win_rate"] is None and found["length_controlled_win_rate_ci95"] is None
    assert "are longer" in found["length_control_missing"]


def test_a_judge_that_left_out_prompts_has_the_lengths_of_its_own() -> None:
    """Prompt 0 alone has unequal lengths: a judge that left it out is not told of it."""
    some = {prompt: pair for prompt, pair in WON.items() if prompt}
    lengths = [9.0, *EQUAL[1:]]
    found = of_judges({"all": WON, "some": some}, {"all": lengths, "some": lengths}, seed=0, samples=100)
    assert found["some"]["length_controlled_win_rate"] == pytest.approx(5.5 / 7)
    assert found["some"]["length_effect"] == 0.0
    assert "length alone separates" in found["all"]["length_control_missing"]  # the one longer response wins


def test_lengths_are_tokens_and_of_text_words() -> None:
    tokens = Episode([1], [5, 6, 7], "p", "two words", {})
    words = Episode([], [], "p", "two words", {})
    message = Episode([], [], [], [{"role": "assistant", "content": "three of them"}], {})
    assert [length_of(one) for one in (tokens, words, message)] == [3, 2, 3]
    assert text_of(message) == "three of them"
    assert length_differences([[tokens, words], [message]], [[words], [words, words]]) == [0.5, 1.0]
    assert length_differences([[tokens, words]], [[words, message]], 1) == [1.0]  # the first samples alone
