"""The shift of a reward in its scalar head: set by hand, and kept by every way of saving and loading a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from small_models import words
from small_roles import ROLE_LORA, stir_adapters

from rlhfctl.models import adapters, build, head_bias, heads, loading, merging, scoring, tokenizing
from rlhfctl.models.adapters import add_lora, save_adapter
from rlhfctl.models.heads import AdapterScorer, scorer_on
from rlhfctl.models.language_model import LanguageModel

ROWS = [[2, 3, 4], [5, 6], [7, 3, 3, 2]]


def scores(model: Any) -> list[float]:
    return scoring.score_rows(model, ROWS, 1)


def test_each_score_is_scaled_and_shifted() -> None:
    model = scorer_on(words()[1], seed=0)
    before = scores(model)
    head_bias.transform(model, 2.0, -0.5)
    assert scores(model) == pytest.approx([2 * score - 0.5 for score in before], abs=1e-5)
    head_bias.transform(model, 0.5, 1.0)  # on top of the first: 0.5 (2 s - 0.5) + 1
    assert scores(model) == pytest.approx([score + 0.75 for score in before], abs=1e-5)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        assert model(input_ids=ids).logits.item() == pytest.approx(scores(model)[0], abs=1e-5)


def test_a_whole_model_keeps_its_shift_also_in_other_number_formats_and_files(tmp_path: Path) -> None:
    tokenizer, base = words()
    model = scorer_on(base, seed=0)
    head_bias.transform(model, 3.0, 1.25)
    expected = scores(model)
    build.save_model(model, tokenizer, tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="2KB")
    tokenizing.save_tokenizer(tokenizer, tmp_path / "several")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    for folder in ("one", "several"):
        loaded = loading.load_scorer(str(tmp_path / folder), dtype=torch.float32)
        assert scores(loaded) == pytest.approx(expected, abs=1e-6)
    half = loading.load_scorer(str(tmp_path / "one"), dtype=torch.bfloat16)
    assert half.score.bias.dtype == half.score.weight.dtype and half.score.bias.item() == 1.25
    assert scores(half) == pytest.approx(expected, abs=0.1)


def test_an_adapter_keeps_its_shift_merged_and_on_the_policys_model(tmp_path: Path) -> None:
    tokenizer, base = words()
    model = add_lora(scorer_on(base, seed=0), ROLE_LORA, TaskType.SEQ_CLS, seed=0)
    stir_adapters(model, seed=7)
    plain = scores(model)
    head_bias.transform(model, 2.0, 0.75)
    expected = scores(model)
    assert expected == pytest.approx([2 * score + 0.75 for score in plain], abs=1e-5)
    save_adapter(model, tmp_path / "adapter", base="base", head=True)

    fresh = merging.merged(merging.load_adapter(scorer_on(words()[1], seed=1), tmp_path / "adapter"))
    assert scores(fresh) == pytest.approx(expected, abs=1e-5)

    policy = add_lora(words()[1], ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    head = heads.load_scorer_adapter(policy, adapters.REWARD, tmp_path / "adapter")
    shared = AdapterScorer(LanguageModel(policy, tokenizer.pad_token_id, adapters.REWARD), head)
    assert scores(shared) == pytest.approx(expected, abs=1e-5)

    heads.save_scorer_adapter(policy, adapters.REWARD, head, tmp_path / "again", "base")
    again = merging.merged(merging.load_adapter(scorer_on(words()[1], seed=2), tmp_path / "again"))
    assert scores(again) == pytest.approx(expected, abs=1e-5)


def test_models_without_a_shift_have_heads_without_a_bias(tmp_path: Path) -> None:
    tokenizer, base = words()
    build.save_model(scorer_on(base, seed=0), tokenizer, tmp_path / "model")
    assert head_bias.bias_of_model(tmp_path / "model") is None
    assert loading.load_scorer(str(tmp_path / "model"), dtype=torch.float32).score.bias is None
    assert head_bias.bias_of_adapter(tmp_path / "nothing") is None
