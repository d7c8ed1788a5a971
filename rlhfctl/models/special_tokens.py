"""Set the pad and end tokens of a model, and mask pad so that it is never sampled.

Changes a model's embeddings, configuration and generation config in memory; reads and writes no files. Leaves out the
tokens that chat templates need (tokenizing.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhfctl.models import tokenizing

# Finite, so that 0 x logit is 0 in entropies; inside the range of float16; far below any trained logit.
PAD_LOGIT = -1.0e4


def add_end_token(model: PreTrainedModel, token: int) -> None:
    """Add `token` to the tokens that end a response in the model's generation config."""
    listed = model.generation_config.eos_token_id
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    model.generation_config.eos_token_id = list(dict.fromkeys([*listed, token]))


def ensure_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the tokenizer a pad token of its own, and the embeddings a row for it. Returns sentences about changes."""
    notes: list[str] = []
    ends = end_tokens(model, tokenizer)
    if sentence := tokenizing.ensure_pad_token(tokenizer):
        notes.append(sentence)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # New rows start at the mean of the other rows. Their initial value matters little: pad is masked when sampling.
        with torch.no_grad():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for embedding in {id(e): e for e in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
                embedding.weight[rows:] = embedding.weight[:rows].mean(0, keepdim=True)
        notes.append(f"embeddings grew from {rows} to {len(tokenizer)} rows")
    set_token_ids(model, tokenizer)
    if len(ends) > 1:
        named = ", ".join(map(str, tokenizer.convert_ids_to_tokens(list(ends))))
        notes.append(f"each of these tokens ends a response, by the model's generation config: {named}")
    return notes


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """List ids that end a response: end-of-sequence and those of the generation config, without pad.

    Pad is listed only if it is the same token as end-of-sequence.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    known = [token for token in listed if 0 <= token < len(tokenizer)]
    ends = dict.fromkeys([tokenizer.eos_token_id, *known])
    pad = tokenizer.pad_token_id
    return tuple(token for token in ends if token is not None and (token != pad or token == tokenizer.eos_token_id))


def set_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the tokenizer's pad, end and begin token ids into the config and the generation config."""
    ends = list(end_tokens(model, tokenizer))
    set_pad_token(model, tokenizer.pad_token_id)
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
    # Only the token ids are kept: a base's sampling defaults (top_p, temperature) would change what PPO samples from.
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def set_pad_token(model: PreTrainedModel, pad_token_id: int | None) -> None:
    """Set the pad token id in the model's configuration, and in the inner text configuration of a multimodal model."""
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad_token_id


class PadMask:
    """Set the logit of pad to PAD_LOGIT, so that it is never sampled: a forward hook for a language-model head.

    Policy and reference both have this hook, so their KL does not change.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, module: nn.Module, args: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor:
        masked = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        masked[self.pad_token_id] = True
        return logits.masked_fill(masked, PAD_LOGIT)


def mask_pad(model: nn.Module, pad_token_id: int) -> Any:
    """Install PadMask on the model's output head. Returns the hook's handle; its `.remove()` uninstalls it."""
    head = model.get_output_embeddings()
    return head.register_forward_hook(PadMask(pad_token_id))


def unmask_pad(model: nn.Module) -> None:
    """Remove PadMask from the model's output head."""
    hooks = model.get_output_embeddings()._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, PadMask)]:
        del hooks[key]
