"""A reward head on families for which transformers has no sequence classifier: made, trained through, saved, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForSequenceClassification

from rlhfctl.errors import HandoffError
from rlhfctl.models import adapters, architecture, heads, language_model, loading, merging, scoring, tensors
from rlhfctl.models.reward_head import sequence_classifier
from rlhfctl.recipe.schema import Lora

FLOAT = torch.float32
WIDTH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
SIZE = WIDTH | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
GEMMA = {"head_dim": 8, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
# No class of theirs in transformers; CTRL has one whose head has another name and place.
FAMILIES: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 3.0},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 8},
    "olmoe": EXPERTS,
    "gemma3n_text": GEMMA | {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0]},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "dff": 48},
    "mamba": {"state_size": 4, "time_step_rank": 2},
}
ROWS = [[5, 9, 7, 1], [8, 3, 1], [4, 4, 6, 2, 9, 5, 1], [11, 1]]


def base_of(family: str) -> Any:
    config = AutoConfig.for_model(family, **SIZE | TOKENS | FAMILIES[family])
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=FLOAT).eval()
    with torch.no_grad():  # as far from uniform as a trained model
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 4
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_any_family_scores_trains_and_comes_back(family: str, tmp_path: Path) -> None:
    base = base_of(family)
    scorer = heads.scorer_on(base, seed=1)
    assert architecture.is_made_here(type(scorer)) and scorer.config.num_labels == 1
    # What it gives is the head's product with the backbone's own last state, row by row.
    with torch.no_grad():
        states = [base.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ROWS]
        expected = [float(state @ scorer.score.weight[0]) for state in states]
    assert scoring.score_rows(scorer, ROWS, 0) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == len(ROWS)

    # Through an adapter a loss on scores reaches the backbone and the head.
    adapted = adapters.add_lora(scorer, Lora(r=2, lora_alpha=4), TaskType.SEQ_CLS, seed=0)
    ids, mask = tensors.pad_right(ROWS, 0, torch.device("cpu"))
    adapted(input_ids=ids, attention_mask=mask).logits.sum().backward()
    moved = {name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is not None and p.grad.any()}
    assert any("lora_B" in name for name in moved) and any("score" in name for name in moved)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in moved:
                parameter -= 0.1 * parameter.grad
    trained = scoring.score_rows(adapted, ROWS, 0)
    assert trained != pytest.approx(expected, abs=1e-3)

    # Saved and loaded: the adapter on a new head, the adapter beside a policy's, and the merged folder.
    adapters.save_adapter(adapted, tmp_path / "adapter", base="base", head=True)
    again = merging.load_adapter(heads.scorer_on(base, seed=99), tmp_path / "adapter")
    assert scoring.score_rows(again, ROWS, 0) == pytest.approx(trained, abs=1e-5)
    policy = adapters.add_lora(base, Lora(r=2, lora_alpha=4), TaskType.CAUSAL_LM, seed=0)
    head = heads.load_scorer_adapter(policy, adapters.REWARD, tmp_path / "adapter")
    shared = heads.AdapterScorer(language_model.LanguageModel(policy, 0, adapters.REWARD), head)
    assert scoring.score_rows(shared, ROWS, 0) == pytest.approx(trained, abs=1e-5)
    merging.merged(again).save_pretrained(tmp_path / "merged")
    loaded = loading.load_scorer(str(tmp_path / "merged"), dtype=FLOAT)
    assert scoring.score_rows(loaded, ROWS, 0) == pytest.approx(trained, rel=1e-3, abs=1e-4)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == [type(loaded).__name__]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["mask", "pad id"])
def test_a_padded_batch_scores_as_its_rows_do_alone(side: str, given: str) -> None:
    scorer = heads.scorer_on(base_of("granite"), seed=1)
    alone = scoring.score_rows(scorer, ROWS, 0)
    pad = tensors.pad_left if side == "left" else tensors.pad_right
    ids, mask = pad(ROWS, 0, torch.device("cpu"))
    if given == "pad id" and side == "left":
        mask = None  # type: ignore[assignment]  # positions turn with the padding, which rotary attention does not see
        ids, alone = ids[2:3], alone[2:3]  # the longest row has no padding, which it would attend to
    with torch.no_grad():
        together = scorer(input_ids=ids, attention_mask=mask if given == "mask" else None).logits[:, 0].tolist()
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_class_of_transformers_is_taken_where_it_is_such_a_head() -> None:
    llama = AutoConfig.for_model("llama", **SIZE)
    assert architecture.scorer_class(llama) is LlamaForSequenceClassification
    assert not architecture.is_made_here(architecture.scorer_class(AutoConfig.for_model("gpt2")))
    granite = architecture.scorer_class(AutoConfig.for_model("granite"))
    assert granite.__name__ == "GraniteForSequenceClassification"
    assert granite is architecture.scorer_class(AutoConfig.for_model("granite"))  # made once
    causal = architecture.causal_class(AutoConfig.for_model("granite"))
    assert causal is not None and sequence_classifier(causal, None) is granite
    ctrl = architecture.scorer_class(AutoConfig.for_model("ctrl"))  # transformers' own reads with another head
    assert ctrl.__name__ == "CTRLForSequenceScore" and architecture.is_made_here(ctrl)
    assert architecture.causal_class(AutoConfig.for_model("vit")) is None


def test_a_granite_without_its_head_is_no_reward_model(tmp_path: Path) -> None:
    base_of("granite").save_pretrained(tmp_path)
    with pytest.raises(HandoffError, match=r"lacks the weights score\.weight"):
        loading.load_scorer(str(tmp_path), dtype=FLOAT)


def test_labels_give_the_loss_that_transformers_takes() -> None:
    scorer = heads.scorer_on(base_of("granite"), seed=1)
    ids, mask = tensors.pad_right(ROWS, 0, torch.device("cpu"))
    wanted = torch.tensor([0.5, -1.0, 2.0, 0.0])
    out = scorer(input_ids=ids, attention_mask=mask, labels=wanted)
    by_hand = sum((a - b) ** 2 for a, b in zip(out.logits[:, 0].tolist(), wanted.tolist(), strict=True)) / 4
    assert out.loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_buffers_that_a_backbone_fills_in_its_layers_are_filled_on_loading(tmp_path: Path) -> None:
    """Falcon H1's: transformers fills them for its own classes, and leaves memory as it was for others."""
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 4, "head_dim": 8}
    config = AutoConfig.for_model("falcon_h1", **SIZE | TOKENS | mamba)
    scorer = heads.scorer_on(AutoModelForCausalLM.from_config(config, dtype=FLOAT), seed=1)
    scorer.save_pretrained(tmp_path)
    loaded = loading.load_scorer(str(tmp_path), dtype=FLOAT)
    filled = dict(scorer.named_buffers())
    assert any("mup_vector" in name for name in filled)
    assert all(torch.equal(value, filled[name]) for name, value in loaded.named_buffers())


@pytest.mark.parametrize(
    ("family", "more", "dressed", "plain"),
    [
        ("falcon", {"ffn_hidden_size": 48}, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}, set()),
        ("phimoe", {"num_local_experts": 4}, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"router"}),
        ("mamba", FAMILIES["mamba"], {"in_proj", "x_proj", "dt_proj"}, {"out_proj"}),
    ],
)
def test_all_linear_leaves_out_what_cannot_carry_an_adapter(
    family: str, more: dict[str, Any], dressed: set[str], plain: set[str]
) -> None:
    config = AutoConfig.for_model(family, **SIZE | TOKENS | more)
    model = adapters.add_lora(
        AutoModelForCausalLM.from_config(config, dtype=FLOAT), Lora(r=2, lora_alpha=4), TaskType.CAUSAL_LM, seed=0
    )
    found = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert dressed <= found and not plain & found
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([ROWS[0]]), use_cache=False).logits).all()
