"""The dpo stage: which ids it learns from, and what it measures on the held-out pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from small_stage import context, small_model, small_tokenizer

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.types import PreferenceGroup
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Event, Metrics
from rlhfctl.stages import dpo

TOKENIZER = small_tokenizer()


def group(prompt: Any, *responses: Any, pairs: tuple[tuple[int, int], ...] = ((0, 1),)) -> PreferenceGroup:
    return PreferenceGroup(prompt, responses, tuple(range(len(responses))), pairs)


def test_the_prompts_ids_are_those_that_the_comparison_generates_from() -> None:
    encoder = Encoder(TOKENIZER)
    (pair,) = dpo.pairs_of(group("ab a", "b", "aa"), encoder)
    assert pair["prompt_ids"] == encoder.prompt("ab a")
    eos = TOKENIZER.eos_token_id
    assert pair["chosen_ids"] == [*TOKENIZER("b", add_special_tokens=False)["input_ids"], eos]
    assert pair["rejected_ids"] == [*TOKENIZER("aa", add_special_tokens=False)["input_ids"], eos]


def test_a_ranked_group_gives_all_of_its_pairs() -> None:
    pairs = list(dpo.pairs_of(group("a", "b", "aa", "bb", pairs=((0, 1), (0, 2), (1, 2))), Encoder(TOKENIZER)))
    sides = [(len(pair["chosen_ids"]), pair["rejected_ids"]) for pair in pairs]
    assert [length for length, _ in sides] == [2, 2, 3] and len({tuple(pair["prompt_ids"]) for pair in pairs}) == 1


def test_pairs_beyond_the_limit_are_dropped_with_a_count_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    ctx = context(tmp_path, "dpo", [])
    groups = [group("a", "b", "a"), group("a", "b" * 9, "a")]
    kept = dpo._encode(groups, Encoder(TOKENIZER), 6, "max_length=6", ctx)
    assert len(kept) == 1
    assert ctx.notes == ["warning: 1 of 2 pairs are longer than max_length=6 tokens and are dropped"]
    with pytest.raises(DataError, match="no pair fits into max_length=2 tokens") as caught:
        dpo._encode(groups, Encoder(TOKENIZER), 2, "max_length=2", ctx)
    assert caught.value.where == "dpo.trainer.max_length"


def test_policy_and_reference_that_differ_stop_the_stage(tmp_path: Path) -> None:
    ctx = context(tmp_path, "dpo", [])
    ctx.parents["base"] = type("Base", (), {"name": "runs/a/sft"})()  # type: ignore[index]
    same, other = small_model(TOKENIZER, seed=1), small_model(TOKENIZER, seed=2)
    prompts = [Encoder(TOKENIZER).prompt("ab")]
    dpo._check_step_zero(same, small_model(TOKENIZER, seed=1), prompts, TOKENIZER.pad_token_id, ctx)
    with pytest.raises(HandoffError, match=r"differ by .* before the first step"):
        dpo._check_step_zero(same, other, prompts, TOKENIZER.pad_token_id, ctx)


def test_held_out_pairs_are_measured_by_the_implicit_reward(tmp_path: Path) -> None:
    """Margins by hand, beta 0.5: (1 - 0) / 2, (-1 - 2) / 2, 0; a tie counts as wrong."""
    events: list[Event] = []
    before = [(-1.0, -2.0), (-3.0, -3.0), (-1.0, -1.0)]
    after = [(0.0, -2.0), (-4.0, -1.0), (-1.0, -1.0)]
    found = dpo._heldout(before, after, 0.5, context(tmp_path, "dpo", events))
    assert found["heldout_accuracy"] == pytest.approx(1 / 3) and found["heldout_margin"] == pytest.approx(-1 / 3)
    assert found["heldout_accuracy_low"] < 1 / 3 < found["heldout_accuracy_high"]
    assert isinstance(events[0], Metrics) and events[0].split == "heldout"


def test_log_probabilities_are_of_the_response_alone() -> None:
    model = small_model(TOKENIZER)
    (pair,) = dpo.pairs_of(group("ab", "b", "aab"), Encoder(TOKENIZER))
    (chosen, rejected), = dpo._logprobs(model, [pair], TOKENIZER.pad_token_id)  # fmt: skip
    assert 0 > chosen > 2 * rejected and math.isfinite(rejected)
    longer = {**pair, "prompt_ids": pair["prompt_ids"] + pair["chosen_ids"][:1], "chosen_ids": pair["chosen_ids"][1:]}
    (less, _), = dpo._logprobs(model, [longer], TOKENIZER.pad_token_id)  # fmt: skip
    assert less > chosen  # one token moved into the prompt
