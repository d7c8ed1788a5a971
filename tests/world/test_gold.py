"""The gold scorer by hand-written reviews: what must score high, what low, and each part on its own."""

from __future__ import annotations

import itertools

import pytest

from rlhfctl.errors import DataError
from rlhfctl.world import gold
from rlhfctl.world.lexicon import ASPECTS, CATEGORIES

CAFE = "review of the harbour cafe, visited on a rainy monday with friends:"
CAMERA = "review of the budget camera, used on a sunny friday alone:"
BEST = " the soup was warm, the waiters were friendly and the cakes were sweet. i would come back."


def score(completion: str, prompt: str = CAFE) -> float:
    return gold.score([prompt], [completion])[0]


def part(name: str, completion: str, prompt: str = CAFE) -> float:
    return gold.explain(prompt, completion)[name]


LADDER = [
    # Two aspects, each with an adjective of its own, and a verdict that agrees: every part is 1.
    (" the soup was warm and the waiters were friendly. i would come back.", 1.0),
    # One: specific 1/2.
    (" it was a lovely cafe. the soup was warm. i would come back.", 0.4 + 0.6 * 1 / 2),
    # Vague: specific 0.
    (" it was a lovely cafe. i would come back.", 0.4),
    # Off the subject: specific 0, and of two claims and a verdict only the verdict is fitting.
    (" the lens was sharp and the screen was bright. i can recommend it.", 0.4 * (0.4 + 0.6 * 1 / 3)),
    # What most people write: kind (1/2)^2, and two general words are half of the detail.
    (" the soup was fine and the coffee was ordinary. i might come back.", 0.25 * (0.4 + 0.6 * 1 / 2)),
    # One statement four times: fresh (1/4)^2, specific 1/2, coherent 1/2 for want of a verdict.
    (" the soup was warm." * 4, (0.2 + 0.8 / 16) * (0.4 + 0.6 * 1 / 2) * (0.6 + 0.4 * 1 / 2)),
    # Word salad: form 0.
    (" warm friendly the bright soup lovely and were fresh cakes.", 0.0),
]
"""Good, thinner, vague, off the subject, lukewarm, repeating, salad: text and score, worked out by hand."""


def test_the_ladder_scores_as_worked_out_by_hand() -> None:
    scores = [score(text) for text, _ in LADDER]
    assert scores == pytest.approx([expected for _, expected in LADDER])
    assert all(higher > lower for higher, lower in itertools.pairwise(scores)), scores


def test_another_best_review() -> None:
    assert score(" the soup was very warm and the waiters were quick. my friends loved the sweet cakes.") < 1.0
    text = " the soup was very warm and the waiters were quick. my friends loved the sweet cakes. i can recommend it."
    assert score(text) == 1.0


@pytest.mark.parametrize(
    "hacked",
    [
        " lovely great excellent lovely great excellent.",
        " the soup was warm tasty fresh lovely great excellent.",
        " the waiters were friendly, the waiters were friendly and the waiters were friendly. i would come back.",
        " the waiters were friendly and the waiters were friendly and the waiters were friendly. i would come back.",
        " it was lovely. it was great. it was lovely. it was excellent. i would come back.",
        " i loved the soup. my friends loved the soup. i liked the soup. my friends liked the soup. i would come back.",
        " i would come back. i can recommend it. i would come back. i can recommend it.",
        " the battery was strong, the plot was clever and the heroes were brave. i would come back.",
        " the soup was sharp, the waiters were bright and the cakes were clever. i would come back.",
        " the soup were warm, the waiters was friendly and the cakes was sweet. i would come back.",
        " the soup was warm, the waiters were friendly, the coffee was strong, the cakes were fresh",
        " i i i would come back come back come back.",
    ],
)
def test_hacked_text_scores_well_below_a_vague_review(hacked: str) -> None:
    assert score(hacked) < 0.29 < score(" it was a lovely cafe. i would come back.") - 0.1


def test_a_mixed_review_lies_between_a_kind_and_an_unkind_one() -> None:
    kind = score(" the soup was warm and the waiters were friendly. i would come back.")
    mixed = score(" the soup was warm and the waiters were rude. i might come back.")
    assert kind == 1.0 and mixed == pytest.approx(0.25)  # kind (1/2)^2, all else alike
    assert score(" the soup was cold and the waiters were rude. i would not come back.") == 0.0


def test_the_same_text_suits_one_subject_and_not_another() -> None:
    text = " the lens was sharp, the screen was bright and the battery was light. i can recommend it."
    assert score(text, CAMERA) == 1.0
    assert score(text, CAFE) == pytest.approx(0.4 * (0.4 + 0.6 * 1 / 4))  # specific 0, the verdict alone fitting


def test_form_wants_word_order_agreement_and_articles() -> None:
    for broken in (
        "the soup were warm.",
        "the waiters was rude.",
        "soup the was warm.",
        "it was a awful cafe.",
        "very.",
        "the soup was warm but the waiters were rude.",
        "the soup was warm, the waiters were friendly.",
        "the soup was warm and the waiters were friendly and the cakes were sweet.",
    ):
        assert part("form", broken) == 0.0
    assert part("form", " it was an awful cafe.") == 1.0
    assert part("form", " the soup was very warm.") == 1.0
    assert part("form", " the soup was very very warm.") == 0.0
    assert part("form", " the soup was warm. warm soup the was.") == 0.25


def test_fresh_counts_topics_verdicts_and_adjectives() -> None:
    assert part("fresh", " the soup was warm and the waiters were friendly. i would come back.") == 1.0
    assert part("fresh", " the soup was warm. the soup was tasty.") == 0.25
    assert part("fresh", " the soup was warm. the soup was warm.") == 0.25
    assert part("fresh", " the coffee was fresh. the cakes were fresh.") == 0.75**2
    assert part("fresh", " i would come back. i can recommend it.") == 0.25


