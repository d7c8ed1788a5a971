"""Check a model's configuration before its weights load: whether it can be trained, and which class gives it a head.

Reads configurations of transformers. Writes nothing and leaves out loading weights (loading.py).
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from rlhfctl.errors import RlhfctlError
from rlhfctl.models.reward_head import sequence_classifier, stem, trunk_name


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return transformers' causal language model class for a configuration; None if it has none."""
    return _class_of(config, MODEL_FOR_CAUSAL_LM_MAPPING)


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Return transformers' own sequence classifier class for a configuration; None if it has none."""
    kind = _class_of(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    # An exported reward model may have registered a class of its own (trust_remote_code): that one does not count.
    return kind if kind is not None and kind.__module__.startswith("transformers.") else None


def scorer_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a reward model: the backbone of a causal language model with a scalar head (`score`).

    Use transformers' own sequence classifier if it is a linear head on that backbone. Otherwise make one
    (reward_head.py).
    """
    causal, classifier = causal_class(config), classifier_class(config)
    same = classifier is not None and (causal is None or classifier.base_model_prefix == trunk_name(causal))
    if classifier is not None and same and has_linear_head(classifier):
        return classifier
    if causal is None:
        raise RlhfctlError(
            f"the model type {config.model_type} has no causal language model in transformers, so no head can read its "
            "last token",
            fix="name a decoder",
        )
    # transformers uses the usual name for a class with another head
    other = None if classifier is None else f"{stem(causal)}ForSequenceScore"
    made: type[PreTrainedModel] = sequence_classifier(causal, other)  # type: ignore[arg-type]  # functools.cache and type[Any]
    return made


def is_made_here(kind: type[PreTrainedModel]) -> bool:
    """Check whether rlhfctl made this sequence classifier: its saved folder needs reward_head.py to load."""
    return kind.__module__ == sequence_classifier.__module__


def has_linear_head(kind: type[PreTrainedModel]) -> bool:
    """Check whether a sequence classifier reads its last token with a plain linear layer (`score` in transformers)."""
    initializer: Any = kind.__init__
    return "score" in initializer.__code__.co_names


# The causal class of these families attends to later tokens too, and no setting in the configuration shows it.
# tests/e2e/test_causal_families.py compares this table and the tables below with the outputs of these families.
_READ_BOTH_WAYS = ("cpmant", "reformer", "xlm", "xlnet")
# These decoders are parts of larger models. They have no backbone of their own to put a head on.
_PARTS = (
    "emu3", "git", "mllama", "moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "prophetnet", "trocr",
    "whisper",
)  # fmt: skip
# The logits of these families are not the output layer times the last hidden state, as `engine: rlhfctl` assumes.
_OTHER_LOGITS = ("inkling_text", "modernbert-decoder")


def require_causal(config: PretrainedConfig, path: str, *, trust_remote_code: bool = False) -> None:
    """Raise RlhfctlError, with the reason, unless the model is a causal language model (left to right)."""
    kind = next(iter(config.architectures or []), config.model_type)
    fix = "name a causal language model (a decoder: Llama, Qwen, Gemma, GPT-2 and the like)"
    if getattr(config, "is_encoder_decoder", False):
        why = f"{kind} is an encoder-decoder: it reads the prompt with one half and writes with the other"
        raise RlhfctlError(f"{why}, and what is trained here is one decoder", where=path, fix=fix)
    if config.model_type in _PARTS or type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise RlhfctlError(
            f"{kind} is the decoder of something larger ({config.model_type}), and no head can stand on it by itself",
            where=path,
            fix=fix,
        )
    is_decoder = getattr(config.get_text_config(), "is_decoder", None)
    # For BERT and similar families `is_decoder` decides. GPT-NeoX also has false but is a decoder.
    by_setting = type(config.get_text_config()) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    if (is_decoder is False and by_setting) or config.model_type in _READ_BOTH_WAYS:
        raise RlhfctlError(
            f"{kind} is no causal language model: each of its tokens sees those after it, so it cannot write text",
            where=path,
            fix=f"{fix}; a classifier can be the reward: reward.model",
        )
    if causal_class(config) is None and not trust_remote_code:
        raise RlhfctlError(
            f"{kind} is no causal language model: transformers writes no text with the model type {config.model_type}",
            where=path,
            fix=fix,
        )


def require_known_logits(config: PretrainedConfig, path: str) -> None:
    """Raise RlhfctlError for families whose logits `engine: rlhfctl` cannot compute."""
    if config.model_type in _OTHER_LOGITS:
        raise RlhfctlError(
            f"the PPO engine does not know how models of the type {config.model_type} compute their logits",
            where=path,
            fix="set ppo.engine: trl, or name another model",
        )


# The position embeddings of these families begin after the row of the padding token.
_POSITIONS_AFTER_PAD = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "longformer",
    "mpnet", "xmod", "ibert", "luke", "esm",
)  # fmt: skip
_NO_LIMIT = 1_000_000  # a tokenizer without a limit has a much larger number here


def context_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """Return the context length in tokens, the smaller of the configuration's and the tokenizer's; None if unknown.

    For rotary embeddings of the type `dynamic`, `max_position_embeddings` is multiplied by their `factor`.
    """
    inner = config.get_text_config()
    positions = getattr(inner, "max_position_embeddings", None)
    rotary = getattr(inner, "rope_parameters", None) or {}
    if positions is not None and rotary.get("rope_type") == "dynamic":
        positions = int(positions * rotary.get("factor", 1.0))
    if positions is not None and config.model_type in _POSITIONS_AFTER_PAD:
        positions -= (config.pad_token_id or 0) + 1
    longest = tokenizer.model_max_length if tokenizer is not None else None
    known = [limit for limit in (positions, longest) if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(known, default=None)


def _class_of(config: PretrainedConfig, mapping: Any) -> type[PreTrainedModel] | None:
    return _get_model_class(config, mapping) if type(config) in mapping else None


def backbone(model: nn.Module) -> Any:
    """Return the layers of a language model, classifier or reward model, without its head."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    trunk = getattr(inner, inner.base_model_prefix, None)
    return trunk if trunk is not None else getattr(inner, trunk_name(type(inner)))
