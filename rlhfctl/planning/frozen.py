"""Describe the frozen model of `reward.prompted_classifier` for the memory planner, and estimate its memory.

No weights are loaded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from rlhfctl.models import scoring
from rlhfctl.models.label_words import is_masked
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.planning import meta_steps
from rlhfctl.planning.memory import (
    ModelSpec,
    Moment,
    Needs,
    language_model,
    weight_bytes,
    with_seen,
)
from rlhfctl.planning.meter import AllocationMeter
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.recipe.schema import Recipe

FROZEN_ROLE = "frozen model"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The frozen model that classifies with the responses, and the most tokens of an example with a response.

    `masked`: it computes the logits of all tokens, not of one.
    """

    spec: ModelSpec
    tokens: int
    masked: bool = False

    def _model(self) -> Any:
        spec = self.spec
        if not self.masked:
            return language_model(spec)
        return AutoModelForMaskedLM.from_config(spec.config, dtype=spec.dtype, attn_implementation=spec.attention)

    def weights(self) -> int:
        """Count the bytes of its weights, which are never in few bits."""
        return weight_bytes(self._model())[0]

    def classifying(self, held: Needs, batch_size: int) -> Moment:
        """Measure one batch of texts, as models/label_words.py asks it."""
        model, sequences = self._model(), meta_steps.longest(batch_size, max(1, self.tokens - 1), 1)
        meter = AllocationMeter(self.spec.config.vocab_size)
        meter.ignore_weights(model)
        with torch.no_grad(), meter:
            if self.masked:
                ids = torch.zeros((scoring.rows_at_once(model, batch_size, self.tokens), self.tokens), dtype=torch.long)
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
            else:
                meta_steps.lay_end_to_end(model)
                reader = LanguageModel(model, 0)
                reader.logits(reader.states(sequences, sequences.last()))
        return Moment("classifying with the responses", with_seen(held, FROZEN_ROLE, meter.peak))


def frozen_model(recipe: Recipe, lengths: Lengths, base: ModelSpec, response: int) -> Frozen | None:
    """Describe the model and its longest text: example, template and a response of `response` tokens.

    `base`: base*, which is the model where the recipe names none. None if the recipe has no prompted classifier, or the
    configuration of the model that it names cannot be read here.
    """
    section = recipe.reward.prompted_classifier if recipe.reward is not None else None
    if section is None:
        return None
    around = len(lengths.tokenizer(section.template)["input_ids"])
    tokens = (lengths.longest_example or max(lengths.prompts)) + around + response
    whole = dataclasses.replace(base, quantization=None)
    if section.model is None:
        return Frozen(whole, tokens)
    try:
        config = AutoConfig.from_pretrained(section.model, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):
        return None
    return Frozen(dataclasses.replace(whole, config=config), tokens, is_masked(config))
