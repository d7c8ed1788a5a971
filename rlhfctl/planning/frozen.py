"""Describe the frozen model of `reward.prompted_classifier` for the memory planner, without loading its weights."""

from __future__ import annotations

from dataclasses import replace

from transformers import AutoConfig

from rlhfctl.models.label_words import is_masked
from rlhfctl.planning.memory import ModelSpec
from rlhfctl.planning.ppo_memory import Frozen
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.recipe.schema import Recipe


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
    whole = replace(base, quantization=None)
    if section.model is None:
        return Frozen(whole, tokens)
    try:
        config = AutoConfig.from_pretrained(section.model, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):
        return None
    return Frozen(replace(whole, config=config), tokens, is_masked(config))
