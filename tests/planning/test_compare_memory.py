"""The memory of compare and card: two models that answer, then those that judge."""

from __future__ import annotations

from small_specs import LAYERS, WIDTH, shape

from rlhfctl.planning import compare_memory
from rlhfctl.planning.memory import BASE
from rlhfctl.planning.meter import CACHE
from rlhfctl.recipe.schema import Compare, Ppo


def test_compare_holds_two_models_and_then_the_judge() -> None:
    section = Compare(max_new_tokens=16)
    judged = compare_memory.compare_outlook(shape(), section, 8, 12, shape())
    assert [moment.what for moment in judged.moments] == [
        "checking what was loaded",
        "sampling",
        "comparing distributions",
        "loading the judge",
        "judging",
    ]
    assert len(compare_memory.compare_outlook(shape(), section, 8, 12, None).moments) == 3
    assert judged.trainable == 0


def test_a_smaller_batch_size_of_compare_is_judged_in_less_memory() -> None:
    def judging(size: int) -> int:
        estimate = compare_memory.compare_outlook(shape(), Compare(max_new_tokens=16, batch_size=size), 64, 12, shape())
        return next(moment for moment in estimate.moments if moment.what == "judging").total

    small, usual, large = judging(8), judging(64), judging(256)
    assert small < usual < large  # 64 prompts with several responses each: 256 at a time


def test_the_card_samples_and_then_scores_pairs_and_answers_twice_as_long() -> None:
    section = Ppo(response_length=24, local_rollout_forward_batch_size=8)
    found = compare_memory.card_outlook(shape(), 100, section, 12, 30, shape())
    names = ["checking what was loaded", "sampling the pool", "loading the judge", "judging"]
    assert [moment.what for moment in found.moments] == names
    assert found.moments[1].needs[BASE][CACHE] == 8 * 2 * LAYERS * WIDTH * 4 * (12 + 24)
    assert len(compare_memory.card_outlook(shape(), 100, section, 12, 30, None).moments) == 2  # a function
    longer = compare_memory.card_outlook(shape(), 100, section, 12, 60, shape())
    assert longer.moments[3].total > found.moments[3].total
    assert longer.moments[1].total == found.moments[1].total
    few = compare_memory.card_outlook(shape(), 4, section, 12, 30, shape())
    assert few.moments[1].needs[BASE][CACHE] * 2 == found.moments[1].needs[BASE][CACHE]
    assert found.trainable == 0


def test_two_reward_models_as_judges_are_both_held() -> None:
    def judging(*, two_judges: bool) -> int:
        estimate = compare_memory.compare_outlook(
            shape(), Compare(max_new_tokens=16), 8, 12, shape(), two_judges=two_judges
        )
        return next(moment for moment in estimate.moments if moment.what == "loading the judge").total

    assert judging(two_judges=True) > 1.3 * judging(two_judges=False)
