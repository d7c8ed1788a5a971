"""The states of a frozen reward model that a critic reads: those of full forwards, found by their ids."""

from __future__ import annotations

import pytest
import torch
from small_roles import PROMPTS, base

from rlhfctl.models import heads, kept_states, scoring
from rlhfctl.models.kept_states import ResponseStates
from rlhfctl.models.packing import Sequences, hidden_states

RESPONSES = [[4, 5], [6, 7, 8], [2], [9], [3, 3, 3], [2, 2], [5], [6, 7]]


def test_the_forward_that_scores_gives_the_states_of_the_responses() -> None:
    """Whatever the order and the batches in which the rows are scored."""
    _, model = base()
    scorer = heads.scorer_on(model, seed=2).eval()
    kept = ResponseStates(PROMPTS, RESPONSES)
    rows = [[*prompt, *response] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    with kept_states.shown_to(kept, scorer):
        scores = scoring.score_rows(scorer, rows, 1, batch_size=3)
    assert "kept_response_states" not in vars(scorer)
    for prompt, response, score in zip(PROMPTS, RESPONSES, scores, strict=True):
        sequences = Sequences.of([prompt], [response], "cpu")
        with torch.no_grad():
            whole = hidden_states(scorer.model, sequences)
        found = kept.of(prompt, response, len(response) + 1)
        assert torch.allclose(found, whole[len(prompt) - 1 :], atol=1e-5)
        assert float(scorer.score(found[-1])) == pytest.approx(score, abs=1e-5)
        assert kept.of(prompt, response, len(response)).shape == (len(response), whole.shape[1])


def test_one_row_of_ids_that_is_cut_in_two_ways_has_the_states_of_both() -> None:
    kept = ResponseStates([[2, 3, 4], [2]], [[5], [3, 4, 5]])
    sequences = Sequences.of([[2, 3, 4, 5]], [[]], "cpu")
    assert not kept.has([2], [3, 4, 5])
    hidden = torch.arange(8.0).view(4, 2)
    kept.see(sequences, hidden)
    assert kept.has([2, 3, 4], [5]) and torch.equal(kept.of([2, 3, 4], [5], 2), hidden[2:])
    assert torch.equal(kept.of([2], [3, 4, 5], 3), hidden[:3])


def test_states_of_other_rows_are_not_kept() -> None:
    kept = ResponseStates([[2]], [[3]])
    kept.see(Sequences.of([[2, 3, 4]], [[]], "cpu"), torch.zeros(3, 2))
    assert not kept.has([2], [3]) and not kept.has([2, 3], [4])
