"""Every causal family of transformers, tiny: it takes a reward head and gives our engine's logits, or is refused.

A family that is refused by its configuration (architecture.py) must fail for that reason; any other must score as
transformers does, alone and padded, carry an adapter, come back from disk, and be causal. Families whose configuration
cannot be made small by the common names below stand in NOT_SMALL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import adapters, architecture, heads, language_model, loading, merging, scoring, tensors
from rlhfctl.recipe.schema import Lora

pytestmark = pytest.mark.slow

_WIDTH = dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32)
_DEPTH = dict.fromkeys(("num_hidden_layers", "num_layers"), 4) | dict.fromkeys(
    ("n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2
)
_HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
)
_FEED_FORWARD = dict.fromkeys(("intermediate_size", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 48)
_EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4) | {
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64,
}  # fmt: skip
SMALL: dict[str, Any] = _WIDTH | _DEPTH | _HEADS | _FEED_FORWARD | _EXPERTS | _LATENT | _LINEAR | {
    "num_key_value_heads": 2, "ffn_hidden_size": 64, "n_inner": 64, "vocab_size": 320, "max_position_embeddings": 128,
    "n_positions": 128, "head_dim": 8, "rotary_dim": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, "num_kv_shared_layers": 0}
_GEMMA3N = {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}
_ZAMBA = {
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "num_mem_blocks": 1,
    "n_mamba_heads": 8,
    "mamba_headdim": 8,
    "use_mem_rope": False,
}
MORE: dict[str, dict[str, Any]] = {
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "gemma3n_text": _PER_LAYER | _GEMMA3N,
    "gemma4_text": _PER_LAYER | {"global_head_dim": 8},
    "gemma4_unified_text": _PER_LAYER,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "zamba2": _ZAMBA,
}
NOT_SMALL = {
    "blt", "cohere_compass_text", "dbrx", "dots3_note", "dots3_note_text", "gemma3", "gemma3n", "gemma4",
    "gemma4_assistant", "gemma4_unified", "gemma4_unified_assistant", "got_ocr2", "gpt_neo", "inkling_text",
    "kimi_linear", "longcat_flash", "phi4_multimodal", "qwen4_exp", "qwen4_exp_text", "xmod", "zamba",
}  # fmt: skip
NOT_SET = {  # what these derive from other settings, or have for each layer
    "falcon": ("head_dim",),
    "gemma4_text": ("head_dim",),
    "gemma4_unified_text": ("head_dim",),
    "xlstm": ("v_head_dim", "head_dim"),
}
LARGEST = 60_000_000  # parameters: memory for two copies and their gradients
ROWS = [[5, 9, 7, 1], [8, 3, 1], [4, 4, 6, 2, 9, 5, 1], [11, 1]]


def small_config(name: str) -> Any:
    plain = AutoConfig.for_model(name)
    text = plain.get_text_config()
    if text is not plain:  # a text model inside a larger one
        part = next(key for key in plain.sub_configs if getattr(plain, key) is text)
        small = {key: value for key, value in SMALL.items() if _has(text, key)}
        return AutoConfig.for_model(name, pad_token_id=0, **{part: small})
    wanted = {key: value for key, value in SMALL.items() if _has(plain, key)}
    wanted = {key: value for key, value in wanted.items() if key not in NOT_SET.get(name, ())}
    if hasattr(plain, "qk_rope_head_dim"):  # latent attention: as many keys as queries, their width is derived
        wanted = {key: value for key, value in wanted.items() if key != "head_dim"} | {"num_key_value_heads": 4}
    return AutoConfig.for_model(name, **wanted | MORE.get(name, {}))


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except AmbiguousGlobalPerLayerAttributeError:  # it differs from layer to layer
        return True


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return out


@pytest.mark.parametrize("name", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_a_family_takes_a_reward_head_or_is_refused(name: str, tmp_path: Path) -> None:
    if name in NOT_SMALL:
        pytest.skip("its configuration cannot be made small by the common names")
    try:
        architecture.require_causal(AutoConfig.for_model(name), name)
    except RlhfctlError as error:
        assert "is no causal language model" in error.what or "decoder" in error.what
        return
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(small_config(name)).parameters())
    assert size < LARGEST
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(small_config(name), dtype=torch.float32).eval()

    # From left to right, and with the logits that the engine computes (or refused for PPO).
    first, second = logits(base, [5, 9, 7, 12, 13, 14]), logits(base, [5, 9, 7, 12, 13, 20])
    assert torch.allclose(first[:-1], second[:-1], atol=1e-5) and not torch.allclose(first[-1], second[-1], atol=1e-5)
    if name not in architecture._OTHER_LOGITS:
        language_model.LanguageModel(base, 0).check_head(ROWS)

    # A head scores as the class itself does, alone and padded.
    scorer = heads.scorer_on(base, seed=1).eval()
    scores = scoring.score_rows(scorer, ROWS, 0)
    assert [float(logits(scorer, row)) for row in ROWS] == pytest.approx(scores, abs=1e-4)
    ids, mask = tensors.pad_right(ROWS, 0, torch.device("cpu"))
    with torch.no_grad():
        padded = scorer(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
    assert padded == pytest.approx(scores, abs=1e-4)

    # Through an adapter gradients reach it; merged it comes back from disk.
    adapted = adapters.add_lora(scorer, Lora(r=2, lora_alpha=4), TaskType.SEQ_CLS, seed=0)
    adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for n, p in adapted.named_parameters() if "lora_B" in n)
    merged = merging.merged(adapted)
    merged.save_pretrained(tmp_path)
    again = loading.load_scorer(str(tmp_path), dtype=torch.float32)
    assert scoring.score_rows(again, ROWS, 0) == pytest.approx(scoring.score_rows(merged, ROWS, 0), abs=1e-5)
