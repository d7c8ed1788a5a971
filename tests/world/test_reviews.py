"""The generator: determinism, shape of the rows, the mixture's quality, and the labels' noise."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from rlhfctl.errors import DataError
from rlhfctl.world import gold
from rlhfctl.world.lexicon import prompt_at, prompt_count, to_text, to_words
from rlhfctl.world.reviews import MIN_GAP, demonstrations, preferences, prompts


def gaps(rows: list[dict[str, str]]) -> npt.NDArray[np.float64]:
    """Gold of chosen minus gold of rejected, a row each."""
    asked = [row["prompt"] for row in rows]
    chosen = gold.score(asked, [row["chosen"] for row in rows])
    rejected = gold.score(asked, [row["rejected"] for row in rows])
    return np.subtract(chosen, rejected, dtype=np.float64)


def test_the_seed_decides_every_row() -> None:
    for make in (demonstrations, preferences, prompts):
        assert make(40, 3) == make(40, 3)
        assert make(40, 3) != make(40, 4)
        assert make(40, 3)[:15] == make(15, 3)


def test_the_sets_use_separate_streams() -> None:
    asked = [[row["prompt"] for row in make(30, 0)] for make in (demonstrations, preferences, prompts)]
    assert asked[0] != asked[1] != asked[2] != asked[0]


def test_prompts_are_distinct_up_to_the_last_one() -> None:
    assert prompt_count() >= 5000
    rows = [row["prompt"] for row in prompts(prompt_count(), 0)]
    assert len(set(rows)) == prompt_count()
    for wrong in (prompt_count() + 1, -1):
        with pytest.raises(DataError, match="distinct prompts"):
            prompts(wrong, 0)
    with pytest.raises(IndexError):
        prompt_at(prompt_count())


def test_rows_are_plain_text_that_joins_cleanly() -> None:
    rows = [(row["prompt"], row["completion"]) for row in demonstrations(300, 0)]
    rows += [(row["prompt"], row[side]) for row in preferences(300, 0) for side in ("chosen", "rejected")]
    for prompt, completion in rows:
        assert completion.startswith(" ") and completion == completion.rstrip()
        assert "  " not in completion and prompt not in completion
        assert set(completion) <= set("abcdefghijklmnopqrstuvwxyz., ")
        assert prompt.isascii() and prompt == prompt.lower().strip() and prompt.endswith(":")
        assert to_text(to_words(completion)) == completion


def test_demonstrations_are_well_formed_and_of_mixed_quality() -> None:
    rows = demonstrations(2000, 0)
    asked, texts = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    scores = np.asarray(gold.score(asked, texts))
    assert 0.40 <= scores.mean() <= 0.50
    assert scores.std() > 0.2
    assert (scores < 0.15).mean() > 0.05 and (scores > 0.9).mean() > 0.03
    assert all(gold.explain(prompt, text)["form"] == 1.0 for prompt, text in zip(asked, texts, strict=True))
    lengths = np.asarray([len(to_words(text)) for text in texts])
    assert np.median(lengths) <= 20 and lengths.max() <= 30


def test_the_world_is_small() -> None:
    rows = demonstrations(4000, 0)
    assert len({word for row in rows for word in to_words(row["prompt"] + row["completion"])}) <= 250


def test_completions_depend_on_the_prompt() -> None:
    rows = demonstrations(1000, 0)
    asked, texts = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    right = np.mean(gold.score(asked, texts))
    shifted = np.mean(gold.score(asked, texts[1:] + texts[:1]))
    assert shifted < right / 2


def test_without_noise_gold_picks_the_chosen() -> None:
    assert gaps(preferences(500, 0, label_noise=0.0)).min() >= MIN_GAP


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_noise_flips_that_share_of_labels(noise: float) -> None:
    rows = 2000
    flipped = float((gaps(preferences(rows, 0, label_noise=noise)) < 0).mean())
    assert abs(flipped - noise) <= 4 * (noise * (1 - noise) / rows) ** 0.5  # four standard errors


def test_noise_changes_labels_and_not_pairs() -> None:
    clean, noisy = preferences(200, 0, 0.0), preferences(200, 0, 0.5)
    assert [{row["chosen"], row["rejected"]} for row in clean] == [{row["chosen"], row["rejected"]} for row in noisy]
    assert clean != noisy


def test_at_half_noise_no_text_feature_tells_the_label() -> None:
    rows = preferences(2000, 1, label_noise=0.5)
    difference = np.asarray([len(row["chosen"]) - len(row["rejected"]) for row in rows])
    assert abs((difference[difference != 0] > 0).mean() - 0.5) < 0.05
    assert abs((gaps(rows) > 0).mean() - 0.5) < 0.05


@pytest.mark.parametrize("noise", [-0.1, 1.1])
def test_noise_is_a_probability(noise: float) -> None:
    with pytest.raises(DataError, match="probability"):
        preferences(1, 0, label_noise=noise)


def test_pairs_show_damage_that_demonstrations_lack() -> None:
    rows = preferences(1000, 0, label_noise=0.0)
    rejected = [gold.explain(row["prompt"], row["rejected"]) for row in rows]
    assert 0.1 < np.mean([parts["form"] < 1.0 for parts in rejected]) < 0.6
    assert np.mean([parts["ended"] == 0.0 for parts in rejected]) > 0.02
    assert np.mean([parts["fresh"] < 0.5 for parts in rejected]) > 0.02


def test_reading_prompts_does_not_load_the_gold_scorer() -> None:
    code = (
        "import sys; from rlhfctl.world import reviews; reviews.prompts(5, 0); reviews.demonstrations(5, 0); "
        "sys.exit('rlhfctl.world.gold' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
