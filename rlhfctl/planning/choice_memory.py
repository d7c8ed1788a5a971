"""Estimate the memory in which sft tries a candidate (`sft.choose`): it samples and is scored while training is held.

No weights are loaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rlhfctl.models import scoring
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.planning import meta_steps
from rlhfctl.planning.memory import (
    MemoryEstimate,
    ModelSpec,
    Moment,
    Needs,
    held_by,
    language_model,
    scorer_model,
    with_seen,
)
from rlhfctl.planning.meter import OPTIMIZER, WEIGHTS, AllocationMeter, on_meta_device

SCORER_ROLE = "scorer"
_STAYS = (WEIGHTS, OPTIMIZER)  # between two steps of training: gradients and activations are gone


def with_candidates(
    outlook: MemoryEstimate, spec: ModelSpec, rows: int, prompt: int, length: int, scorer: ModelSpec | None
) -> MemoryEstimate:
    """Add to the estimate of sft that a candidate answers `rows` prompts at a time, and that a model scores them.

    `prompt`, `length`: tokens of the longest prompt and of a response. `scorer`: the model that scores, which stays
    loaded (None: no model does).
    """
    step = outlook.moments[0]
    stays = {role: {kind: kinds[kind] for kind in _STAYS if kind in kinds} for role, kinds in step.needs.items()}
    role = next(iter(stays))
    with on_meta_device(), torch.no_grad():
        policy = LanguageModel(language_model(spec), 0)
        meter = AllocationMeter(policy.vocabulary)
        meter.ignore_weights(policy.model)
        with meter:
            meta_steps.sample(meter, policy, rows, prompt, length)
        sampling, beside, found = with_seen(stays, role, meter.peak), Needs(), list[Moment]()
        if scorer is not None:
            judge = scorer_model(scorer)
            meta_steps.lay_end_to_end(judge)
            beside = held_by(SCORER_ROLE, judge, scorer.quantization)
            sequences = meta_steps.longest(rows, prompt, length)
            meter = AllocationMeter(policy.vocabulary)
            meter.ignore_weights(judge)
            with meter:
                scoring.outputs_at_end(judge, sequences)
            found.append(Moment("scoring a candidate", stays | with_seen(beside, SCORER_ROLE, meter.peak)))
    found.insert(0, Moment("sampling a candidate", sampling | beside))
    trained = [replace(one, needs={**one.needs, **beside}) if one.trains else one for one in outlook.moments]
    return MemoryEstimate((*trained, *found), outlook.trainable, outlook.parameters)
