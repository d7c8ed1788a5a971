"""The memory of sft's candidates: what stays of training, the answers, and the model that scores them."""

from __future__ import annotations

from small_specs import LAYERS, WIDTH, shape

from rlhfctl.planning import memory
from rlhfctl.planning.choice_memory import SCORER_ROLE, with_candidates
from rlhfctl.planning.memory import Training
from rlhfctl.planning.meter import ACTIVATIONS, CACHE, GRADIENTS, OPTIMIZER, WEIGHTS
from rlhfctl.recipe.schema import Lora


def test_a_candidate_answers_beside_the_optimizer_and_without_gradients() -> None:
    plain = memory.sft_outlook(shape(), Training(2, 16, None), 1, 8)
    found = with_candidates(plain, shape(), 8, 12, 24, None)
    assert found.moments[:2] == plain.moments and (found.trainable, found.parameters) == (
        plain.trainable, plain.parameters
    )  # fmt: skip
    (sampling,) = found.moments[2:]
    held, trained = sampling.needs["model"], plain.moments[0].needs["model"]
    assert held[CACHE] == 8 * 2 * LAYERS * WIDTH * 4 * (12 + 24)
    assert (held[WEIGHTS], held[OPTIMIZER]) == (trained[WEIGHTS], trained[OPTIMIZER])
    assert GRADIENTS not in held


def test_a_model_that_scores_stays_loaded_in_each_step_of_training() -> None:
    plain = memory.sft_outlook(shape(), Training(2, 16, Lora(r=4)), 1, 8)
    found = with_candidates(plain, shape(), 8, 12, 24, shape())
    step, check, sampling, scoring = found.moments
    weights = step.needs[SCORER_ROLE][WEIGHTS]
    assert step.total == plain.moments[0].total + weights and check == plain.moments[1]
    assert sampling.needs[SCORER_ROLE][WEIGHTS] == weights and scoring.needs[SCORER_ROLE][ACTIVATIONS] > 0
    assert sampling.needs["adapter"][OPTIMIZER] == plain.moments[0].needs["adapter"][OPTIMIZER]


def test_more_answers_at_a_time_need_more() -> None:
    plain = memory.sft_outlook(shape(), Training(2, 16, None), 1, 8)
    few, many = (with_candidates(plain, shape(), rows, 12, 24, None).moments[-1].total for rows in (4, 16))
    assert few < many
