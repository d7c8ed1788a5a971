"""What a model's configuration tells before its weights load: may it be trained here, which class gives it a head.

Reads configurations of transformers; loads nothing. How models are loaded is in loading.py.
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
    """The class with which transformers generates text from such a model; None where it has none."""
    return _class_of(config, MODEL_FOR_CAUSAL_LM_MAPPING)


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """transformers' own sequence classifier of such a model; None where it has none."""
    found = _class_of(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    # Not one that an exported reward model brought along and registered (trust_remote_code).
    return found if found is not None and found.__module__.startswith("transformers.") else None


def scorer_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of a scalar head (`score`) on the backbone of a causal language model.

    transformers' own sequence classifier where it is such a head on the causal model's backbone, else one made here.
    """
    causal, theirs = causal_class(config), classifier_class(config)
    same = theirs is not None and (causal is None or theirs.base_model_prefix == trunk_name(causal))
    if theirs is not None and same and has_linear_head(theirs):
        return theirs
    if causal is None:
        raise RlhfctlError(
            f"the model type {config.model_type} has no causal language model in transformers, so no head can read its "
            "last token",
            fix="name a decoder",
        )
    other = None if theirs is None else f"{stem(causal)}ForSequenceScore"  # transformers' own has another head
    made: type[PreTrainedModel] = sequence_classifier(causal, other)  # type: ignore[arg-type]  # functools.cache and type[Any]
    return made


def is_made_here(kind: type[PreTrainedModel]) -> bool:
    """Whether transformers lacks this sequence classifier, so that a folder of it needs our file to load."""
    return kind.__module__ == sequence_classifier.__module__


def has_linear_head(kind: type[PreTrainedModel]) -> bool:
    """Whether a sequence classifier reads its last token with a plain linear layer, in transformers named `score`."""
    initializer: Any = kind.__init__
    return "score" in initializer.__code__.co_names


# Families whose causal class reads both ways, though nothing in their configuration says so. This table and those below
# are held to what the families compute by tests/e2e/test_causal_families.py.
_READ_BOTH_WAYS = ("cpmant", "reformer", "xlm", "xlnet")
# Decoders that transformers takes out of something larger, without a backbone of their own for a head to stand on.
_PARTS = (
    "emu3", "git", "mllama", "moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "prophetnet", "trocr",
    "whisper",
)  # fmt: skip
# Their logits are not the output layer's product with the last hidden state, which `engine: rlhfctl` builds on.
_OTHER_LOGITS = ("inkling_text", "modernbert-decoder")


def require_causal(config: PretrainedConfig, path: str, *, trust_remote_code: bool = False) -> None:
    """RlhfctlError, with the reason, unless the model writes text from left to right."""
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
    said = getattr(config.get_text_config(), "is_decoder", None)
    # BERT and the like are both, by this setting. GPT-NeoX says false, too, and is a decoder whatever it says.
    by_setting = type(config.get_text_config()) in MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    if (said is False and by_setting) or config.model_type in _READ_BOTH_WAYS:
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
    """RlhfctlError for families whose logits our PPO engine does not compute as they do."""
    if config.model_type in _OTHER_LOGITS:
        raise RlhfctlError(
            f"the PPO engine does not know how models of the type {config.model_type} compute their logits",
            where=path,
            fix="set ppo.engine: trl, or name another model",
        )


# Their position embeddings begin after the row of the padding token.
_POSITIONS_AFTER_PAD = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "longformer",
    "mpnet", "xmod", "ibert", "luke", "esm",
)  # fmt: skip
_NO_LIMIT = 1_000_000  # tokenizers without a limit of their own name a number far beyond it


def context_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """The most tokens that a model was made to read, by its configuration and its tokenizer; None: neither says.

    Rotary embeddings of the type dynamic stretch: there `max_position_embeddings` is where the stretching begins.
    """
    inner = config.get_text_config()
    positions = getattr(inner, "max_position_embeddings", None)
    rotary = getattr(inner, "rope_parameters", None) or {}
    if positions is not None and rotary.get("rope_type") == "dynamic":
        positions = int(positions * rotary.get("factor", 1.0))
    if positions is not None and config.model_type in _POSITIONS_AFTER_PAD:
        positions -= (config.pad_token_id or 0) + 1
    own = tokenizer.model_max_length if tokenizer is not None else None
    known = [limit for limit in (positions, own) if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(known, default=None)


def _class_of(config: PretrainedConfig, mapping: Any) -> type[PreTrainedModel] | None:
    return _get_model_class(config, mapping) if type(config) in mapping else None


def backbone(model: nn.Module) -> Any:
    """The layers of a language model, classifier or scorer, without its head."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = getattr(inner, inner.base_model_prefix, None)
    return own if own is not None else getattr(inner, trunk_name(type(inner)))
