"""Steps on meta tensors: the longest sequences have the shapes of real ones, and sampling fills its cache."""

from __future__ import annotations

import torch
from small_specs import LAYERS, WIDTH, shape

from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences
from rlhfctl.planning import meta_steps
from rlhfctl.planning.memory import language_model
from rlhfctl.planning.meter import CACHE, AllocationMeter, on_meta_device

ROWS, PROMPT, LENGTH = 4, 6, 10


def test_the_longest_sequences_have_the_shapes_of_real_ones() -> None:
    def parts(made: Sequences) -> dict[str, torch.Tensor]:
        named = {name: getattr(made, name) for name in ("ids", "starts", "prompt_lengths", "lengths", "positions")}
        return named | {"chosen": made.before_tokens(), "targets": made.tokens()}

    real = parts(Sequences.of([[0] * PROMPT] * ROWS, [[0] * LENGTH] * ROWS, "cpu"))
    with on_meta_device():
        made = parts(meta_steps.longest(ROWS, PROMPT, LENGTH))
    assert {name: one.shape for name, one in made.items()} == {name: one.shape for name, one in real.items()}
    assert all(one.is_meta for one in made.values()) and len(made["chosen"]) == ROWS * LENGTH


def test_sampling_holds_keys_and_values_of_prompt_and_response() -> None:
    with on_meta_device():
        policy = LanguageModel(language_model(shape()), 0)
        meter = AllocationMeter(policy.vocabulary)
        meter.ignore_weights(policy.model)
        with torch.no_grad(), meter:
            meta_steps.sample(meter, policy, ROWS, PROMPT, LENGTH)
    assert meter.peak[CACHE] == ROWS * 2 * LAYERS * WIDTH * 4 * (PROMPT + LENGTH)
