"""Lengths of rows: those of the tokens that the stages read, and which pairs each reward model trains on."""

from __future__ import annotations

from pathlib import Path

from rlhfctl.data.load import check_all
from rlhfctl.data.splits import split_in_half
from rlhfctl.data.types import PreferenceSplit, examples
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.recipe.load import load_recipe


def test_pairs_of_the_held_out_reward_model_come_last(tiny_recipe: Path) -> None:
    for setting, others in (("reward.heldout=false", 0), ("reward.heldout=true", 24)):
        recipe = load_recipe(tiny_recipe, [setting]).recipe
        rows = check_all(recipe.data, recipe.data_seed)
        lengths = Lengths.of(recipe, rows)
        assert (len(lengths.chosen), lengths.other_half) == (48, frozenset(range(48 - others, 48)))
        assert (len(lengths.prompts), lengths.eval, len(lengths.test), len(lengths.sft)) == (42, 6, 12, 96)
    split = rows["preferences"].split
    assert isinstance(split, PreferenceSplit)
    ends = lengths.tokenizer.encode(lengths.tokenizer.eos_token)
    text = [pair["prompt"] + pair["chosen"] for half in split_in_half(split.train, 0) for pair in examples(half)]
    counted = [len(lengths.tokenizer.encode(one, add_special_tokens=False)) + len(ends) for one in text]
    assert max(abs(a - b) for a, b in zip(lengths.chosen, counted, strict=True)) <= 2  # a bos, a merge at the seam
