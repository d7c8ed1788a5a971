"""Sampling through small_decoder.py and through the model's own forward give the same, for models of its shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from rlhfctl.generation import local, small_decoder
from rlhfctl.generation.generator import Response, Sampling
from rlhfctl.generation.small_decoder import Decoder
from rlhfctl.models import tokenizing
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 10,
    "max_position_embeddings": 64,
}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TAKEN: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE),
    "grouped heads": LlamaConfig(**SHAPE | {"num_key_value_heads": 2}),
    "biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "wide heads": LlamaConfig(**SHAPE, head_dim=8),
    "scaled positions": LlamaConfig(
        **SHAPE, rope_parameters=SCALED | {"rope_theta": 100.0, "original_max_position_embeddings": 8}
    ),
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gelu": LlamaConfig(**SHAPE, hidden_act="gelu"),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
}
NOT_TAKEN: dict[str, Any] = {
    "a window": MistralConfig(**SHAPE, sliding_window=4),
    "norms inside attention": Qwen3Config(**SHAPE, head_dim=4),
    "another shape": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=10, n_positions=64),
    "angles that depend on the length": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ),
}
PROMPTS = [[2, 3], [4, 5, 6, 7, 8, 2], [7], [9, 9, 9], [3, 4, 5]]


def model_of(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter *= 8
            elif "bias" in name:
                parameter += torch.linspace(-1, 1, len(parameter), dtype=dtype)
    return model


def adapted(model: Any, **more: Any) -> Any:
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    peft_model = get_peft_model(model, LoraConfig(**given | more)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if ".lora_" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return peft_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizing.train_tokenizer(
        Init(tokens=list("abcdefgh"), hidden_size=16, num_hidden_layers=1, num_attention_heads=1), []
    )


def both_ways(
    policy: LanguageModel, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> list[list[Response]]:
    """Responses through small_decoder.py and through the model's own forward."""
    sampling = Sampling(12, 1.0, 8, seed=3, **changes)
    ours = local.sample(policy, PROMPTS, tokenizer, sampling)
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "of", classmethod(lambda cls, given: None))
        return [ours, local.sample(policy, PROMPTS, tokenizer, sampling)]


def assert_alike(ours: list[Response], theirs: list[Response]) -> None:
    assert [response.ids for response in ours] == [response.ids for response in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({tuple(response.ids) for response in ours}) > 3
    assert len({len(response.ids) for response in ours}) > 1  # rows end at different times: the batch shrinks


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_draws_and_probabilities_are_the_models_own(
    name: str, lora: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(TAKEN[name])
    policy = LanguageModel(adapted(model), 1, "default") if lora else LanguageModel(model, 1)
    taken: list[Decoder | None] = []
    find = Decoder.of
    monkeypatch.setattr(Decoder, "of", classmethod(lambda cls, given: taken.append(find(given)) or taken[-1]))
    assert_alike(*both_ways(policy, tokenizer, monkeypatch))
    assert taken[0] is not None and policy.decodes


def test_each_acting_adapter_is_in_the_weights_and_none_of_it_stays(tokenizer: Any, monkeypatch: Any) -> None:
    shared = adapted(model_of(TAKEN["llama"]))
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    policy, reference = LanguageModel(shared, 1, "default"), LanguageModel(shared, 1, None)
    moved, _ = both_ways(policy, tokenizer, monkeypatch)
    assert_alike(*both_ways(reference, tokenizer, monkeypatch))
    still, _ = both_ways(reference, tokenizer, monkeypatch)
    assert [r.ids for r in moved] != [r.ids for r in still]
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())
    # The weights are taken anew for each rollout: what was learnt in between counts.
    with torch.no_grad():
        for name, parameter in shared.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-2)
    ours, theirs = both_ways(policy, tokenizer, monkeypatch)
    assert_alike(ours, theirs)
    assert [r.ids for r in ours] != [r.ids for r in moved]


@pytest.mark.parametrize("changes", [{"top_k": 3}, {"top_p": 0.7}, {"stop_ids": (4,)}, {"stop_ids": ()}])
def test_every_way_of_sampling_is_the_same(changes: dict[str, Any], tokenizer: Any, monkeypatch: Any) -> None:
    policy = LanguageModel(adapted(model_of(TAKEN["qwen2"])), 1, "default")
    ours, theirs = both_ways(policy, tokenizer, monkeypatch, **changes)
    assert [response.ids for response in ours] == [response.ids for response in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.kept == pytest.approx(other.kept, abs=1e-4)


def test_values_are_read_as_they_pass(tokenizer: Any, monkeypatch: Any) -> None:
    policy = LanguageModel(model_of(TAKEN["llama"]), 1)
    head = nn.Linear(16, 1)

    def read(states: Tensor) -> Tensor:
        return head(states).squeeze(-1)

    sampling = Sampling(12, 1.0, 3, seed=3)
    ours = local.sample(policy, PROMPTS, tokenizer, sampling, value_head=read)
    monkeypatch.setattr(Decoder, "of", classmethod(lambda cls, given: None))
    theirs = local.sample(policy, PROMPTS, tokenizer, sampling, value_head=read)
    for one, other in zip(ours, theirs, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-4) and one.values


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_other_shapes_go_their_own_way(name: str, tokenizer: Any) -> None:
    policy = LanguageModel(model_of(NOT_TAKEN[name]), 1)
    assert Decoder.of(policy) is None
    assert len(local.sample(policy, PROMPTS, tokenizer, Sampling(4, 1.0, 8, seed=0))) == 5


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_do_more_go_their_own_way(more: dict[str, Any]) -> None:
    config = LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)
    assert Decoder.of(LanguageModel(adapted(model_of(config), **more), 1, "default")) is None


def test_wide_and_large_models_go_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    half = LanguageModel(model_of(TAKEN["llama"], torch.bfloat16), 1)
    assert Decoder.of(half) is None
    model = model_of(TAKEN["llama"])
    size = sum(p.nbytes for name, p in model.named_parameters() if "proj" in name)
    monkeypatch.setattr(small_decoder, "COPIED_BYTES", size)
    assert Decoder.of(LanguageModel(model, 1)) is not None
    monkeypatch.setattr(small_decoder, "COPIED_BYTES", size - 1)
    assert Decoder.of(LanguageModel(model, 1)) is None


def test_a_model_that_only_looks_alike_is_found_out() -> None:
    model = model_of(TAKEN["llama"])
    model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: output * 1.01)
    policy = LanguageModel(model, 1)
    assert Decoder.of(policy) is None and policy.decodes is False
