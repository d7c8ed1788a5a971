"""Recorded outputs: a reloaded model gives the same, other weights are found, and broken numbers are not recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_stage import small_model, small_tokenizer
from transformers import PreTrainedTokenizerBase

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import heads, scoring
from rlhfctl.recipe.schema import Model
from rlhfctl.stages import probes

TEXTS = ["ab a", "bb", "baaab"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return small_tokenizer()


@pytest.fixture
def rows(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (Model(path="a"), "float32"),
        (Model(path="a", dtype="bfloat16"), "bfloat16"),
        (Model(path="a", dtype="bfloat16", quantization="4bit"), "4bit"),
    ],
)
def test_quantization_limits_the_precision_before_the_number_format(section: Model, expected: str) -> None:
    assert probes.precision(section) == expected
    assert expected in probes.LOGPROB_TOLERANCE and expected in probes.SCORE_TOLERANCE


def test_the_same_weights_give_the_recorded_log_probabilities(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]
) -> None:
    model, pad = small_model(tokenizer), tokenizer.pad_token_id
    probes.write_probes(tmp_path, rows, scoring.sequence_logprobs(model, rows, pad), "logprobs")
    kept = json.loads((tmp_path / probes.PROBES).read_text())
    assert kept["rows"] == rows and [len(row) for row in kept["logprobs"]] == [len(row) - 1 for row in rows]
    assert probes.check_logprobs(small_model(tokenizer), pad, tmp_path / probes.PROBES, "float32") < 1e-5
    with torch.no_grad():
        model.lm_head.weight[rows[0][0]] += 0.1
    with pytest.raises(HandoffError, match="does not give the log-probabilities it was saved with: off by") as caught:
        probes.check_logprobs(model, pad, tmp_path / probes.PROBES, "float32")
    assert caught.value.where == str(tmp_path)
    assert 0 < probes.check_logprobs(model, pad, tmp_path / probes.PROBES, "4bit") < 2.0  # a wider tolerance


def test_the_tolerance_of_scores_grows_with_the_largest_score(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]
) -> None:
    scorer, pad = heads.scorer_on(small_model(tokenizer), seed=0), tokenizer.pad_token_id
    scores = scoring.score_rows(scorer, rows, pad)
    path = tmp_path / probes.PROBES
    probes.write_probes(tmp_path, rows, scores, "scores", examples=["x", "y", "z"])
    assert json.loads(path.read_text())["examples"] == ["x", "y", "z"]
    assert probes.check_scores(scorer, pad, path, "float32") < 1e-5
    probes.write_probes(tmp_path, rows, [score + 0.5 for score in scores], "scores")
    with pytest.raises(HandoffError, match="does not give the scores it was saved with"):
        probes.check_scores(scorer, pad, path, "float32")
    with torch.no_grad():
        scorer.score.weight.mul_(1e5)
    large = scoring.score_rows(scorer, rows, pad)
    gap = 0.5e-5 * max(abs(score) for score in large)
    probes.write_probes(tmp_path, rows, [score + gap for score in large], "scores")
    assert probes.check_scores(scorer, pad, path, "float32") == pytest.approx(gap, rel=0.2)


@pytest.mark.parametrize(("stage", "key"), [("ppo", "ppo.learning_rate"), ("sft", "sft.trainer.learning_rate")])
def test_outputs_that_are_not_finite_are_not_recorded(stage: str, key: str, tmp_path: Path) -> None:
    (tmp_path / stage).mkdir()
    with pytest.raises(RlhfctlError, match="training diverged: the log-probabilities") as caught:
        probes.write_probes(tmp_path / stage, [[4, 5]], [[float("nan")]], "logprobs")
    assert caught.value.where == key and not (tmp_path / stage / probes.PROBES).exists()
