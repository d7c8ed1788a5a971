"""Estimate the memory of compare and card: models answer, and reward models judge the answers.

Both are measured as ppo is (ppo_memory.py), by running the engine's own functions on meta tensors.
"""

from __future__ import annotations

import dataclasses

import torch

from rlhfctl.generation import kl
from rlhfctl.models import scoring
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.planning import meta_steps
from rlhfctl.planning.frozen import FROZEN_ROLE, Frozen
from rlhfctl.planning.memory import (
    BASE,
    HELDOUT_ROLE,
    REWARD_ROLE,
    MemoryEstimate,
    ModelSpec,
    Moment,
    Needs,
    checked,
    counted,
    held_by,
    language_model,
    scorer_model,
    weight_bytes,
    with_seen,
)
from rlhfctl.planning.meter import WEIGHTS, AllocationMeter, on_meta_device
from rlhfctl.recipe.schema import Compare, Ppo


def compare_outlook(
    spec: ModelSpec,
    section: Compare,
    prompts: int,
    prompt: int,
    reward: ModelSpec | None,
    *,
    two_judges: bool = False,
    frozen: Frozen | None = None,
) -> MemoryEstimate:
    """Estimate the memory of compare: two policies answer, their KL is measured, and `reward` (if any) judges.

    `two_judges`: the held-out reward model, of the same size, judges too. `frozen`: a model that classifies with the
    responses.
    """
    assert section.max_new_tokens is not None
    length = section.max_new_tokens
    whole = dataclasses.replace(spec, quantization=None)  # both models are loaded in full precision
    with on_meta_device():
        sides = [LanguageModel(language_model(whole), 0) for _ in range(2)]
        held: Needs = {
            role: {WEIGHTS: weight_bytes(side.model)[0]}
            for role, side in zip(("policy", "reference"), sides, strict=True)
        }
        counts = counted(*(side.model for side in sides))
        probed = checked(
            held, "reference", sides[1].model, scoring.PROBE_ROWS, min(scoring.PROBE_TOKENS, prompt + length)
        )
        moments = [Moment("checking what was loaded", probed)]
        meter = AllocationMeter(sides[0].vocabulary)
        meter.ignore_weights(*(side.model for side in sides))
        with torch.no_grad(), meter:
            meta_steps.sample(meter, sides[0], min(section.batch_size, prompts), prompt, length)
            moments.append(Moment("sampling", with_seen(held, "policy", meter.peak)))
            meter.restart()
            meta_steps.exact_kl(sides[0], sides[1], min(kl.ROWS_AT_ONCE, prompts), prompt, length)
            moments.append(Moment("comparing distributions", with_seen(held, "policy", meter.peak)))
        if reward is not None:
            rows = min(section.batch_size, prompts * section.samples_per_prompt)
            moments += _judging(spec, reward, rows, prompt, length, two_judges=two_judges)
        if frozen is not None:
            moments.append(frozen.classifying({FROZEN_ROLE: {WEIGHTS: frozen.weights()}}, section.batch_size))
    return MemoryEstimate(tuple(moments), 0, counts[1])


def _judging(
    spec: ModelSpec, reward: ModelSpec, rows: int, prompt: int, length: int, *, two_judges: bool = False
) -> list[Moment]:
    """Measure loading a reward model alone (or two), and scoring `rows` responses of full length at once."""
    judge = scorer_model(reward)
    meta_steps.lay_end_to_end(judge)
    needs = held_by(REWARD_ROLE, judge, reward.quantization)
    if two_judges:
        needs |= {HELDOUT_ROLE: needs[REWARD_ROLE]}
    copies = {} if reward.quantization else {BASE: {WEIGHTS: weight_bytes(language_model(spec))[0]}}
    moments = [Moment("loading the judge", needs | copies)]
    sequences = meta_steps.longest(rows, prompt, length)
    meter = AllocationMeter(spec.config.vocab_size)
    meter.ignore_weights(judge)
    with torch.no_grad(), meter:
        scoring.outputs_at_end(judge, sequences)
    return [*moments, Moment("judging", with_seen(needs, REWARD_ROLE, meter.peak))]


# ---------------------------------------------------------------- card


def card_outlook(
    spec: ModelSpec, answers: int, section: Ppo, prompt: int, pair: int, reward: ModelSpec | None
) -> MemoryEstimate:
    """Estimate the memory of card: base* samples `answers` responses like PPO, then `reward` (if any) scores.

    It scores pairs, too, of up to `pair` tokens with their prompts, and answers that are twice as long.
    """
    length, rows = section.response_length, min(section.local_rollout_forward_batch_size, answers)
    with on_meta_device():
        base = LanguageModel(language_model(spec), 0)
        held = held_by(BASE, base.model, spec.quantization)
        probed = checked(held, BASE, base.model, scoring.PROBE_ROWS, min(scoring.PROBE_TOKENS, prompt + length))
        _, parameters = counted(base.model)
        meter = AllocationMeter(base.vocabulary)
        meter.ignore_weights(base.model)
        with torch.no_grad(), meter:
            meta_steps.sample(meter, base, rows, prompt, length)
        moments = [
            Moment("checking what was loaded", probed),
            Moment("sampling the pool", with_seen(held, BASE, meter.peak)),
        ]
        if reward is not None:
            moments += _judging(spec, reward, rows, max(prompt, 2 * pair - length), length)
    return MemoryEstimate(tuple(moments), 0, parameters)
