"""A scalar head on the backbone of a causal language model, for families without a sequence classifier in transformers.

    sequence_classifier(GraniteForCausalLM)     makes GraniteForSequenceClassification, which transformers lacks

Needs torch and transformers alone: `rlhfctl export` copies this file beside the weights of a reward model, so that they
load where rlhfctl is not installed. Leaves out loading and saving, which are transformers' own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def last_token(hidden: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
    """Each row's hidden state (B, H) at its last token that is read, of `hidden` (B, L, H) and `read` (B, L)."""
    rows, length = hidden.shape[:2]
    if read is None:
        return hidden[:, -1]
    places = torch.arange(length, device=hidden.device) * read.to(hidden.device, torch.long)
    return hidden[torch.arange(rows, device=hidden.device), places.argmax(-1)]


def trunk_name(causal: type[PreTrainedModel]) -> str:
    """The attribute that holds the backbone: base_model_prefix, but for Llama 4, where that names something else."""
    initializer: Any = causal.__init__
    names = initializer.__code__.co_names
    return "model" if causal.base_model_prefix not in names and "model" in names else causal.base_model_prefix


def stem(causal: type[PreTrainedModel]) -> str:
    """The name of the family in its classes' names: Granite of GraniteForCausalLM."""
    return causal.__name__.partition("For")[0].removesuffix("LMHeadModel")


@cache
def sequence_classifier(causal: type[PreTrainedModel], name: str | None = None) -> type[PreTrainedModel]:
    """Return the class NAMEForSequenceClassification for NAMEForCausalLM: its backbone, and `score`, a linear head.

    `name`: another name, where transformers has a class of that one which is no such head.
    """
    family: Any = next(kind for kind in causal.__mro__ if kind.__name__.endswith("PreTrainedModel"))

    class Classifier(family):
        base_model_prefix = trunk_name(causal)
        config_class = causal.config_class

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_labels = config.num_labels
            setattr(self, self.base_model_prefix, AutoModel.from_config(config))
            self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
            self.post_init()

        # Its layers are transformers' own. As custom code, buffers that a parent fills in them would stay unfilled.
        @classmethod
        def is_custom_code(cls) -> bool:
            return False

        # transformers looks into the source of a class's file for these two: the family's file is meant.
        @classmethod
        def _can_set_experts_implementation(cls) -> bool:
            return bool(causal._can_set_experts_implementation())

        @classmethod
        def _can_set_attn_implementation(cls) -> bool:
            return bool(causal._can_set_attn_implementation())

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            inputs_embeds: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
            **inputs: Any,
        ) -> SequenceClassifierOutput:
            """Scores (B, num_labels) of rows (B, L), read at the last token that is no padding."""
            inputs.pop("return_dict", None)
            given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
            backbone = getattr(self, self.base_model_prefix)
            hidden = backbone(**given, attention_mask=attention_mask, **inputs).last_hidden_state
            pad = getattr(self.config.get_text_config(), "pad_token_id", None)
            read = attention_mask
            if read is None and input_ids is not None and pad is not None:
                read = input_ids != pad
            scores = self.score(last_token(hidden, read))
            loss = None
            if labels is not None:
                loss = self.loss_function(logits=None, labels=labels, pooled_logits=scores, config=self.config)
            return SequenceClassifierOutput(loss=loss, logits=scores)

    Classifier.__name__ = Classifier.__qualname__ = name or f"{stem(causal)}ForSequenceClassification"
    Classifier.__doc__ = f"The backbone of {causal.__name__} with a linear head on its last token."
    return Classifier
