"""Loading models: a folder that is not what it is taken for is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import FLOAT, words

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import build, loading, scoring
from rlhfctl.models.heads import scorer_on


def test_a_folder_without_a_head_is_no_scorer(tmp_path: Path) -> None:
    tokenizer, base = words()
    build.save_model(base, tokenizer, tmp_path / "causal")
    with pytest.raises(HandoffError, match=r"lacks the weights score\.weight"):
        loading.load_scorer(str(tmp_path / "causal"), dtype=FLOAT)
    scorer = scorer_on(base, seed=0)
    build.save_model(scorer, tokenizer, tmp_path / "scorer")
    rows, pad = [[2, 3, 4], [5]], tokenizer.pad_token_id
    loaded = loading.load_scorer(str(tmp_path / "scorer"), dtype=FLOAT)
    assert scoring.score_rows(loaded, rows, pad) == pytest.approx(scoring.score_rows(scorer, rows, pad), abs=1e-6)
    with pytest.raises(RlhfctlError, match=r"holds no config\.json"):
        loading.load_scorer(str(tmp_path), dtype=FLOAT)


def test_a_head_in_16_bits_is_widened_and_a_wide_one_is_left_alone() -> None:
    _, base = words()
    half = scorer_on(base, seed=0).bfloat16()
    loading.float32_head(half)
    assert half.score.weight.dtype == torch.float32 and half.config.num_labels == 1
    assert half.score(torch.ones(1, half.score.in_features, dtype=torch.bfloat16)).dtype == torch.float32
    double = scorer_on(base, seed=0).double()
    assert loading.float32_head(double).score.weight.dtype == torch.float64


def test_names_of_number_formats_are_those_of_torch() -> None:
    assert [loading.torch_dtype(name) for name in ("float32", "bfloat16", "float16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
