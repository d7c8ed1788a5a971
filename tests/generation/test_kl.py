"""The exact KL between two policies, against a loop over positions and vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import TaskType
from small_policies import PROMPTS, tiny

from rlhfctl.generation import kl
from rlhfctl.models import adapters, build
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Lora


def by_loop(policy: Any, reference: Any, prompt: list[int], response: list[int], temperature: float) -> float:
    total = 0.0
    for end in range(len(response)):
        ids = torch.tensor([prompt + response[:end]])
        with torch.no_grad():
            p, q = (
                torch.softmax(m(input_ids=ids).logits[0, -1].double() / temperature, -1) for m in (policy, reference)
            )
        for token in range(len(p)):
            if p[token] > 0:
                total += float(p[token] * (p[token].log() - q[token].log()))
    return total


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    _, policy = tiny(1)
    _, reference = tiny(2)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    for temperature in (1.0, 0.5):
        expected = [
            by_loop(policy, reference, prompt, response, temperature)
            for prompt, response in zip(PROMPTS, responses, strict=True)
        ]
        given = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=temperature, batch_size=4)
        assert given == pytest.approx(expected, rel=1e-4)
        assert min(given) > 1e-3
        alone = [
            kl.exact_kl(policy, reference, [p], [r], 1, temperature=temperature)[0]
            for p, r in zip(PROMPTS, responses, strict=True)
        ]
        assert given == pytest.approx(alone, rel=1e-5)
    assert given[0] == pytest.approx(given[3])  # the same pair in another place of the batch


def test_kl_never_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, policy = tiny(1)
    _, reference = tiny(2)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    given = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
    shapes: list[torch.Size] = []
    policy.lm_head.register_forward_hook(lambda module, inputs, logits: shapes.append(logits.shape))
    for places in (5, 0):  # so many positions at a time; or not even one, and then one is taken
        monkeypatch.setattr(kl, "KL_ELEMENTS", places * len(tokenizer))
        shapes.clear()
        again = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
        assert again == pytest.approx(given, rel=1e-5)
        assert max(shape[0] for shape in shapes) == max(1, places)


def test_kl_of_a_model_from_itself_is_zero() -> None:
    _, policy = tiny()
    responses = [[3, 4, 0]] * len(PROMPTS)
    assert kl.exact_kl(policy, build.copy_frozen(policy), PROMPTS, responses, 1, temperature=0.7) == [0.0] * 6


def test_the_reference_may_be_the_policy_without_its_adapter() -> None:
    _, base = tiny()
    separate = build.copy_frozen(base)
    policy = adapters.add_lora(base, Lora(r=2, lora_alpha=8), TaskType.CAUSAL_LM, seed=0)
    reference = LanguageModel(policy, 1)
    responses = [[3, 4, 0], [2, 2, 6, 5, 4], [5], [3, 4, 0], [0], [6, 0]]
    assert kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0) == [0.0] * 6
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    policy.train()
    given = kl.exact_kl(policy, reference, PROMPTS, responses, 1, temperature=1.0)
    assert given == pytest.approx(kl.exact_kl(policy, separate, PROMPTS, responses, 1, temperature=1.0), rel=1e-4)
    assert min(given) > 1e-6
    assert policy.training and all(p.requires_grad for n, p in policy.named_parameters() if "lora_" in n)
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():  # the adapter is on again
        assert not torch.allclose(policy(input_ids=ids).logits, separate(input_ids=ids).logits, atol=1e-4)
