"""LoRA adapters: new ones change nothing, wrong targets are refused, saved ones keep their head, one acts at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import TaskType
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, LORA, logits_of, stir, words
from small_roles import ROLE_LORA, ROWS, base, save_reward, stir_adapters

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import (
    adapters,
    build,
    heads,
    merging,
    scoring,
    tensors,
)
from rlhfctl.models.adapters import (
    POLICY,
    add_lora,
)
from rlhfctl.models.heads import AdapterScorer, scorer_on
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Lora


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_merges(architecture: str) -> None:
    _, model = words(architecture=architecture)
    ids = [2, 3, 4, 5]
    before = logits_of(model, ids)
    adapted = adapters.add_lora(model, LORA, TaskType.CAUSAL_LM, seed=3)
    assert torch.equal(logits_of(adapted, ids), before)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in adapted.named_parameters() if ".lora_" in name} != set()
    stir(adapted)
    moved = logits_of(adapted, ids)
    assert not torch.allclose(moved, before, atol=1e-2)
    plain = merging.merged(adapted)
    assert torch.allclose(logits_of(plain, ids), moved, atol=1e-5)
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]


@pytest.mark.parametrize("target", [["lm_head"], ["q_proj", "embed_tokens"], ".*(q_proj|lm_head)"])
def test_adapters_on_embeddings_are_refused(target: str | list[str]) -> None:
    _, model = words(tie_word_embeddings=True)
    lora = Lora(r=2, lora_alpha=4, target_modules=target)
    with pytest.raises(RlhfctlError, match="LoRA on embeddings is refused: they are tied") as caught:
        adapters.add_lora(model, lora, TaskType.CAUSAL_LM, seed=0)
    assert caught.value.fix is not None and ("lm_head" in caught.value.fix or "embed_tokens" in caught.value.fix)
    _, untied = words()  # SFT could merge it there, but the reward model's adapter would not fit PPO's base
    with pytest.raises(RlhfctlError, match="LoRA on embeddings is refused"):
        adapters.add_lora(untied, lora, TaskType.CAUSAL_LM, seed=0)
    _, tied = words(tie_word_embeddings=True)
    adapters.add_lora(tied, Lora(r=2, lora_alpha=4, target_modules=["q_proj"]), TaskType.CAUSAL_LM, seed=0)


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("llama", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        ("gpt2", "c_attn, c_fc, c_proj"),
        ("gpt_neox", "dense, dense_4h_to_h, dense_h_to_4h, query_key_value"),
    ],
)
def test_a_wrong_target_is_answered_with_the_layers_there_are(architecture: str, layers: str) -> None:
    _, model = words(architecture=architecture)
    with pytest.raises(RlhfctlError, match="LoRA cannot be attached") as caught:
        adapters.add_lora(model, Lora(target_modules=["no_such"]), TaskType.CAUSAL_LM, seed=0)
    assert caught.value.fix == f"this model's linear layers are: {layers}; or use all-linear"


def test_an_adapter_with_a_head_is_saved_and_loaded_with_it(tmp_path: Path) -> None:
    tokenizer, base = words()
    rows, pad = [[2, 3, 4], [5, 6]], tokenizer.pad_token_id
    adapted = stir(adapters.add_lora(scorer_on(base, seed=1), LORA, TaskType.SEQ_CLS, seed=0))
    expected = scoring.score_rows(adapted, rows, pad)
    adapters.save_adapter(adapted, tmp_path, base="../model", head=True)
    file = tmp_path / "adapter_model.safetensors"
    heads = {name: tensor for name, tensor in load_file(file).items() if "score" in name}
    assert [tuple(tensor.shape) for tensor in heads.values()] == [(1, 16)]
    assert torch.equal(next(iter(heads.values())), adapted.base_model.model.score.modules_to_save["default"].weight)
    assert '"base_model_name_or_path": "../model"' in (tmp_path / "adapter_config.json").read_text()
    fresh = merging.merged(merging.load_adapter(scorer_on(base, seed=99), tmp_path))
    assert scoring.score_rows(fresh, rows, pad) == pytest.approx(expected, abs=1e-5)
    save_file({name: t for name, t in load_file(file).items() if "score" not in name}, file)
    assert not adapters.adapter_has_head(tmp_path)


def test_an_adapter_saved_without_its_head_is_refused(tmp_path: Path) -> None:
    _, base = words()
    causal = adapters.add_lora(base, LORA, TaskType.CAUSAL_LM, seed=0)
    adapters.save_adapter(causal, tmp_path / "policy", base="b", head=False)  # a policy has none
    with pytest.raises(HandoffError, match="without its scalar head"):
        adapters.save_adapter(causal, tmp_path / "reward", base="b", head=True)


def test_an_adapter_on_more_layers_than_the_policys_stays_out_of_the_policy(tmp_path: Path) -> None:
    """A reward model may adapt layers that the policy's LoRA does not."""
    tokenizer, model = base()
    untouched, pad = build.copy_frozen(model), tokenizer.pad_token_id
    expected = save_reward(untouched, tokenizer, tmp_path / "given")
    model = add_lora(model, ROLE_LORA.model_copy(update={"target_modules": ["q_proj"]}), TaskType.CAUSAL_LM, seed=0)
    stir_adapters(model)
    policy = LanguageModel(model, pad, POLICY)
    ids, _ = tensors.pad_right(ROWS, pad, torch.device("cpu"))
    with torch.no_grad():
        before = policy.hidden(ids)
        head = heads.load_scorer_adapter(model, adapters.REWARD, tmp_path / "given")
        assert torch.equal(policy.hidden(ids), before)
        assert torch.equal(policy.with_adapter(None).hidden(ids), untouched.model(input_ids=ids).last_hidden_state)
        scorer = AdapterScorer(policy.with_adapter(adapters.REWARD), head)
        assert scoring.score_rows(scorer, ROWS, pad) == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert torch.equal(policy.hidden(ids), before)
