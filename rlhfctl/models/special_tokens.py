"""Set the pad and end tokens of a model, and keep pad from being sampled."""

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

# Finite, so that 0 x logit is 0 in entropies; within float16's range; far below any trained logit.
PAD_LOGIT = -1.0e4


def also_ends(model: PreTrainedModel, token: int) -> None:
    """List `token` in the generation config among those that end a response."""
    listed = model.generation_config.eos_token_id
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    model.generation_config.eos_token_id = list(dict.fromkeys([*listed, token]))


def ensure_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the tokenizer a pad token of its own and the embeddings a row for it. Returns what was done, in words."""
    notes: list[str] = []
    ends = end_tokens(model, tokenizer)
    if sentence := tokenizing.ensure_pad_token(tokenizer):
        notes.append(sentence)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # The mean of the other rows: as likely as any at first, and masked out of every sampled distribution anyway.
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
    """Ids that end a response: end-of-sequence, and those that the model's generation config lists; never pad."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    known = [one for one in listed if 0 <= one < len(tokenizer)]
    found = dict.fromkeys([tokenizer.eos_token_id, *known])
    pad = tokenizer.pad_token_id
    return tuple(one for one in found if one is not None and (one != pad or one == tokenizer.eos_token_id))


def set_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make config and generation config agree with the tokenizer on pad, end and beginning."""
    ends = list(end_tokens(model, tokenizer))
    set_pad_token(model, tokenizer.pad_token_id)
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
    # Sampling defaults that a base ships (top_p, temperature) would change what PPO samples from: only the ids stay.
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def set_pad_token(model: PreTrainedModel, pad_token_id: int | None) -> None:
    """Say which token is padding in the configuration, and in that of the text model inside a multimodal one."""
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad_token_id


class PadMask:
    """Forward hook for a language-model head: the logit of pad becomes PAD_LOGIT, so it cannot be sampled.

    Policy and reference both carry it, so it leaves their KL untouched.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, module: nn.Module, args: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor:
        masked = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        masked[self.pad_token_id] = True
        return logits.masked_fill(masked, PAD_LOGIT)


def mask_pad(model: nn.Module, pad_token_id: int) -> Any:
    """Install PadMask on the model's output head. Returns the hook's handle (`.remove()` takes it off)."""
    head = model.get_output_embeddings()
    return head.register_forward_hook(PadMask(pad_token_id))


def unmask_pad(model: nn.Module) -> None:
    """Take PadMask off again."""
    hooks = model.get_output_embeddings()._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, PadMask)]:
        del hooks[key]