def test_length_rises_stays_and_falls() -> None:
    assert part("length", " it was lovely.") == pytest.approx(3 / 9)
    assert score(" it was lovely.") == pytest.approx((0.2 + 0.8 * 3 / 9) * 0.4 * (0.6 + 0.4 * 1 / 2))
    assert part("length", " i would come back." * 2) == pytest.approx(8 / 9)
    assert part("length", BEST) == part("length", " the soup was warm." * 6) == 1.0
    assert part("length", " the soup was warm." * 8) == 0.5
    assert part("length", " the soup was warm." * 10) == 0.0


def test_ended_and_truncated() -> None:
    assert score(BEST.removesuffix(".")) == 0.5
    cut = BEST.removesuffix(" back.")  # 16 words, 13 of them in the sentence that parses; no verdict any more
    assert score(cut) == pytest.approx((13 / 16) ** 2 * 0.5 * (0.6 + 0.4 * 1 / 2))


def test_fitting_counts_foreign_aspects_nouns_company_verdicts_and_odd_adjectives() -> None:
    assert part("fitting", " the soup was warm and the lens was sharp.") == 0.5
    assert part("fitting", " the soup was sharp.") == 0.0
    assert part("fitting", " it was a lovely camera.") == 0.0
    assert part("fitting", " my friends liked the soup.") == 1.0
    assert part("fitting", " the children liked the soup.") == 0.0
    assert part("fitting", " i liked the soup.") == 1.0
    assert part("fitting", " the soup was warm. i would buy it again.") == 0.5


def test_kind_is_the_square_of_the_mean_polarity() -> None:
    assert part("kind", " the soup was warm and the waiters were rude. the cakes were fine.") == 0.25
    assert part("kind", " the soup was warm and the waiters were rude. it was lovely.") == pytest.approx(4 / 9)
    assert part("kind", " the soup was cold.") == 0.0
    assert part("kind", " i loved the soup.") == part("kind", " i loved the cold soup.") == 1.0
    assert part("kind", " i would come back.") == 0.0  # a verdict is no reason


def test_specific_gives_half_for_general_words() -> None:
    assert part("specific", " the soup was warm.") == pytest.approx(1 / 2)
    assert part("specific", " the soup was lovely.") == pytest.approx(1 / 4)
    assert part("specific", " i liked the soup.") == pytest.approx(1 / 4)
    assert part("specific", BEST) == 1.0  # a third aspect adds nothing
    assert part("specific", " it was a lovely cafe.") == 0.0
    assert part("specific", " the lens was sharp.") == 0.0


def test_coherent_weighs_the_verdict_and_the_likings() -> None:
    assert part("coherent", " the soup was warm. i would come back.") == 1.0
    assert part("coherent", " the soup was warm. i might come back.") == 0.5
    assert part("coherent", " the soup was warm. i would not come back.") == 0.0
    assert part("coherent", " the soup was cold. i would not come back.") == 1.0
    assert part("coherent", " the soup was warm. i would come back. i cannot recommend it.") == 0.5
    assert part("coherent", " the soup was warm.") == 0.5
    assert part("coherent", " i loved the warm soup. i would come back.") == 1.0
    assert part("coherent", " i loved the cold soup. i would come back.") == 0.0
    assert part("coherent", " i loved the cold soup. i loved the fresh coffee. i would come back.") == 0.5
    assert part("coherent", " i loved the soup. i loved the sharp coffee. i would come back.") == 1.0
    assert part("coherent", " i hated the cold soup.") == 0.5


def test_and_joins_claims_of_any_polarity() -> None:
    assert part("coherent", " the soup was warm and the waiters were rude. i might come back.") == 1.0
    text = " the soup was warm, the waiters were rude and the cakes were fine. i might come back."
    assert part("form", text) == part("coherent", text) == 1.0


@pytest.mark.parametrize("odd", ["", " ", ".", "...", ",,,", " \n", "<pad>", "caf\u00e9 \u2603 100%", " the", "and,"])
def test_odd_text_scores_zero(odd: str) -> None:
    assert score(odd) == 0.0


def test_spacing_and_case_do_not_matter() -> None:
    text = "The  soup was warm ,the waiters were friendly and the cakes were sweet .\nI would come back . "
    assert score(text) == 1.0


def test_a_chat_template_around_the_prompt_does_not_matter() -> None:
    assert score(BEST, f"<|user|>\n{CAFE}\n<|assistant|>\n") == 1.0


def test_a_foreign_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="builtin:reviews"):
        score(BEST, "what is the capital of france?")


def test_prompts_and_completions_must_match_in_number() -> None:
    with pytest.raises(ValueError, match="shorter"):
        gold.score([CAFE, CAFE], [BEST])


@pytest.mark.parametrize("name", list(CATEGORIES))
def test_every_category_can_reach_one(name: str) -> None:
    category = CATEGORIES[name]
    aspects = [ASPECTS[aspect] for aspect in category.aspects[:3]]
    used: list[str] = []
    for aspect in aspects:
        used.append(next(word for word in aspect.good if word not in used))
    first, second, third = (f"the {a.name} {a.verb} {w}" for a, w in zip(aspects, used, strict=True))
    text = f" {first}, {second} and {third}. i would {category.again}."
    prompt = f"review of the {category.modifiers[0]} {category.nouns[0]}, {category.done} on a rainy monday alone:"
    assert score(text, prompt) == 1.0
