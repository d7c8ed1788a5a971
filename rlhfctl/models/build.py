"""Build models from a recipe, prepare the base model, copy, save and reload weights.

Reads the recipe's `model` section; writes model folders. Leaves out adapters (adapters.py), scalar heads (heads.py) and
the rules of loading (loading.py).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from rlhfctl.events import Work
from rlhfctl.models import devices, loading, merging, sharding, tokenizing
from rlhfctl.models.special_tokens import add_end_token, ensure_pad, set_token_ids
from rlhfctl.recipe.schema import Init, Model

# A gated feed-forward layer has three matrices: 8/3 x hidden costs the same as 4 x hidden in a plain layer.
_GATED_FEED_FORWARD = 8 / 3
_ROUND_TO = 16
_TOO_MANY = 0.1  # share of the trained weights that one step does not change


# ---------------------------------------------------------------- models


def new_config(init: Init, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Make the configuration of a new model: the shape of `init`, the vocabulary of `tokenizer`, no dropout."""
    intermediate = init.intermediate_size
    if intermediate is None and init.architecture in ("llama", "mistral", "qwen2"):
        intermediate = _ROUND_TO * round(init.hidden_size * _GATED_FEED_FORWARD / _ROUND_TO)
    elif intermediate is None:
        intermediate = 4 * init.hidden_size
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": init.hidden_size,
        "num_hidden_layers": init.num_hidden_layers,
        "num_attention_heads": init.num_attention_heads,
        "max_position_embeddings": init.max_position_embeddings,
    }
    if init.architecture == "gpt2":
        size["n_inner"] = intermediate
    else:
        size["intermediate_size"] = intermediate
    if init.architecture in ("llama", "mistral", "qwen2"):
        size["num_key_value_heads"] = init.num_attention_heads
    config = AutoConfig.for_model(
        init.architecture,
        **size,
        tie_word_embeddings=init.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    return config


def build_model(
    init: Init,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Build a causal language model with new random weights, drawn with `seed`."""
    config = new_config(init, tokenizer)
    set_seed(seed)
    with Work("making new weights"), loading.loadable(init.architecture, "model", attn_implementation):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    set_token_ids(model, tokenizer)
    return model


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """Move `model` to the device that computes. A quantized model is loaded there already."""
    return model if loading.is_quantized(model) else model.to(devices.device())


@contextlib.contextmanager
def preserve_dtypes(model: nn.Module) -> Iterator[None]:
    """Restore the dtype of the trained parameters at the end of the block.

    TRL's trainers turn adapters on a quantized base into bfloat16, and the scalar head too. That head then receives
    float32 states, and the dtypes do not match.
    """
    before = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = parameter.data.to(before[name])


def base_from_recipe(
    section: Model, prepared: tokenizing.Prepared, *, seed: int, dtype: torch.dtype, quantization: str | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Build or load the recipe's `model`, ready to train, with one row of embeddings per token of its tokenizer.

    Returns the model and sentences about the changes to it and to its tokenizer.
    """
    tokenizer = prepared.tokenizer
    notes: list[str] = []
    if section.init is not None:
        model = build_model(
            section.init, tokenizer, seed=seed, dtype=dtype, attn_implementation=section.attn_implementation
        )
    else:
        assert section.path is not None
        model, notes = merging.load_causal_lm(
            section.path,
            dtype=dtype,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            attn_implementation=section.attn_implementation,
            quantization=quantization,
        )
    if prepared.replaced_end is not None:  # the base may still end its texts with the old token
        add_end_token(model, prepared.replaced_end)
    notes += [*prepared.notes, *ensure_pad(model, tokenizer)]
    _initialize_added_rows(model, prepared)
    tokenizer.padding_side = "left"
    return model, notes


def _initialize_added_rows(model: PreTrainedModel, prepared: tokenizing.Prepared) -> None:
    """Initialize the embedding rows of added tokens with the mean of the other rows.

    A new end-of-turn token starts with the row of the end-of-sequence token that it replaces.
    """
    if not prepared.added:
        return
    end, old_end = prepared.tokenizer.eos_token_id, prepared.replaced_end
    with torch.no_grad():
        for weight in {id(weight): weight for weight in _embeddings(model)}.values():
            others = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
            others[list(prepared.added)] = False
            weight[list(prepared.added)] = weight[others].mean(0)
            if old_end is not None and end in prepared.added:
                weight[end] = weight[old_end]


def _embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the weights of the input embeddings and of the output layer, which may be the same tensor."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer.weight for layer in layers if layer is not None]


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Save a plain Hugging Face folder: weights (safetensors), config, tokenizer, chat template.

    `weights`: those of the model, by name, where this process holds a part of them only.
    """
    model.save_pretrained(folder, state_dict=weights)
    tokenizing.save_tokenizer(tokenizer, folder)


def save_weights(model: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save the weights of a model, or of a peft model's `default` adapter, for `load_weights`.

    `weights`: those of the model, by name, where this process holds a part of them only.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, selected_adapters=["default"])
    else:
        model.save_pretrained(folder, state_dict=weights)


def load_weights(model: Any, folder: Path) -> None:
    """Load the weights that `save_weights` wrote to `folder` into the same model or adapter."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        own = model.state_dict()
        for name, value in type(model).from_pretrained(folder, dtype=model.dtype).state_dict().items():
            sharding.overwrite(own[name], value)


def copy_frozen(model: PreTrainedModel) -> PreTrainedModel:
    """Make a separate, frozen copy of a model in eval mode."""
    twin = copy.deepcopy(model)
    twin.requires_grad_(False)
    return twin.eval()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count parameters: (trainable, all)."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())


def updates_lost_to_rounding(weights: Iterable[nn.Parameter], learning_rate: float) -> str | None:
    """Return a warning if 16-bit rounding cancels a step of `learning_rate` on many of `weights`; None if not.

    `learning_rate` is about the largest step that AdamW takes per weight. bfloat16 keeps 8 binary digits, so the value
    0.1 changes by at least 0.0005 or does not change. The warning is given from a tenth of the weights on.
    """
    unmoved = total = 0
    with torch.no_grad():
        for weight in map(sharding.part_here, weights):
            total += weight.numel()
            if weight.dtype.itemsize < 4:
                unmoved += int(((weight.float() - learning_rate).to(weight.dtype) == weight).sum())
    if total == 0 or unmoved / total < _TOO_MANY:
        return None
    return (
        f"{unmoved / total:.0%} of the trained weights cannot move by a step of learning_rate {learning_rate:g}: their "
        "number format rounds it away; set model.dtype: float32 (with bf16: true on a GPU), or train adapters (lora)"
    )
