"""The generator: determinism, shape of the rows, the mixture's quality, the damage, and the labels' noise."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from rlhfctl.errors import DataError
from rlhfctl.world import gold
from rlhfctl.world.lexicon import (
    ADJECTIVES,
    ASPECTS,
    CATEGORIES,
    GENERAL,
    INTENSIFIER,
    LIKINGS,
    MIDDLING,
    prompt_at,
    prompt_count,
    to_text,
    to_words,
    verdicts,
)
from rlhfctl.world.reviews import DAMAGES, MIN_GAP, demonstrations, preferences, prompts

Rows = list[dict[str, str]]
Words = list[str]
Floats = npt.NDArray[np.float64]

PAIRS = 1000
CAFE = "review of the harbour cafe, visited on a rainy monday with friends:"


@pytest.fixture(scope="module")
def reviews() -> Rows:
    return demonstrations(2000, 0)


@pytest.fixture(scope="module")
def clean() -> Rows:
    """Pairs whose labels are right."""
    return preferences(PAIRS, 0, label_noise=0.0)


@pytest.fixture(scope="module")
def random() -> Rows:
    """The same pairs, labelled by the toss of a coin."""
    return preferences(PAIRS, 0, label_noise=0.5)


def part(name: str, rows: Rows, side: str) -> Floats:
    """One part of the gold score, or `score`, a row each."""
    return np.asarray([gold.explain(row["prompt"], row[side])[name] for row in rows])


def test_the_seed_decides_every_row() -> None:
    for make in (demonstrations, preferences, prompts):
        assert make(40, 3) == make(40, 3)
        assert make(40, 3) != make(40, 4)
        assert make(40, 3)[:15] == make(15, 3)


def test_another_process_writes_the_same_rows() -> None:
    code = (
        "import json; from rlhfctl.world.reviews import demonstrations, preferences, prompts; "
        "print(json.dumps([demonstrations(30, 0), preferences(30, 0), prompts(30, 0)]))"
    )
    rows = [demonstrations(30, 0), preferences(30, 0), prompts(30, 0)]
    for order in "12":  # two orders in which a set's words may come
        environment = {**os.environ, "PYTHONHASHSEED": order}
        assert json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment)) == rows


def test_the_sets_use_separate_streams() -> None:
    asked = [[row["prompt"] for row in make(30, 0)] for make in (demonstrations, preferences, prompts)]
    assert asked[0] != asked[1] != asked[2] != asked[0]


def test_prompts_are_distinct_up_to_the_last_one() -> None:
    count = prompt_count() // 4  # the others are the demonstrations' and the preferences'
    assert count >= 3000
    rows = [row["prompt"] for row in prompts(count, 0)]
    assert len(set(rows)) == len(rows) == count
    for wrong in (count + 1, -1):
        with pytest.raises(DataError, match="distinct prompts"):
            prompts(wrong, 0)
    with pytest.raises(IndexError):
        prompt_at(prompt_count())


def test_rows_are_plain_text_that_joins_cleanly(reviews: Rows, clean: Rows) -> None:
    rows = [(row["prompt"], row["completion"]) for row in reviews[:300]]
    rows += [(row["prompt"], row[side]) for row in clean[:300] for side in ("chosen", "rejected")]
    for prompt, completion in rows:
        assert completion.startswith(" ") and completion == completion.rstrip()
        assert "  " not in completion and prompt not in completion
        assert set(completion) <= set("abcdefghijklmnopqrstuvwxyz., ")
        assert prompt.isascii() and prompt == prompt.lower().strip() and prompt.endswith(":")
        assert to_text(to_words(completion)) == completion


def test_demonstrations_are_well_formed_and_ended(reviews: Rows) -> None:
    assert (part("form", reviews, "completion") == 1.0).all()
    assert (part("ended", reviews, "completion") == 1.0).all()
    assert all(row["completion"].endswith(".") for row in reviews)
    lengths = np.asarray([len(to_words(row["completion"])) for row in reviews])
    assert np.median(lengths) <= 16 and lengths.max() <= 28  # response_length 28 of the quickstart leaves room


def test_demonstrations_are_of_mixed_quality(reviews: Rows) -> None:
    scores = part("score", reviews, "completion")
    assert 0.20 <= scores.mean() <= 0.27
    assert scores.std() > 0.2


def test_what_people_prefer_is_rarely_written(reviews: Rows) -> None:
    """No temperature finds it: the likeliest mood and the likeliest words are mediocre, the best texts are a tail."""
    scores = part("score", reviews, "completion")
    assert 0.01 < (scores > 0.9).mean() < 0.06
    words = [to_words(row["completion"]) for row in reviews]
    adjectives = Counter(word for text in words for word in text if word in ADJECTIVES)
    assert {word for word, _ in adjectives.most_common(2)} == set(GENERAL[MIDDLING])
    lukewarm = " the soup was fine and the coffee was ordinary. i might come back."
    assert gold.score([CAFE], [lukewarm])[0] < scores.mean()


def test_no_prompt_is_in_two_data_sets() -> None:
    """Whatever the seeds: a prompt of the verdict is in no demonstration and in no pair."""
    sets = [
        {row["prompt"] for row in demonstrations(6000, 1)} | {row["prompt"] for row in demonstrations(2000, 2)},
        {row["prompt"] for row in preferences(1500, 3)},
        {row["prompt"] for row in prompts(3360, 4)},
    ]
    assert all(not one & other for one, other in itertools.combinations(sets, 2))


def test_every_part_of_the_score_but_form_and_end_varies(reviews: Rows) -> None:
    for name in gold.FLOORS.keys() - {"form", "ended"}:
        assert part(name, reviews, "completion").std() > 0.02, name


def test_the_world_is_small_and_no_word_of_it_idle(reviews: Rows) -> None:
    seen = {word for row in reviews for word in to_words(row["prompt"] + row["completion"])}
    closings = {word for category in CATEGORIES.values() for words in verdicts(category) for word in words}
    modifiers = {word for category in CATEGORIES.values() for word in category.modifiers}
    assert len(seen) <= 170
    assert ADJECTIVES | set(ASPECTS) | set(LIKINGS) | {INTENSIFIER} | closings | modifiers <= seen
    assert "and" in seen and "but" not in seen


def test_completions_depend_on_the_prompt(reviews: Rows) -> None:
    asked, texts = [row["prompt"] for row in reviews], [row["completion"] for row in reviews]
    assert np.mean(gold.score(asked, texts[1:] + texts[:1])) < np.mean(gold.score(asked, texts)) / 2


def test_chosen_and_rejected_differ(clean: Rows, random: Rows) -> None:
    assert all(row["chosen"] != row["rejected"] for row in [*clean, *random])


def test_without_noise_gold_picks_the_chosen(clean: Rows) -> None:
    assert (part("score", clean, "chosen") - part("score", clean, "rejected")).min() >= MIN_GAP


@pytest.mark.parametrize(("noise", "rows"), [(0.1, PAIRS), (0.5, PAIRS), (1.0, 100)])
def test_noise_flips_that_share_of_labels_and_changes_no_pair(
    clean: Rows, random: Rows, noise: float, rows: int
) -> None:
    noisy = random if noise == 0.5 else preferences(rows, 0, label_noise=noise)
    flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in clean[:rows]]
    assert all(row in (right, wrong) for row, right, wrong in zip(noisy, clean[:rows], flipped, strict=True))
    rate = np.mean([row == wrong for row, wrong in zip(noisy, flipped, strict=True)])
    assert abs(rate - noise) <= 4 * (noise * (1 - noise) / rows) ** 0.5  # four standard errors


def probe_accuracy(rows: Rows) -> float:
    """How often a linear reward, fitted on three quarters of the pairs, picks the chosen of the last quarter.

    It sees counts of words and marks, length and how the text ends; least squares, a little shrunk, of w in
    w . (features(chosen) - features(rejected)) = 1.
    """
    vocabulary = sorted({word for row in rows for side in ("chosen", "rejected") for word in to_words(row[side])})
    column = {word: index for index, word in enumerate([*vocabulary, "LENGTH", "ENDED"])}

    def features(text: str) -> Floats:
        found = np.zeros(len(column))
        for word in to_words(text):
            found[column[word]] += 1.0
        found[column["LENGTH"]], found[column["ENDED"]] = len(text) / 100, text.endswith(".")
        return found

    x = np.stack([features(row["chosen"]) - features(row["rejected"]) for row in rows])
    fitted, held_out = x[: len(x) * 3 // 4], x[len(x) * 3 // 4 :]
    weights = np.linalg.solve(fitted.T @ fitted + np.eye(len(column)), fitted.sum(axis=0))
    return float((held_out @ weights > 0).mean())


def test_at_half_noise_nothing_tells_the_label(clean: Rows, random: Rows) -> None:
    right = (part("score", random, "chosen") > part("score", random, "rejected")).mean()
    assert abs(right - 0.5) <= 4 * 0.5 / PAIRS**0.5  # four standard errors
    assert probe_accuracy(clean) > 0.7  # the probe can learn, where there is something to learn
    assert abs(probe_accuracy(random) - 0.5) <= 4 * 0.5 / (PAIRS / 4) ** 0.5


@pytest.mark.parametrize("noise", [-0.1, 1.1])
def test_noise_is_a_probability(noise: float) -> None:
    with pytest.raises(DataError, match="probability"):
        preferences(1, 0, label_noise=noise)


def test_pairs_show_damage_that_demonstrations_lack(clean: Rows) -> None:
    assert 0.3 < (part("form", clean, "rejected") < 1.0).mean() < 0.6
    assert (part("ended", clean, "rejected") == 0.0).mean() > 0.05
    assert (part("fresh", clean, "rejected") < 0.5).mean() > 0.1
    assert 0.02 < (part("form", clean, "chosen") < 1.0).mean() < 0.2


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.lstrip("_"))
def test_damage_hurts(reviews: Rows, damage: Callable[[np.random.Generator, Words], Words]) -> None:
    rng = np.random.default_rng(0)
    damaged = [{**row, "completion": to_text(damage(rng, to_words(row["completion"])))} for row in reviews[:300]]
    before, after = part("score", reviews[:300], "completion"), part("score", damaged, "completion")
    assert after.mean() < 0.8 * before.mean()


def test_a_repeated_aspect_replaces_another_or_else_a_sentence_comes_twice() -> None:
    damage = {damage.__name__: damage for damage in DAMAGES}["_repeat_aspect"]
    two = to_words(" the soup was warm and the waiters were friendly. it was fine.")
    assert {to_text(damage(np.random.default_rng(seed), two)) for seed in range(20)} == {
        " the soup was warm and the soup were friendly. it was fine.",
        " the waiters was warm and the waiters were friendly. it was fine.",
    }
    one = to_words(" it was fine. i loved the soup.")
    assert {to_text(damage(np.random.default_rng(seed), one)) for seed in range(20)} == {
        " it was fine. it was fine. i loved the soup.",
        " it was fine. i loved the soup. i loved the soup.",
    }


def test_reading_prompts_does_not_load_the_gold_scorer() -> None:
    code = (
        "import sys; from rlhfctl.world import reviews; reviews.prompts(5, 0); reviews.demonstrations(5, 0); "
        "sys.exit('rlhfctl.world.gold' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
