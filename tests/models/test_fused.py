"""Fused layers give what peft's and transformers' give, forwards and gradients, and leave them as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhfctl.models import fused as under_test
from rlhfctl.models.fused import FusedLinear, fused

IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "max_position_embeddings": 32,
}


def adapted(dtype: torch.dtype = torch.float32, *, bias: bool = False, dropout: float = 0.0, **more: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, attention_bias=bias)
    base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", **more)
    model = get_peft_model(base, lora).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


def result(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a sum in which each has its own weight."""
    logits = model(input_ids=IDS, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), gradients


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_is_what_it_replaces(dtype: torch.dtype, bias: bool) -> None:
    model = adapted(dtype, bias=bias)
    logits, gradients = result(model)
    assert len(gradients) == 2 * 7 * 2 and all(float(g.abs().max()) > 1e-3 for g in gradients.values())
    with fused(model) as count:
        # In float64 transformers' norms stay: they work in float32, and so must what is compared with them.
        assert count == 2 * 7 + (5 if dtype == torch.float32 else 0)
        ours, theirs = result(model)
    close = {"atol": 2e-5, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(ours, logits, **close)
    assert theirs.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs[name], gradient, **close)
    assert not any("forward" in vars(m) or isinstance(m, FusedLinear) for m in model.modules())
    assert torch.equal(result(model)[0], logits)


def test_the_lora_products_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = [(5, 4), (3, 4), (3,), (2, 4), (3, 2)]
    x, weight, bias, down, up = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    for given in (x, down, up):
        given.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda a, d, u: under_test._LoraProduct.apply(a, weight, bias, d, u, 0.7), (x, down, up)
    )


def test_the_norms_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: under_test._RmsNorm.apply(a, weight, 0.1), (x,))
    by_hand = under_test._RmsNorm.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    assert by_hand.tolist()[0] == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])


def test_only_norms_of_this_kind_take_part() -> None:
    class Odd(LlamaRMSNorm):
        """Named and built like the others, but another function."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1

    odd = type("OddRMSNorm", (Odd,), {})(8)
    model = nn.ModuleList([LlamaRMSNorm(8), LlamaRMSNorm(8).to(torch.bfloat16), GemmaRMSNorm(8), nn.LayerNorm(8), odd])
    x = torch.linspace(-1, 2, 16).view(2, 8)
    with fused(model) as count:
        assert count == 1 and "forward" in vars(model[0])
        # A norm that is trained keeps its own forward, and so its gradient.
        model[0](x).sum().backward()
        assert model[0].weight.grad is not None
    gemma = AutoModelForCausalLM.from_config(GemmaConfig(**SHAPE, head_dim=8), dtype=torch.float32)
    with fused(gemma) as count:
        assert count == 0


@pytest.mark.parametrize("more", [{"dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_stay_pefts(more: dict[str, Any]) -> None:
    model = adapted(**more)
    expected = result(model)
    with fused(model):
        ours = result(model)
    torch.testing.assert_close(ours[0], expected[0], atol=2e-5, rtol=2e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=1e-4, rtol=1e-4)
