"""A language model as trunk and head gives the numbers of its own forward, in pieces and in any batch."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from peft import TaskType
from small_roles import COMMON_ARCHITECTURES, ROLE_LORA, ROWS, base, stir_adapters
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhfctl.errors import EngineError
from rlhfctl.models import language_model, tensors
from rlhfctl.models.adapters import (
    POLICY,
    add_lora,
)
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences, packed
from rlhfctl.planning.meter import AllocationMeter, on_meta_device
from rlhfctl.training.rl.roles import Critic, Roles


def test_log_probabilities_in_pieces_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head that is trained, and with a frozen one, whose gradient is taken in the forward pass."""
    hidden = torch.randn(11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9, 0, 2, 3])
    weights = torch.linspace(-1, 1, 11, dtype=torch.float64)
    tokenizer, model = base(dtype=torch.float64)
    pad, head = tokenizer.pad_token_id, model.lm_head
    policy = LanguageModel(model, pad)

    def given(frozen: bool, with_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        head.weight.requires_grad_(not frozen)
        head.weight.grad = None
        part = hidden.clone().requires_grad_()
        logprobs, entropies = policy.token_logprobs(part, tokens, 0.7, with_entropy=with_entropy)
        loss = (logprobs * weights).sum()
        (loss if entropies is None else loss + 0.3 * entropies.sum()).backward()
        assert part.grad is not None and (entropies is not None) is with_entropy
        return logprobs.detach(), entropies, part.grad, head.weight.grad

    def naive(with_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        weight = head.weight.detach().clone().requires_grad_()
        part = hidden.clone().requires_grad_()
        logits = (part @ weight.T) / 0.7
        masked = torch.cat([logits[:, :pad], logits[:, pad : pad + 1] * 0 - 1e9, logits[:, pad + 1 :]], 1)
        logp = masked.log_softmax(-1)
        chosen, entropies = logp.gather(-1, tokens[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)
        ((chosen * weights).sum() + with_entropy * 0.3 * entropies.sum()).backward()
        assert part.grad is not None
        return chosen.detach(), entropies if with_entropy else None, part.grad, weight.grad

    for frozen in (False, True):
        for with_entropy in (False, True):
            expected = naive(with_entropy)
            monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", 1 << 24)
            one = given(frozen, with_entropy)
            monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", 3 * policy.vocabulary)
            pieces = given(frozen, with_entropy)
            assert (one[3] is None) is frozen and (pieces[3] is None) is frozen
            for index, wanted in enumerate(expected):
                for found in (one[index], pieces[index]):
                    if found is not None and wanted is not None:
                        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_in_16_bits_a_frozen_head_is_exact_but_for_rounding() -> None:
    """Log-probabilities are those of plain logits; the states' gradient differs from float32's by rounding alone."""
    generator = torch.Generator().manual_seed(0)
    hidden, tokens = torch.randn(40, 16, generator=generator), torch.randint(2, 10, (40,), generator=generator)
    tokenizer, model = base()
    model.lm_head.weight.requires_grad_(False)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, dtype, direct in (
        ("exact", torch.float32, True),
        ("direct", torch.bfloat16, True),
        ("plain", torch.bfloat16, False),
    ):
        policy = LanguageModel(copy.deepcopy(model).to(dtype), tokenizer.pad_token_id)
        assert policy._plain_frozen_head(hidden.to(dtype))
        part = hidden.bfloat16().to(dtype).requires_grad_()
        if direct:
            logprobs, _ = policy.token_logprobs(part, tokens, 0.7)
        else:
            logits = policy.logits(part) / 0.7
            logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
        assert logprobs.dtype == torch.float32
        logprobs.sum().backward()
        assert part.grad is not None and part.grad.dtype == dtype
        found[name] = logprobs.detach(), part.grad.float()
    torch.testing.assert_close(found["direct"][0], found["plain"][0], atol=1e-6, rtol=0)
    off = {name: float((gradient - found["exact"][1]).norm()) for name, (_, gradient) in found.items()}
    rounding = torch.finfo(torch.bfloat16).eps * float(found["exact"][1].norm())
    assert 0 < off["direct"] < rounding and 0 < off["plain"] < rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_log_probabilities_never_hold_the_whole_vocabulary_for_all_tokens(dtype: torch.dtype, frozen: bool) -> None:
    """Bytes that forward and backward allocate with a vocabulary of 128 thousand, beside those of whole logits."""
    tokens, width, vocabulary = 4096, 8, 128_000
    with on_meta_device():
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=1, num_key_value_heads=1,
            )
        ).to(dtype)  # fmt: skip
        model.lm_head.weight.requires_grad_(not frozen)
        policy, meter = LanguageModel(model, 0), AllocationMeter(vocabulary)
        meter.ignore_weights(model)
        meter.wastes = 0.0
        with meter:
            hidden = torch.zeros((tokens, width), dtype=dtype, requires_grad=True)
            policy.token_logprobs(hidden, torch.zeros(tokens, dtype=torch.long), 0.7)[0].sum().backward()
    piece, whole = 4 * tensors.LOGITS_AT_ONCE, 4 * tokens * vocabulary
    assert meter.peak.total() < 5 * piece < whole / 6


@pytest.mark.parametrize("architecture", COMMON_ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_trunk_and_head_are_the_model_or_it_is_said(architecture: str, tied: bool) -> None:
    tokenizer, model = base(architecture, tie_word_embeddings=tied)
    LanguageModel(model, tokenizer.pad_token_id).check_head(ROWS)
    peft_model = add_lora(model, ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    stir_adapters(peft_model)
    LanguageModel(peft_model, tokenizer.pad_token_id, POLICY).check_head(ROWS)

    def scaled(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = output.logits * 1.01
        return output

    tampered = LanguageModel(peft_model, tokenizer.pad_token_id, POLICY)
    watching = peft_model.register_forward_hook(scaled)
    with pytest.raises(EngineError, match="computes its logits in a way that this engine does not know"):
        tampered.check_head(ROWS)
    watching.remove()
    tampered.check_head(ROWS)
    tampered.head = copy.deepcopy(tampered.head)
    with torch.no_grad():
        tampered.head.weight[3] *= 1.5
    with pytest.raises(EngineError):
        tampered.check_head(ROWS)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("architecture", COMMON_ARCHITECTURES)
def test_a_row_alone_gives_what_it_gives_beside_longer_rows(architecture: str, packing: bool) -> None:
    tokenizer, model = base(architecture)
    pad = tokenizer.pad_token_id
    policy = LanguageModel(model, pad)
    head = nn.Linear(16, 1, bias=False)
    critic = Critic(AdapterScorer(policy, head), shares_policy=True)
    prompts, responses = [[2, 3], [4, 5, 6], [7]], [[8, 0], [9], [3, 4, 5]]
    long = [2, 3, 4, 5, 6, 7, 8, 9] * 4

    def of(p: list[list[int]], r: list[list[int]]) -> tuple[Tensor, Tensor]:
        sequences = Sequences.of(p, r, torch.device("cpu"))
        with torch.no_grad():
            states = policy.states(sequences)
            logprobs, _ = policy.token_logprobs(states[sequences.before_tokens()], sequences.tokens(), 0.8)
            return logprobs, critic.values(critic.states(sequences)[sequences.states(4)])

    with packed(policy.trunk) if packing else contextlib.nullcontext():
        together = of([*prompts, long], [*responses, [2, 3]])
    singles = [of([p], [r]) for p, r in zip(prompts, responses, strict=True)]
    for index in (0, 1):
        expected = torch.cat([single[index] for single in singles])
        torch.testing.assert_close(together[index][: len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert float(expected.std()) > 1e-2


@pytest.mark.parametrize("trains_trunk", [True, False])
def test_the_heads_gradients_reach_the_trunk_only_where_they_may(trains_trunk: bool) -> None:
    tokenizer, model = base()
    policy_model = add_lora(model, ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    stir_adapters(policy_model)
    policy = LanguageModel(policy_model, tokenizer.pad_token_id, POLICY)
    head = nn.Linear(16, 1, bias=False)
    critic = Critic(AdapterScorer(policy, head), shares_policy=True, trains_trunk=trains_trunk)
    everyone = Roles(policy, LanguageModel(policy_model, tokenizer.pad_token_id, None), critic)
    trained = everyone.prepare()
    assert sum(f".{POLICY}." in name for name in trained) == 28 and "critic.score.weight" in trained
    ids, _ = tensors.pad_right(ROWS, tokenizer.pad_token_id, torch.device("cpu"))
    critic.values(policy.hidden(ids)[:, -1]).square().sum().backward()
    reached = [name for name, parameter in trained.items() if parameter.grad is not None and parameter.grad.any()]
    assert head.weight.grad is not None and head.weight.grad.any()
    assert len(reached) == (29 if trains_trunk else 1)
