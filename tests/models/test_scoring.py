"""Log-probabilities and scores of rows: against a loop, and in any batch."""

from __future__ import annotations

import pytest
import torch
from small_models import logits_of, words

from rlhfctl.models import scoring
from rlhfctl.models.heads import scorer_on


def test_evaluating_puts_every_mode_back() -> None:
    _, model = words()
    model.train()
    model.lm_head.eval()
    with scoring.evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert model.training and not model.lm_head.training and torch.is_grad_enabled()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_do_not_depend_on_the_batch(architecture: str) -> None:
    _, base = words(architecture=architecture)
    scorer = scorer_on(base, seed=1)
    rows = [[2], [3, 4, 5, 6, 7, 8, 9], [4, 1], [5, 6, 7], [2, 1, 1, 3]]  # ids of pad among them
    alone = [scoring.score_rows(scorer, [row], 1)[0] for row in rows]
    assert scoring.score_rows(scorer, rows, 1) == pytest.approx(alone, abs=1e-6)
    assert scoring.score_rows(scorer, rows, 1, batch_size=2) == pytest.approx(alone, abs=1e-6)
    assert len({round(score, 6) for score in alone}) == len(rows)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sequence_logprobs_by_a_loop(architecture: str) -> None:
    _, model = words(architecture=architecture)
    rows = [[2, 3], [4, 5, 6, 7, 8, 9, 2], [3, 1, 4], [2]]
    expected = []
    for row in rows:
        values = []
        for position in range(1, len(row)):
            logits = logits_of(model, row[:position])[-1].double()
            values.append(float(logits[row[position]] - torch.log(torch.exp(logits).sum())))
        expected.append(values)
    for batch_size in (16, 2):
        given = scoring.sequence_logprobs(model, rows, 1, batch_size=batch_size)
        assert [len(values) for values in given] == [1, 6, 2, 0]
        for ours, theirs in zip(given, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
