"""Put a scalar head on the backbone of a causal language model, where transformers has no sequence classifier.

    sequence_classifier(GraniteForCausalLM)     makes GraniteForSequenceClassification, which transformers lacks

Imports torch and transformers only: `rlhfctl export` copies this file beside the weights of a reward model, so that it
loads without rlhfctl installed. Reads and writes no files. Leaves out loading and saving, which transformers does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def last_token(hidden: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
    """Select each row's hidden state at its last token with `read` True: (B, L, H), (B, L) -> (B, H)."""
    rows, length = hidden.shape[:2]
    if read is None:
        return hidden[:, -1]
    positions = torch.arange(length, device=hidden.device) * read.to(hidden.device, torch.long)
    return hidden[torch.arange(rows, device=hidden.device), positions.argmax(-1)]


def trunk_name(causal: type[PreTrainedModel]) -> str:
    """Return the name of the attribute that holds the backbone: base_model_prefix, except for Llama 4 (`model`)."""
    initializer: Any = causal.__init__
    names = initializer.__code__.co_names
    return "model" if causal.base_model_prefix not in names and "model" in names else causal.base_model_prefix


def stem(causal: type[PreTrainedModel]) -> str:
    """Return the family's part of a class name: Granite for GraniteForCausalLM."""
    return causal.__name__.partition("For")[0].removesuffix("LMHeadModel")


@cache
def sequence_classifier(causal: type[PreTrainedModel], name: str | None = None) -> type[PreTrainedModel]:
    """Return the class NAMEForSequenceClassification for NAMEForCausalLM: its backbone, and `score`, a linear head.

    `name`: another name for the class, needed if transformers uses that name for a class with another head.
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

        # All layers are transformers' own. For custom code transformers would leave the buffers of the layers unfilled.
        @classmethod
        def is_custom_code(cls) -> bool:
            return False

        # transformers searches the source file of the class for these two. The answer is in the file of the family.
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
            """Compute scores (B, num_labels) of ids (B, L) at the last token that is not padding."""
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
