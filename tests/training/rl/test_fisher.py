"""Products with the Fisher matrix: against the numerical Hessian of the KL, and against the matrix by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from peft import TaskType
from small_roles import ROLE_LORA, ROWS, base, stir_adapters
from torch import Tensor, nn

from rlhfctl.generation.kl import kl_terms
from rlhfctl.models.adapters import POLICY, add_lora
from rlhfctl.models.fused import fused
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences, packed
from rlhfctl.training.rl.fisher import fisher_product

TEMPERATURE = 0.7
RESPONSES = [[2, 3, 0], [4], [5, 6, 7, 8], [9, 0]]


def policy_of(architecture: str, lora: bool) -> tuple[LanguageModel, dict[str, nn.Parameter]]:
    """A policy in float64 and its trained weights by name; few of them, so that every column can be tried."""
    tokenizer, model = base(architecture, torch.float64, hidden_size=8, num_hidden_layers=1)
    if lora:
        model = add_lora(model, ROLE_LORA, TaskType.CAUSAL_LM, seed=0).to(torch.float64)
        stir_adapters(model)
    policy = LanguageModel(model, tokenizer.pad_token_id, POLICY if lora else None)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if policy.switch is not None:
        policy.switch.trains(list(weights.values()))
    return policy, weights


@contextlib.contextmanager
def as_in_the_loop(policy: LanguageModel) -> Iterator[None]:
    with fused(policy.model), packed(policy.trunk):
        yield


def sequences() -> Sequences:
    return Sequences.of(ROWS, RESPONSES, "cpu")


def numerical_hessian_times(policy: LanguageModel, weights: dict[str, nn.Parameter], v: dict[str, Tensor]) -> Tensor:
    """The change of the KL's gradient along v, by central differences."""
    rows = sequences()

    def logits() -> Tensor:
        return policy.logits(policy.states(rows, rows.before_tokens())) / TEMPERATURE

    old = logits().detach()

    def gradient(by: float) -> Tensor:
        with torch.no_grad():
            for name, weight in weights.items():
                weight += by * v[name]
        found = torch.autograd.grad(kl_terms(old, logits()).sum(), list(weights.values()), allow_unused=True)
        with torch.no_grad():
            for name, weight in weights.items():
                weight -= by * v[name]
        return flat([torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), found, strict=True)])

    step = 1e-4
    return (gradient(step) - gradient(-step)) / (2 * step)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([one.reshape(-1) for one in tensors])


@pytest.mark.parametrize(
    ("architecture", "lora"), [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False), ("qwen2", True)]
)
def test_a_product_is_the_hessian_of_the_kl_times_the_vector(architecture: str, lora: bool) -> None:
    policy, weights = policy_of(architecture, lora)
    generator = torch.Generator().manual_seed(3)
    v = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in weights.items()}
    size = float(flat(list(v.values())).norm())
    v = {name: one / size for name, one in v.items()}
    with as_in_the_loop(policy):
        found = flat(list(fisher_product(policy, sequences(), weights, v, TEMPERATURE).values()))
        expected = numerical_hessian_times(policy, weights, v)
    # transformers' RMSNorm computes in float32, which bounds what a difference can show.
    assert float(expected.abs().max()) > 1e-2
    assert torch.allclose(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_all_products_together_are_the_symmetric_matrix_by_hand() -> None:
    """F = sum over tokens and vocabulary of p(v) grad log p(v) grad log p(v)', from one backward pass each."""
    policy, weights = policy_of("gpt2", True)
    chosen = {name: weight for name, weight in weights.items() if "c_attn" in name or "mlp.c_proj" in name}
    rows = sequences()
    logprobs = torch.log_softmax(policy.logits(policy.states(rows, rows.before_tokens())) / TEMPERATURE, -1)
    size = sum(weight.numel() for weight in chosen.values())
    by_hand = torch.zeros(size, size, dtype=torch.float64)
    for row in logprobs:
        for one in row:
            if float(one.detach()) > -50:  # not pad
                g = flat(list(torch.autograd.grad(one, list(chosen.values()), retain_graph=True)))
                by_hand += one.exp().detach() * torch.outer(g, g)
    columns = []
    with as_in_the_loop(policy):
        for column in range(0, size, 17):
            unit = torch.zeros(size, dtype=torch.float64)
            unit[column] = 1.0
            parts = unit.split([weight.numel() for weight in chosen.values()])
            v = {n: part.view_as(w) for (n, w), part in zip(chosen.items(), parts, strict=True)}
            columns.append(flat(list(fisher_product(policy, rows, chosen, v, TEMPERATURE).values())))
    assert torch.allclose(torch.stack(columns), by_hand[::17], rtol=1e-4, atol=1e-6 * float(by_hand.abs().max()))
    assert float(by_hand.abs().max()) > 1e-3


def test_a_product_leaves_the_model_as_it_was() -> None:
    policy, weights = policy_of("llama", True)
    with as_in_the_loop(policy):
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        forwards = [type(module) for module in policy.model.modules()]
        attention = policy.config._attn_implementation
        fisher_product(policy, sequences(), weights, before, TEMPERATURE)
        assert [type(module) for module in policy.model.modules()] == forwards
        assert policy.config._attn_implementation == attention
    for name, weight in weights.items():
        assert torch.equal(weight, before[name]) and weight.grad is None and weight.requires_grad
